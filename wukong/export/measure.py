"""What an exported model loses: its R@1 less that of the model, on pictures with captions, with paired intervals."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image
from torch import Tensor

from wukong.config.crawl import Crawl
from wukong.crawl import own_files
from wukong.crawl.status import FetchError
from wukong.data import images
from wukong.data.shards import names_of
from wukong.errors import DataError
from wukong.evaluate import holdouts
from wukong.evaluate.data_set import RetrievalData
from wukong.evaluate.model import OwnModel
from wukong.evaluate.protocol import OWN, Protocol
from wukong.evaluate.run import Task
from wukong.evaluate.two_models import BASELINE, OTHER, compared
from wukong.export.target import Check
from wukong.model.dual import Texts
from wukong.model.saved_model import SavedModel
from wukong.model.similarity import Scores
from wukong.runtime.language import _
from wukong.store import manifest, storage

log = logging.getLogger(__name__)

MOST = 2000
"""Pictures that are measured at most."""
_OPTION = "--measure-on"
_TRAIN = "train"
_RESULTS = {
    "text_to_image_r1": _("R@1 text to image"),
    "image_to_text_r1": _("R@1 image to text"),
}


class Exported:
    """An exported model, as evaluations take models (``wukong.evaluate.model.Model``).

    Args:
        saved: the model that it came from, which compares its vectors.
        pictures: encodes RGB pictures of any sizes, with the consumer's own preprocessing.
        captions: encodes captions, with the consumer's own tokenizer.
    """

    name = digest = "exported"

    def __init__(
        self,
        saved: SavedModel,
        pictures: Callable[[Sequence[Image.Image]], Tensor],
        captions: Callable[[Sequence[str]], Texts],
    ) -> None:
        self._model, self._pictures, self._captions = saved.model, pictures, captions
        self.token_wise, self.scale = saved.model.token_wise, float(saved.model.scale)

    def encode_images(self, pictures: Sequence[Image.Image], protocol: Protocol) -> Tensor:
        """Encode RGB pictures."""
        return self._pictures(pictures)

    def encode_texts(self, texts: Sequence[str], protocol: Protocol) -> Texts:
        """Encode captions."""
        return self._captions(texts)

    def similarity(self, image: Tensor, text: Texts) -> Scores:
        """Compute the similarities of encoded pictures and captions."""
        return self._model.similarity(image, text)

    def image_to_text(self, image: Tensor, text: Texts) -> Tensor:
        """Compute the similarities of pictures to captions."""
        return self.similarity(image, text).image_to_text

    def rough_image_to_text(self, image: Tensor, text: Texts) -> None:
        """Compute nothing roughly: only classification asks for it."""


def loss(saved: SavedModel, exported: Exported, uri: str, by: str) -> list[Check]:
    """Measure R@1 of a model and of what was exported of it, in both directions, and the difference.

    Args:
        saved: the model.
        exported: what was exported.
        uri: pictures with captions; see ``read``.
        by: what computed the exported side, with its version.

    Raises:
        DataError: there are fewer than two pictures with captions, or one cannot be decoded.
        StorageError: there is nothing at the URI.
    """
    data = read(uri)
    task = Task(data, OWN)
    task.measure({BASELINE: OwnModel(saved, "model"), OTHER: exported})
    values = {role: outcome.results for role, outcome in task.outcomes.items()}
    checks = []
    for found in compared(data.name, task.answers()):
        if (name := found["result"]) not in _RESULTS:
            continue
        of = _("{results} on {count:,} pictures of {title}").format(
            results=_RESULTS[name], count=len(data), title=data.title
        )
        difference = found["difference"]
        checks += [
            Check(of, _("before"), values[BASELINE][name].value, "torch"),
            Check(of, _("after"), values[OTHER][name].value, by),
            Check(of, _("difference"), difference["value"], by),
            Check(of, _("difference, 95 % interval from"), difference["low"], by),
            Check(of, _("difference, 95 % interval to"), difference["high"], by),
        ]
    return checks


def read(uri: str, most: int | None = MOST, named_by: str = _OPTION) -> RetrievalData:
    """Read what is measured on: keys and captions, no pictures.

    Of the output of a filter stage these are the hold-outs, all in one; where it has none, the pairs of the training.
    Of a folder or a list of pictures (``wukong.crawl.own_files``) they are those with captions; what cannot be decoded
    is left out and logged.

    Args:
        uri: URI or path of a filter stage's output, of a folder of pictures with captions beside them, or of a list.
        most: how many pictures are read; the first ones by key. None for all.
        named_by: the option that named the URI, for messages.

    Raises:
        DataError: there are fewer than two pictures with captions.
        StorageError: there is nothing at the URI.
    """
    place = _uri(uri)
    data = _of_stage(place, most, named_by) if _is_stage(place) else _of_files(place, most, named_by)
    if data is None or len(data) < 2:
        raise DataError(f"{named_by}: {uri} holds fewer than two pictures with captions")
    return data


def calibration(uri: str, count: int) -> Iterator[Image.Image]:
    """Iterate over pictures by which activations are calibrated: of a filter stage those of the training.

    Of a folder or a list they are those that come last, so that they are not measured where there are enough.
    """
    place = _uri(uri)
    if _is_stage(place):
        data = holdouts.captioned(manifest.load(place), [_TRAIN], _TRAIN, _TRAIN, most=count)
    else:
        data = _of_files(place, count, _OPTION, last=True)
    if data is None:
        raise DataError(f"--measure-on: {uri} holds no picture with a caption")
    return (data.image(i) for i in range(len(data)))


def _uri(uri: str) -> str:
    named = uri if "://" in uri else storage.from_path(Path(uri).expanduser())
    return named.removesuffix("/manifest.json").rstrip("/")


def _is_stage(uri: str) -> bool:
    return storage.exists(storage.join(uri, "manifest.json"))


def _of_stage(uri: str, most: int | None, named_by: str) -> RetrievalData | None:
    filtered = manifest.load(uri)
    split = filtered.config.get("split")
    if split is None:
        raise DataError(f"{named_by}: {uri} is the output of the stage {filtered.stage}: give that of filter")
    held_out = [each["name"] for each in split["holdouts"] if names_of(filtered, each["name"])]
    title = (
        _("the hold-outs of {uri}").format(uri=uri)
        if held_out
        else _("the pairs of the training of {uri}").format(uri=uri)
    )
    return holdouts.captioned(filtered, held_out or [_TRAIN], "measured", title, most=most)


class _Files:
    """Pictures that are files of their own.

    Args:
        urls: the URL of each.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls

    def __len__(self) -> int:
        return len(self._urls)

    def digest(self, i: int) -> None:
        """Nothing is known of a file before it is read."""

    def image(self, i: int) -> Image.Image:
        """Decode picture ``i`` to RGB.

        Raises:
            DataError: it cannot be read or decoded.
        """
        return _picture(self._urls[i])


def _picture(url: str) -> Image.Image:
    try:
        data = bytes(own_files.read_picture(url, Crawl(engine="files", endpoint=url).max_bytes))
    except FetchError as error:
        raise DataError(f"{url}: {error}") from error
    return images.decode(data, url)


def _is_readable(url: str) -> bool:
    try:
        _picture(url)
    except DataError as error:
        log.warning("left out of what is measured: %s", error)
        return False
    return True


def _of_files(uri: str, most: int | None, named_by: str, *, last: bool = False) -> RetrievalData | None:
    found = own_files.pictures_of(Crawl(engine="files", endpoint=uri), named_by)
    pairs = [each for each in found if each.caption]
    urls = list(dict.fromkeys(own_files.file_of(each.url) for each in pairs))
    chosen = dict.fromkeys(islice(filter(_is_readable, reversed(urls) if last else urls), most))
    kept = [(url, each.caption) for each in pairs if (url := own_files.file_of(each.url)) in chosen]
    if not kept:
        return None
    named, captions = zip(*kept, strict=True)
    return holdouts.retrieval_data(
        "measured", uri, named, named, captions, lambda rows: _Files([named[r] for r in rows])
    )
