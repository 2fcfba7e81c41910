"""The hold-outs of an experiment as evaluation tasks: what ``wukong.evaluate.tasks`` measures, read from shards."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from wukong.config.evaluate import Classification
from wukong.config.experiment import Experiment
from wukong.config.split import Holdout
from wukong.data import images, shards
from wukong.data.feature_files import read_views
from wukong.data.shards import matching
from wukong.errors import DataError
from wukong.evaluate import retrieval
from wukong.evaluate.data_set import ClassificationData, Data, RetrievalData
from wukong.evaluate.published import Caption, Images
from wukong.evaluate.results import HOLDOUT
from wukong.runtime.language import message
from wukong.store import damage, storage
from wukong.store.manifest import Manifest

log = logging.getLogger(__name__)
_COLUMNS = ["key", "url", "caption", "sha256"]


class Tar(NamedTuple):
    """A shard's tar: its URI, and its digest, which is empty where nothing says it."""

    uri: str
    sha256: str = ""


class Pictures:
    """The images of pairs, read from their shards when they are asked for. A shard is indexed once.

    Args:
        tars: the tar of each image's shard.
        keys: key of each image's pair.
        digests: SHA-256 of the file that the crawl got, of each image; None where it is not known.
    """

    def __init__(self, tars: Sequence[Tar], keys: Sequence[str], digests: Sequence[str | None]) -> None:
        self._tars, self._keys, self._digests = list(tars), list(keys), list(digests)
        self._places: dict[Tar, dict[str, tuple[int, int]]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def digest(self, i: int) -> str | None:
        """SHA-256 of the file that the crawl got for image ``i``; None where it is not known."""
        return self._digests[i]

    def image(self, i: int) -> Image.Image:
        """Decode image ``i`` to RGB.

        Raises:
            DataError: it is not in its shard, or cannot be decoded.
            StorageError: the shard was altered.
        """
        tar, key = self._tars[i], self._keys[i]
        if tar not in self._places:
            members = [each for each in shards.members(tar.uri, sha256=tar.sha256) if each.suffix == "jpg"]
            self._places[tar] = {each.key: (each.offset, each.size) for each in members}
        if key not in self._places[tar]:
            raise DataError(f"{tar.uri} lacks the picture of the pair {key}: {damage.remedy(tar.uri)}")
        offset, size = self._places[tar][key]
        with storage.open_input(tar.uri) as stream:
            stream.seek(offset)
            return images.decode(stream.read(size), message(f"{key}.jpg of {tar.uri}"))


def read(experiment: Experiment, filtered: Manifest, name: str) -> Data | None:
    """Read a task of an experiment's hold-outs: keys, captions and labels, no images.

    Args:
        experiment: has the hold-outs, and in its section ``evaluate`` the classification sets.
        filtered: manifest of the filter stage.
        name: one of ``experiment.held_out_tasks``.

    Returns:
        The data. None, with a warning, where there is nothing to measure: the hold-out is empty, or no picture belongs
        to a class.

    Raises:
        KeyError: there is no such task.
        DataError: a shard is damaged.
    """
    retrievals = {each.name: each for each in experiment.filter.split.holdouts}
    if name in retrievals:
        return _retrieval(filtered, retrievals[name], experiment.evaluate.captions)
    return _classification(filtered, {each.name: each for each in experiment.evaluate.classification}[name])


def features(experiment: Experiment, filtered: Manifest, computed: str, data: Data) -> Tensor:
    """Read the stored features of a task's images, float16 [images, ...], in the data's order.

    Args:
        experiment: has the hold-outs.
        filtered: manifest of the filter stage.
        computed: URI of the features of the hold-outs.
        data: what ``read`` returned.

    Raises:
        DataError: an image has no features.
    """
    rows: dict[str, Tensor] = {}
    for holdout in experiment.filter.split.holdouts:
        names = shards.names_of(filtered, holdout.name)
        if names:
            keys, views = read_views(computed, holdout.name, names, [0])
            rows |= zip(keys, views[0], strict=True)
    if lost := [key for key in data.ids if key not in rows]:
        raise DataError(f"{computed} has no features for the pair {lost[0]}: delete it and run again")
    return torch.stack([rows[key] for key in data.ids])


def captioned(
    filtered: Manifest,
    splits: Sequence[str],
    name: str,
    title: str,
    taken: retrieval.Captions = "distinct",
    *,
    most: int | None = None,
) -> RetrievalData | None:
    """Read the pairs of some splits for retrieval.

    Args:
        filtered: manifest of the filter stage.
        splits: names of hold-outs, or ``train``.
        name: name of the task.
        title: how reports call it.
        taken: which captions there are; see ``retrieval.task``.
        most: take the first pairs alone, until they have so many distinct images; None for all.

    Returns:
        The data; None if there are no pairs.
    """
    rows_and_tars = _rows(filtered, splits)
    if rows_and_tars is None:
        return None
    table, tars = rows_and_tars
    if most is not None:
        table = table.slice(0, _end_of(_identities(table), most))
    keys, digests = table["key"].to_pylist(), table["sha256"].to_pylist()
    return retrieval_data(
        name,
        title,
        keys,
        _identities(table),
        table["caption"].to_pylist(),
        lambda rows: Pictures([tars[row] for row in rows], [keys[row] for row in rows], [digests[row] for row in rows]),
        taken,
    )


def retrieval_data(
    name: str,
    title: str,
    keys: Sequence[str],
    identities: Sequence[str],
    captions: Sequence[str],
    pictures: Callable[[list[int]], Images],
    taken: retrieval.Captions = "distinct",
) -> RetrievalData:
    """Make a retrieval task of pairs. Each distinct image is one candidate; ``retrieval.task`` says what is right.

    Args:
        name: name of the task.
        title: how reports call it.
        keys: key of each pair.
        identities: what identifies each pair's image.
        captions: caption of each pair.
        pictures: gives the images of some pairs, by their rows.
        taken: which captions there are; see ``retrieval.task``.
    """
    rows, texts, relevant = retrieval.task(identities, captions, taken)
    chosen = rows.tolist()
    wanted: list[list[int]] = [[] for _ in texts]
    for text, image in relevant.nonzero().tolist():
        wanted[text].append(image)
    return RetrievalData(
        name,
        HOLDOUT,
        [keys[row] for row in chosen],
        [Caption(text, tuple(images)) for text, images in zip(texts, wanted, strict=True)],
        False,
        pictures(chosen),
        title,
        [identities[row] for row in chosen],
    )


def _end_of(identities: Sequence[str], most: int) -> int:
    """Return how many of the first pairs have ``most`` distinct images."""
    seen: set[str] = set()
    for row, identity in enumerate(identities):
        seen.add(identity)
        if len(seen) > most:
            return row
    return len(identities)


def _retrieval(filtered: Manifest, holdout: Holdout, taken: retrieval.Captions) -> RetrievalData | None:
    data = captioned(filtered, [holdout.name], holdout.name, holdout.title or holdout.name, taken)
    if data is None:
        log.warning("the hold-out %s has no pairs: it is not measured", holdout.name)
    return data


def _classification(filtered: Manifest, task: Classification) -> ClassificationData | None:
    """Read hold-outs for classification. An image belongs to the first class whose pattern matches its URL.

    An image in several pairs counts once in its class.
    """
    rows_and_tars = _rows(filtered, task.holdouts)
    urls = rows_and_tars[0]["url"].to_pylist() if rows_and_tars else []
    belongs = np.array([matching(urls, [pattern]) for pattern in task.classes.values()])
    if rows_and_tars is None or not belongs.any():
        log.warning("no held-out picture belongs to a class of %s: it is not measured", task.name)
        return None
    table, tars = rows_and_tars
    keys, digests, identities = table["key"].to_pylist(), table["sha256"].to_pylist(), _identities(table)
    label_of = belongs.argmax(0).tolist()
    firsts = {(identities[row], label_of[row]): row for row in reversed(np.flatnonzero(belongs.any(0)).tolist())}
    chosen = sorted(firsts.values())
    return ClassificationData(
        task.name,
        HOLDOUT,
        tuple(task.classes),
        [keys[row] for row in chosen],
        np.array([label_of[row] for row in chosen], np.int64),
        Pictures([tars[row] for row in chosen], [keys[row] for row in chosen], [digests[row] for row in chosen]),
        task.title or task.name,
        tuple(task.classes),
        every_class=False,
        pictures=[identities[row] for row in chosen],
    )


def _rows(filtered: Manifest, splits: Sequence[str]) -> tuple[pa.Table, list[Tar]] | None:
    """Read the pairs of some hold-outs, and the tar of each pair; None if there are none.

    They are in the order of their keys, so the order of pairs in shards decides nothing: neither which pair stands for
    an image that several pairs have, nor which caption of an image is its first, nor the order of the answers.
    """
    tables, tars = [], []
    for split in splits:
        for shard in shards.names_of(filtered, split):
            path = f"{split}/{shard}"
            uri, sha256 = filtered.file(f"{path}.parquet")
            tables.append(storage.read_table(uri, _COLUMNS, sha256))
            tars += [Tar(*filtered.file(f"{path}.tar"))] * len(tables[-1])
    if not tables:
        return None
    whole = pa.concat_tables(tables)
    order = np.argsort(np.array(whole["key"].to_pylist(), object), kind="stable")
    return whole.take(order), [tars[row] for row in order.tolist()]


def _identities(table: pa.Table) -> list[str]:
    """Return what identifies each pair's image: the digest of its bytes, or the pair's key where a table has none."""
    return [digest or key for digest, key in zip(table["sha256"].to_pylist(), table["key"].to_pylist(), strict=True)]
