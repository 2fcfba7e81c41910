"""A finished evaluation as its stage left it: the document of its results and the answers that they were made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from wukong.errors import DataError, StorageError, reading
from wukong.evaluate import answers
from wukong.evaluate.results import DOCUMENT, FORMAT, role_of
from wukong.runtime import environment
from wukong.store import damage, manifest, storage

if TYPE_CHECKING:
    import pyarrow as pa

    from wukong.evaluate.answers import Scores


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation left.

    Attributes:
        document: that of ``wukong.evaluate.results``; empty where nothing was measured.
        tables: the table of answers of each task that has one, by its name.
        uri: the manifest's URI; empty where the evaluation was not a stage.
        role: the model that the evaluation stands for, where the document has two.
    """

    document: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, "pa.Table"] = field(default_factory=dict)
    uri: str = ""
    role: str = "finetuned"

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
        DataError: there is no such manifest, or the evaluation has another format.
        StorageError: the store cannot be read.
    """
    environment.use_for(uri)
    evaluated = manifest.load(uri)
    if not evaluated.parts.has(DOCUMENT):
        return Evaluation(uri=uri)
    tables = {}
    for path in evaluated.parts.below(f"{answers.FOLDER}/", ".parquet").paths:
        if tasks is None or PurePosixPath(path).stem in tasks:
            table_uri, sha256 = evaluated.file(path)
            tables[PurePosixPath(path).stem] = parse(storage.read_bytes(table_uri, sha256), table_uri)
    document = storage.read_json(*evaluated.file(DOCUMENT))
    return Evaluation(check(document, uri), tables, uri, role_of(document))


def check(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the document of an evaluation if this version reads its format.

    Args:
        document: that of ``wukong.evaluate.results``.
        name: what a message calls it.

    Raises:
        DataError: it has another format.
    """
    damage.refuse_other_format(document, FORMAT, name)
    return document


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

    with reading(f"{name} is no Parquet file", damage.remedy(name), StorageError):
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
