"""A model's answers on one task, query by query. Two models that answered the same queries are compared by them.

The evaluate stage writes them beside its results, a Parquet file for each task: ``answers/TASK.parquet``. A row is a
query of a model: ``model`` (its role), ``query`` (the image's id, or the caption's number in the order of
``RetrievalData.order``), ``unit`` and ``label`` (see ``Answers``), and a column for each result with the query's
answer: 1 or 0, or a share; null where the query does not count for the result. The file's metadata name what was
measured: ``task``, ``digest``, ``protocol``. Rows are in an order that does not depend on that of the set's rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wukong.errors import DataError

if TYPE_CHECKING:
    from wukong.evaluate.retrieval import Found, Pairs

Numbers = npt.NDArray[np.float64]
FOLDER = "answers"
_OWN = ("model", "query", "unit", "label")
_METADATA = ("task", "digest", "protocol")
_NO_LABEL = -1
MEAN_RECALL, PER_CLASS = "mean_recall", "mean_per_class"


@dataclass(frozen=True)
class Answers:
    """Answers of one model on one task.

    Attributes:
        queries: what was asked: ids of images, or numbers of captions.
        units: int64 [queries], the number of the unit that a query belongs to. Units are drawn independently, queries
            of a unit together: the five captions of an image, and the image itself.
        labels: int64 [queries], each image's class; -1 where there is none.
        results: by the result's name its answers, float64 [queries]; NaN for queries that do not count for it.
    """

    queries: tuple[str, ...]
    units: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    results: Mapping[str, Numbers]

    def scores(self) -> "Scores":
        """Sum the answers over each unit.

        The mean over classes weighs each image by one over the number of its class's images. ``mean_recall`` is the
        mean of the recalls.
        """
        size = int(self.units.max()) + 1
        sums, weights = np.zeros((size, len(self.results))), np.zeros((size, len(self.results)))
        for column, (name, values) in enumerate(self.results.items()):
            counts = np.isfinite(values)
            units, heavy = self.units[counts], np.ones(int(counts.sum()))
            if name == PER_CLASS:
                labels = self.labels[counts]
                heavy = 1 / np.bincount(labels)[labels]
            sums[:, column] = np.bincount(units, heavy * values[counts], size)
            weights[:, column] = np.bincount(units, heavy, size)
        shares = {name: {name: 1.0} for name in self.results}
        recalls = [name for name in self.results if "_to_" in name]
        if recalls:
            shares[MEAN_RECALL] = dict.fromkeys(recalls, 1 / len(recalls))
        mixed = np.array([[share.get(name, 0.0) for share in shares.values()] for name in self.results])
        return Scores(tuple(shares), sums, weights, mixed)

    def ordered(self, order: Sequence[int], queries: Sequence[str]) -> "Answers":
        """The same answers in another order; units are numbered as they come.

        Args:
            order: the numbers of the queries.
            queries: what they are called, in the new order.
        """
        rows = np.asarray(order, np.int64)
        _, first, unit = np.unique(self.units[rows], return_index=True, return_inverse=True)
        units = np.argsort(np.argsort(first))[unit]
        results = {name: values[rows] for name, values in self.results.items()}
        return Answers(tuple(queries), units.astype(np.int64), self.labels[rows], results)


@dataclass(frozen=True)
class Scores:
    """Answers of a model by unit. Each result is a weighted sum of columns; a column is a ratio of sums over the units.

    Attributes:
        names: of the results.
        sums: float64 [units, columns], the sum of a unit's answers.
        weights: float64 [units, columns], the number of a unit's answers, or their weight.
        mixed: float64 [columns, results], the weights of the columns in each result.
    """

    names: tuple[str, ...]
    sums: Numbers
    weights: Numbers
    mixed: Numbers

    def values(self) -> Numbers:
        """The results, [results]."""
        found: Numbers = (self.sums.sum(0) / self.weights.sum(0)) @ self.mixed
        return found

    def shares(self, name: str) -> Numbers:
        """What each unit adds to a result, [units]; their sum is the result.

        Raises:
            DataError: there is no such result.
        """
        found: Numbers = (self.sums / self.weights.sum(0)) @ self.mixed[:, self._place(name)]
        return found

    def only(self, name: str) -> "Scores":
        """The same with one result alone; columns with equal weights are added up, as they have one denominator."""
        shares = self.mixed[:, self._place(name)]
        groups: dict[bytes, list[int]] = {}
        for column in np.flatnonzero(shares).tolist():
            groups.setdefault(self.weights[:, column].tobytes(), []).append(column)
        weights = np.stack([self.weights[:, columns[0]] for columns in groups.values()], 1)
        sums = np.stack([self.sums[:, columns] @ shares[columns] for columns in groups.values()], 1)
        return Scores((name,), sums, weights, np.ones((weights.shape[1], 1)))

    def _place(self, name: str) -> int:
        if name not in self.names:
            raise DataError(f"the answers hold no {name!r}, only {', '.join(self.names)}")
        return self.names.index(name)


def mean_of(scores: Sequence[Scores], name: str) -> Scores:
    """The mean of one result over several tasks, whose units are different ones."""
    alone = [each.only(name) for each in scores]
    sums, weights = np.zeros((2, sum(len(each.sums) for each in alone), sum(each.sums.shape[1] for each in alone)))
    row = column = 0
    for each in alone:
        place = slice(row, row + len(each.sums)), slice(column, column + each.sums.shape[1])
        sums[place], weights[place] = each.sums, each.weights
        row, column = place[0].stop, place[1].stop
    return Scores((name,), sums, weights, np.concatenate([each.mixed for each in alone]) / len(alone))


def of_images(ids: Sequence[str], labels: npt.ArrayLike, results: Mapping[str, npt.ArrayLike]) -> Answers:
    """Answers of a classification task: each image is a query and a unit.

    Args:
        ids: of the images.
        labels: their classes, int [images].
        results: by name whether each image counts as right, [images].
    """
    values = {name: np.asarray(each, np.float64) for name, each in results.items()}
    return Answers(tuple(ids), np.arange(len(ids)), np.asarray(labels, np.int64), values)


def of_retrieval(found: "Found", pairs: "Pairs", image_ids: Sequence[str], *, share: bool) -> Answers:
    """Answers of a retrieval task: each caption is a query, and each image where images are queries too.

    Where each caption has one image, the image is the unit of its captions and of itself. Where captions have several
    images, each query is a unit.

    Args:
        found: from ``retrieval.search``.
        pairs: which belong together.
        image_ids: of the images.
        share: whether an answer is the share of the right candidates that are found; otherwise 1 if any is.
    """
    own = len(pairs.text) == pairs.texts
    captions, images = pairs.texts, pairs.images if found.image_to_text is not None else 0
    units = pairs.image.numpy() if own else np.arange(captions)
    if images:
        units = np.concatenate([units, np.arange(images) + (0 if own else captions)])
    units = np.unique(units, return_inverse=True)[1].astype(np.int64)
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
    return Answers(queries, units, np.full(captions + images, _NO_LABEL), results)


def table(found: Mapping[str, Answers], *, task: str, digest: str, protocol: str) -> pa.Table:
    """Make the table of a task.

    Args:
        found: by the model's role its answers.
        task: the task's name.
        digest: of what was measured.
        protocol: the protocol's name.
    """
    parts = []
    for role, answers in found.items():
        columns: dict[str, pa.Array] = {
            "model": pa.array([role] * len(answers.queries)).dictionary_encode(),
            "query": pa.array(answers.queries, pa.string()),
            "unit": pa.array(answers.units, pa.int32()),
            "label": pa.array(answers.labels, pa.int32(), mask=answers.labels == _NO_LABEL),
        }
        for name, values in answers.results.items():
            columns[name] = pa.array(values, pa.float64(), mask=~np.isfinite(values))
        parts.append(pa.table(columns))
    whole = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    return whole.replace_schema_metadata({"task": task, "digest": digest, "protocol": protocol})


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
    return Answers(tuple(rows["query"].to_pylist()), rows["unit"].to_numpy().astype(np.int64), labels, values)


def metadata(stored: pa.Table) -> dict[str, str]:
    """What a table's answers are of: ``task``, ``digest``, ``protocol``."""
    known = stored.schema.metadata or {}
    return {name: known.get(name.encode(), b"").decode() for name in _METADATA}
