"""A finished evaluation as its stage left it: the document of its results and the answers that they were made from.

Units of earlier versions were too small (``wukong.evaluate.answers.units_of``), so differences looked surer than they
were. What such a version stored is scored anew when it is read: the units are made from the pairs that it was measured
on. Where that cannot be done, its answers are left out and its intervals are not used.
"""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from wukong.errors import DataError, StorageError, reading
from wukong.evaluate import answers
from wukong.evaluate.results import DOCUMENT, FORMAT, HOLDOUT
from wukong.runtime import environment
from wukong.runtime.language import message
from wukong.store import damage, manifest, storage
from wukong.store.patience import AwayError

if TYPE_CHECKING:
    import pyarrow as pa

    from wukong.evaluate.answers import Scores
    from wukong.evaluate.data_set import ClassificationData, RetrievalData
    from wukong.store.manifest import Manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation left.

    Attributes:
        document: that of ``wukong.evaluate.results``; empty where nothing was measured.
        tables: the table of answers of each task that has one, by its name.
        uri: the manifest's URI; empty where the evaluation was not a stage.
        role: the model that the evaluation stands for, where the document has two.
        outdated: the tasks whose intervals have the units of an earlier version, and could not be made anew.
    """

    document: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, "pa.Table"] = field(default_factory=dict)
    uri: str = ""
    role: str = "finetuned"
    outdated: frozenset[str] = frozenset()

    def tasks(self, role: str = "") -> dict[str, Mapping[str, Any]]:
        """The entries of a model in the document, by task; by default of the one that the evaluation stands for."""
        wanted = role or self.role
        return {entry["task"]: entry for entry in self.document.get("tasks", ()) if entry["model"] == wanted}

    def scores(self, task: Mapping[str, Any]) -> "Scores | None":
        """Return a model's answers on a task, or None if none are stored.

        Args:
            task: one of ``tasks``.

        Raises:
            DataError: the answers are of other data than the results.
        """
        if (stored := self.tables.get(task["task"])) is None:
            return None
        about = answers.metadata(stored)
        if (about["digest"], about["protocol"]) != (task["digest"], task["protocol"]):
            raise DataError(
                f"{self.uri}: the answers on {task['task']} are not of the data or the protocol of its results; delete "
                "the stage's folder and evaluate again"
            )
        return answers.read(stored, task["model"]).scores()


def read(uri: str, tasks: Sequence[str] | None = None) -> Evaluation:
    """Read an evaluation by its manifest's URI.

    Args:
        uri: URI of the manifest, or its stage's prefix.
        tasks: those whose answers are read; None for all.

    Raises:
        DataError: there is no such manifest.
        StorageError: the store cannot be read.
    """
    environment.use_for(uri)
    evaluated = manifest.load(uri)
    if not evaluated.parts.has(DOCUMENT):
        return Evaluation(uri=uri)
    tables = {}
    for part in evaluated.parts.below(f"{answers.FOLDER}/", ".parquet"):
        name, table_uri = PurePosixPath(part.path).stem, storage.join(evaluated.uri, part.path)
        if tasks is None or name in tasks:
            tables[name] = parse(storage.read_bytes(table_uri, part.sha256), table_uri)
    document = storage.read_json(storage.join(evaluated.uri, DOCUMENT), evaluated.parts.sha256(DOCUMENT))
    return current(Evaluation(document, tables, uri), evaluated)


def current(stored: Evaluation, evaluated: "Manifest | None" = None) -> Evaluation:
    """Score the answers of an earlier version anew, with the units of this one; others stay as they are.

    Args:
        stored: the evaluation that was read.
        evaluated: the evaluation's manifest, which leads to the pairs; None where there is none.
    """
    tables, anew, outdated = dict(stored.tables), set[str](), set[str]()
    for task in {task["task"]: task for task in stored.document.get("tasks", ())}.values():
        name, retrieves, table = task["task"], task["kind"] == "retrieval", stored.tables.get(task["task"])
        if table is None:
            if retrieves and stored.document["format"] < FORMAT:
                outdated.add(name)
        elif not answers.has_right_units(table) and (retrieves or task["split"] == HOLDOUT):
            del tables[name]
            scored = _scored_anew(table, name, evaluated) if evaluated and task["split"] == HOLDOUT else None
            if scored is not None:
                tables[name] = scored
                anew |= {name} if retrieves else set()
            elif retrieves:
                outdated.add(name)
    if outdated:
        log.warning(
            "%s: %s measured by an earlier version, whose intervals were too narrow, and cannot be scored anew: "
            "evaluate again",
            stored.uri or "an evaluation",
            f"{', '.join(sorted(outdated))} {'were' if len(outdated) > 1 else 'was'}",
        )
    entries = [
        {**task, "results": _intervals(tables[task["task"]], task["model"])} if task["task"] in anew else task
        for task in stored.document.get("tasks", ())
    ]
    document = {**stored.document, "tasks": entries} if anew else stored.document
    return replace(stored, document=document, tables=tables, outdated=frozenset(outdated))


def _intervals(table: "pa.Table", role: str) -> dict[str, Any]:
    return {name: asdict(each) for name, each in answers.read(table, role).intervals().items()}


def _scored_anew(table: "pa.Table", name: str, evaluated: "Manifest") -> "pa.Table | None":
    """Return answers on a hold-out with the units of this version; None if its pairs cannot be read any more."""
    if importlib.util.find_spec("torch") is None:  # an image without it has the model evaluated anew
        return None
    from pydantic import ValidationError

    from wukong.evaluate import holdouts

    try:
        data = holdouts.of_evaluation(evaluated, name)
    except AwayError:
        raise
    except (DataError, StorageError, ValidationError, KeyError) as error:
        log.warning("%s: the answers on %s cannot be scored anew: %s", evaluated.uri, name, error)
        return None
    return answers.with_units(table, *_units(data)) if data is not None else None


def _units(
    data: "ClassificationData | RetrievalData",
) -> "tuple[Sequence[str], answers.Integers, answers.Integers]":
    """Return the queries of a task, their units and their identities."""
    from wukong.evaluate.data_set import ClassificationData

    if isinstance(data, ClassificationData):
        return data.ids, *answers.units_of((), data.pictures, (), ())
    texts = [caption.text for caption in data.captions]
    text = [number for number, caption in enumerate(data.captions) for _ in caption.images]
    image = [image for caption in data.captions for image in caption.images]
    return [*map(str, range(len(texts))), *data.image_ids], *answers.units_of(texts, data.pictures, text, image)


def parse(data: bytes, name: str) -> "pa.Table":
    """Read answers from a Parquet file's bytes: what ``storage.read_table`` can do with large ones takes longer.

    Args:
        data: the file.
        name: what a message calls it.

    Raises:
        StorageError: it is no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(message(f"{name} is no Parquet file"), damage.remedy(name), StorageError):
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
