"""The pairs of a published retrieval set's train part: each of its captions with each picture that is right for it.

A picture has a pair for each of its captions, as in Chinese-CLIP's fine-tuning, and a query of MUGE one for each of its
pictures; so an epoch sees each caption once, in an order that depends on seed, epoch and keys.

What is measured is left out: pairs whose caption, or whose picture (by SHA-256), is in a part that chooses the model
or measures it (``Retrieval.apart``). Their URL has the reason, so that the crawl counts them. Pictures stay where they
are: they are read from the set's folder by whatever task downloads them.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wukong.crawl.engine import clean
from wukong.crawl.own_files import length_of, numbered, part_of, read_picture
from wukong.crawl.source import Picture
from wukong.crawl.url import MEASURED
from wukong.errors import DataError
from wukong.evaluate import set_folders, sets
from wukong.evaluate.data_set import Retrieval, RetrievalData
from wukong.evaluate.formats.pictures import Files, Parts
from wukong.store import storage

TRAIN = "train"
_READERS = 16
"""Pictures that are read at the same time."""
_MOST_BYTES = 1 << 30

log = logging.getLogger(__name__)


def count(uri: str) -> int:
    """Return the number of captions of the train part; of MUGE there are some more pairs."""
    return _set_at(uri).splits[TRAIN].captions


def read(uri: str) -> Iterator[Picture]:
    """Iterate over the pairs of the set in a folder that has its name.

    Raises:
        DataError: a file is missing or damaged, or the numbers of images or captions are not the published ones.
        StorageError: the store cannot be read.
    """
    data_set = _set_at(uri)
    root, _, name = uri.rpartition("/")
    with set_folders.local(root, name) as folder:
        trained, *apart = (data_set.read(folder, split) for split in (TRAIN, *data_set.apart))
    urls = _urls(trained, folder, uri)
    captions = {caption.text for data in apart for caption in data.captions}
    pictures = _equal(urls, [url for data in apart for url in _urls(data, folder, uri)], uri)
    left_out: Counter[str] = Counter()

    def pairs() -> Iterator[Picture]:
        for caption in trained.captions:
            for image in caption.images:
                of_picture = urls[image] in pictures
                if not of_picture and caption.text not in captions:
                    yield Picture(urls[image], clean(caption.text))
                    continue
                left_out["picture" if of_picture else "caption"] += 1
                why = f"the {'picture' if of_picture else 'caption'} is in a part of {data_set.title} that is measured"
                yield Picture(f"{urls[image]}{MEASURED}{why}", clean(caption.text))

    yield from numbered(pairs())
    log.info(
        "%s: of the train part %d pairs are left out because of their picture, and %d because of their caption, which "
        "are in %s too",
        *(data_set.title, left_out["picture"], left_out["caption"], " or ".join(data_set.apart)),
    )


def _set_at(uri: str) -> Retrieval:
    data_set = sets.of(uri.rpartition("/")[2])
    assert isinstance(data_set, Retrieval)  # noqa: S101 - the source's checks refuse others
    return data_set


def _urls(data: RetrievalData, folder: Path, uri: str) -> list[str]:
    """Return the URL of each image of a split, from where its reader found it in the set's local folder."""

    def placed(path: Path) -> str:
        return storage.join(uri, path.relative_to(folder).as_posix())

    images = data.images
    if isinstance(images, Files):
        return [placed(images.root / path) for path in images.paths]
    if isinstance(images, Parts):
        tables = [placed(path) for path in images.files]
        return [part_of(tables[number], offset, length) for number, offset, length in images.of.tolist()]
    raise DataError(f"{data.title}: its pictures are no files")


def _equal(trained: Sequence[str], measured: Sequence[str], uri: str) -> set[str]:
    """Return those of the trained pictures whose file is that of a measured one.

    Equal files have equal sizes, so only those of a size that both have are read.
    """
    files = storage.sizes(uri)
    sizes = [{url: _size(url, files) for url in urls} for urls in (trained, measured)]
    of_both = {*sizes[0].values()} & {*sizes[1].values()}
    asked = [[url for url, size in each.items() if size in of_both] for each in sizes]
    with ThreadPoolExecutor(_READERS) as readers:
        known = {*readers.map(_digest, asked[1])}
        return {url for url, digest in zip(asked[0], readers.map(_digest, asked[0]), strict=True) if digest in known}


def _size(url: str, files: Mapping[str, int]) -> int:
    """Return the number of bytes of a picture's file, or of its part of a table; of files some are known."""
    if url in files:
        return files[url]
    return length_of(url) or storage.sizes(url)[url]


def _digest(url: str) -> bytes:
    return hashlib.sha256(read_picture(url, _MOST_BYTES)).digest()
