"""A model's answers on one task, query by query. Two models that answered the same queries are compared by them.

The evaluate stage writes them beside its results, a Parquet file for each task: ``answers/TASK.parquet``. A row is a
query of a model: ``model`` (its role), ``query`` (the image's id, or the caption's number in the order of
``RetrievalData.order``), ``unit``, ``identity``, ``label`` and ``pictures`` (see ``Answers``), and a column for each
result with the query's answer: 1 or 0, or a share; null where the query does not count for the result. Rows are in an
order that does not depend on that of the set's rows. The file's metadata name what was measured, ``task``, ``digest``
and ``protocol``, and how units were made, ``units``.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wukong.config import evaluators
from wukong.errors import DataError
from wukong.evaluate import interval

if TYPE_CHECKING:
    from wukong.evaluate.interval import Interval
    from wukong.evaluate.retrieval import Found, Pairs

Numbers = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
FOLDER = "answers"
UNITS = "components"
"""How the units of stored answers were made, in their metadata."""
_OWN = ("model", "query", "unit", "identity", "label", "pictures")
_METADATA = ("task", "digest", "protocol")
_NO_LABEL = -1
_FEWEST = 6 - 1e-9  # units
_NO_LINKS = np.empty((0, 2), np.int64)


@dataclass(frozen=True)
class Answers:
    """Answers of one model on one task.

    Attributes:
        queries: what was asked: ids of images, or numbers of captions.
        units: int64 [queries], the number of the unit that a query belongs to. Units are drawn independently, queries
            of a unit together: what hangs together by captions and images, see ``units_of``.
        labels: int64 [queries], each image's class; -1 where there is none.
        results: the answers by the name of their result, float64 [queries]; NaN for queries that do not count for it.
        identities: int64 [queries], a digest of the caption or of the image, equal in all tasks; None where it is not
            known. Then nothing is taken to be in another task too.
        pictures: the ids of the pictures that each query shows or that are right for it; None where they are not known.
    """

    queries: tuple[str, ...]
    units: Integers
    labels: Integers
    results: Mapping[str, Numbers]
    identities: Integers | None = None
    pictures: tuple[tuple[str, ...], ...] | None = None

    def scores(self) -> "Scores":
        """Sum the answers over each unit.

        A mean over classes weighs each image by one over the number of its class's images. A mean of results
        (``Result.mean_of``) is there where some of them are.
        """
        size = int(self.units.max()) + 1
        sums, weights = np.zeros((size, len(self.results))), np.zeros((size, len(self.results)))
        for column, (name, values) in enumerate(self.results.items()):
            counts = np.isfinite(values)
            units, heavy = self.units[counts], np.ones(int(counts.sum()))
            if evaluators.result_of(name).per_class:
                labels = self.labels[counts]
                heavy = 1 / np.bincount(labels)[labels]
            sums[:, column] = np.bincount(units, heavy * values[counts], size)
            weights[:, column] = np.bincount(units, heavy, size)
        shares = {name: {name: 1.0} for name in self.results}
        for name, result in evaluators.results().items():
            if parts := [each for each in self.results if each in result.mean_of]:
                shares[name] = dict.fromkeys(parts, 1 / len(parts))
        mixed = np.array([[share.get(name, 0.0) for share in shares.values()] for name in self.results])
        links = _NO_LINKS if self.identities is None else np.stack([self.units, self.identities], 1)
        return Scores(tuple(shares), sums, weights, mixed, links)

    def intervals(self) -> dict[str, "Interval"]:
        """Compute each result, and the mean of all if it is a result, with their intervals.

        A mean over classes draws images within their class, so its interval is that of ``interval.mean_per_class``.
        """
        scores = self.scores()
        found = {name: scores.interval(name) for name in scores.names}
        for name, values in self.results.items():
            if evaluators.result_of(name).per_class:
                counts = np.isfinite(values)
                found[name] = interval.mean_per_class(values[counts], _in_order(self.labels[counts]))
        return found

    def ordered(self, order: Sequence[int], queries: Sequence[str]) -> "Answers":
        """The same answers in another order; units are numbered as they come.

        Args:
            order: the numbers of the queries.
            queries: what they are called, in the new order.
        """
        rows = np.asarray(order, np.int64)
        results = {name: values[rows] for name, values in self.results.items()}
        known = None if self.identities is None else self.identities[rows]
        shown = None if self.pictures is None else tuple(self.pictures[row] for row in rows.tolist())
        return Answers(tuple(queries), _in_order(self.units[rows]), self.labels[rows], results, known, shown)


@dataclass(frozen=True)
class Scores:
    """Answers of a model by unit. Each result is a weighted sum of columns; a column is a ratio of sums over the units.

    Attributes:
        names: the results' names.
        sums: float64 [units, columns], the sum of a unit's answers.
        weights: float64 [units, columns], the number of a unit's answers, or their weight.
        mixed: float64 [columns, results], the weights of the columns in each result.
        links: int64 [links, 2], units and the identities of their queries, as far as they are known.
    """

    names: tuple[str, ...]
    sums: Numbers
    weights: Numbers
    mixed: Numbers
    links: Integers = field(default_factory=lambda: _NO_LINKS)

    def values(self) -> Numbers:
        """The results, [results]."""
        parts = (self.sums.sum(0) / self.weights.sum(0))[:, None] * self.mixed
        return np.array([math.fsum(part) for part in parts.T])  # the mean of six ones is one

    def shares(self, name: str) -> Numbers:
        """What each unit adds to a result, [units]; their sum is the result.

        Raises:
            DataError: there is no such result.
        """
        means: Numbers = (self.sums / self.weights.sum(0)) @ self.mixed[:, self._place(name)]
        return means

    def possible(self, name: str) -> Numbers:
        """What each unit would add to a result if all its answers were right, [units]; their sum is 1."""
        return replace(self, sums=self.weights).shares(name)

    def interval(self, name: str, level: float = interval.LEVEL) -> "Interval":
        """Compute a result and its interval, which is from 0 to 1 where there are too few units."""
        means = self.sums.sum(0) / self.weights.sum(0)
        moves = replace(self, sums=self.sums - self.weights * means).shares(name)
        value = float(self.values()[self._place(name)])
        found = interval.of_share(self.shares(name), self.possible(name), value=value, moves=moves, level=level)
        return replace(found, low=0.0, high=1.0) if self.too_few(name) else found

    def too_few(self, name: str) -> bool:
        """Whether a result has so few units that no interval can be had.

        Where nothing differs, all of five units point one way in 1 of 16 cases. Units of unequal weight count as fewer
        equal ones (Kish, Survey Sampling, 1965, section 11.7): the square of their sum over the sum of their squares.
        """
        return 1 / float((self.possible(name) ** 2).sum()) < _FEWEST

    def only(self, name: str) -> "Scores":
        """The same with one result alone; columns with equal weights are one, as they have one denominator."""
        shares = self.mixed[:, self._place(name)]
        groups: dict[bytes, list[int]] = {}
        for column in np.flatnonzero(shares).tolist():
            groups.setdefault(self.weights[:, column].tobytes(), []).append(column)
        weights = np.stack([self.weights[:, columns[0]] for columns in groups.values()], 1)
        mixed = np.array([[shares[columns].sum()] for columns in groups.values()])
        sums = np.stack([self.sums[:, columns] @ shares[columns] for columns in groups.values()], 1) / mixed[:, 0]
        return Scores((name,), sums, weights, mixed, self.links)

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise DataError(f"the answers hold no {name!r}, only {', '.join(self.names)}")
        return self.names.index(name)


def mean_of(scores: Sequence[Scores], name: str) -> Scores:
    """The mean of one result over several tasks. Units that have a caption or an image in common are one unit."""
    alone = [each.only(name) for each in scores]
    starts = np.cumsum([0, *(len(each.sums) for each in alone)])
    links = np.concatenate([each.links + np.array([start, 0]) for each, start in zip(alone, starts, strict=False)])
    identities, numbers = np.unique(links[:, 1], return_inverse=True)
    size = int(starts[-1])
    units = _in_order(components(links[:, 0], size + numbers, size + len(identities))[:size])
    sums, weights = np.zeros((2, int(units.max()) + 1, sum(each.sums.shape[1] for each in alone)))
    column = 0
    for each, start in zip(alone, starts, strict=False):
        columns = slice(column, column + each.sums.shape[1])
        np.add.at(sums[:, columns], units[start : start + len(each.sums)], each.sums)
        np.add.at(weights[:, columns], units[start : start + len(each.sums)], each.weights)
        column = columns.stop
    mixed = np.concatenate([each.mixed for each in alone]) / len(alone)
    return Scores((name,), sums, weights, mixed, np.stack([units[links[:, 0]], links[:, 1]], 1))


def of_images(
    ids: Sequence[str], labels: npt.ArrayLike, results: Mapping[str, npt.ArrayLike], pictures: Sequence[str] = ()
) -> Answers:
    """Answers of a classification task: each image is a query and, unless it is there twice, a unit.

    Args:
        ids: the id of each image.
        labels: their classes, int [images].
        results: whether each image counts as right, [images], by the result's name.
        pictures: digests of the images' bytes; empty where only the ids are known.
    """
    values = {name: np.asarray(each, np.float64) for name, each in results.items()}
    units, identities = units_of((), pictures or ids, (), ())
    return Answers(tuple(ids), units, np.asarray(labels, np.int64), values, identities, tuple((each,) for each in ids))


def of_retrieval(
    found: "Found",
    pairs: "Pairs",
    texts: Sequence[str],
    image_ids: Sequence[str],
    *,
    share: bool,
    pictures: Sequence[str] = (),
) -> Answers:
    """Answers of a retrieval task: each caption is a query, and each image where images are queries too.

    Args:
        found: what ``retrieval.search`` returned.
        pairs: which belong together.
        texts: the captions.
        image_ids: the id of each image.
        share: whether an answer is the share of the right candidates that are found; otherwise 1 if any is.
        pictures: digests of the images' bytes; empty where only the ids are known.
    """
    captions, images = pairs.texts, pairs.images if found.image_to_text is not None else 0
    units, identities = units_of(texts, pictures or image_ids, pairs.text.numpy(), pairs.image.numpy())
    results: dict[str, Numbers] = {}
    for direction, hits, asked, start in (
        ("text_to_image", found.text_to_image, pairs.text, 0),
        ("image_to_text", found.image_to_text, pairs.image, captions),
    ):
        if hits is None:
            continue
        counts = hits.numpy().astype(np.float64)
        right = np.bincount(asked.numpy(), minlength=len(counts))
        values = counts / right[:, None] if share else (counts > 0).astype(np.float64)
        for column, k in enumerate(found.cutoffs):
            results[f"{direction}_r{k}"] = np.full(captions + images, np.nan)
            results[f"{direction}_r{k}"][start : start + len(values)] = values[:, column]
    queries = (*(str(number) for number in range(captions)), *(image_ids if images else ()))
    asked_units, known = _in_order(units[: len(queries)]), identities[: len(queries)]
    right_for: list[list[str]] = [[] for _ in range(captions)]
    for text, image in zip(pairs.text.tolist(), pairs.image.tolist(), strict=True):
        right_for[text].append(image_ids[image])
    shown = (*map(tuple, right_for), *((each,) for each in image_ids if images))
    return Answers(queries, asked_units, np.full(len(queries), _NO_LABEL), results, known, shown)


def units_of(
    texts: Sequence[str], pictures: Sequence[str], text: npt.ArrayLike, image: npt.ArrayLike
) -> tuple[Integers, Integers]:
    """Find the units of a task: the connected components of the graph of its captions and images.

    A caption hangs together with all images that it belongs to, equal captions with each other, and so on from these.
    So no two units have a caption or an image in common, and a model's answers to one tell nothing of those to another.

    Args:
        texts: the captions.
        pictures: what identifies each image.
        text: number of each pair's caption, int [pairs].
        image: number of each pair's image, int [pairs].

    Returns:
        Units and identities (see ``Answers``) of all captions, then of all images.
    """
    identities = np.concatenate([_identities("caption", texts), _identities("image", pictures)])
    nodes = np.unique(identities, return_inverse=True)[1].astype(np.int64)
    ends = nodes[np.asarray(text, np.int64)], nodes[len(texts) + np.asarray(image, np.int64)]
    return _in_order(components(*ends, len(nodes))[nodes]), identities


def components(first: Integers, second: Integers, size: int) -> Integers:
    """Find the connected components of an undirected graph, as SciPy does, which not all images have.

    Args:
        first: one end of each edge, int64 [edges].
        second: the other end.
        size: number of nodes.

    Returns:
        For each node the least node of its component, int64 [size].
    """
    least = np.arange(size)
    while True:
        before = least.copy()
        lower = np.minimum(least[first], least[second])
        for end in (least[first], least[second], first, second):  # the roots of both ends too, so that trees join
            np.minimum.at(least, end, lower)
        least = least[least]
        if np.array_equal(least, before):
            return least


def _in_order(values: Integers) -> Integers:
    """Number values by the order in which they come first, from 0."""
    _, firsts, numbers = np.unique(values, return_index=True, return_inverse=True)
    ranks = np.empty(len(firsts), np.int64)
    ranks[np.argsort(firsts)] = np.arange(len(firsts))
    numbered: Integers = ranks[numbers]
    return numbered


def _identities(kind: str, values: Sequence[str]) -> Integers:
    digests = (hashlib.blake2b(f"{kind} {value}".encode(), digest_size=8).digest() for value in values)
    return np.frombuffer(b"".join(digests), np.int64)


def table(answered: Mapping[str, Answers], *, task: str, digest: str, protocol: str) -> pa.Table:
    """Make the table of a task.

    Args:
        answered: the answers of each model by its role.
        task: the task's name.
        digest: SHA-256 of what was measured.
        protocol: the protocol's name.
    """
    parts = []
    for role, answers in answered.items():
        nothing = pa.nulls(len(answers.queries))
        columns: dict[str, pa.Array] = {
            "model": pa.array([role] * len(answers.queries)).dictionary_encode(),
            "query": pa.array(answers.queries, pa.string()),
            "unit": pa.array(answers.units, pa.int32()),
            "identity": pa.array(answers.identities if answers.identities is not None else nothing, pa.int64()),
            "label": pa.array(answers.labels, pa.int32(), mask=answers.labels == _NO_LABEL),
            "pictures": pa.array(answers.pictures if answers.pictures is not None else nothing, pa.list_(pa.string())),
        }
        for name, values in answers.results.items():
            columns[name] = pa.array(values, pa.float64(), mask=~np.isfinite(values))
        parts.append(pa.table(columns))
    whole = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    return whole.replace_schema_metadata({"task": task, "digest": digest, "protocol": protocol, "units": UNITS})


def read(stored: pa.Table, role: str) -> Answers:
    """Read the answers of one model from a task's table.

    Raises:
        DataError: the table has none of that model.
    """
    import pyarrow.compute as pc

    rows = stored.filter(pc.equal(stored["model"].cast(pa.string()), role))
    if not rows.num_rows:
        raise DataError(f"the answers on {metadata(stored)['task']} hold none of the {role} model")
    labels = rows["label"].fill_null(_NO_LABEL).to_numpy().astype(np.int64)
    names = [name for name in rows.column_names if name not in _OWN]
    values = {name: np.asarray(rows[name].to_numpy(zero_copy_only=False), np.float64) for name in names}
    values = {name: each for name, each in values.items() if np.isfinite(each).any()}
    known = not rows["identity"].null_count
    identities = rows["identity"].to_numpy().astype(np.int64) if known else None
    units = rows["unit"].to_numpy().astype(np.int64)
    shown = None
    if not rows["pictures"].null_count:
        shown = tuple(map(tuple, rows["pictures"].to_pylist()))
    return Answers(tuple(rows["query"].to_pylist()), units, labels, values, identities, shown)


def metadata(stored: pa.Table) -> dict[str, str]:
    """What a table's answers are of: ``task``, ``digest``, ``protocol``."""
    known = stored.schema.metadata or {}
    return {name: known.get(name.encode(), b"").decode() for name in _METADATA}
