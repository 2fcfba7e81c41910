"""The files of a stage's output, as columns of a table: a crawl of a billion URLs has more than a million of them."""

import json
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
"""Columns of a table of parts."""

_BLOCK = 2_048
"""Rows of a block. Small ones leave little memory unused between them."""

_text = json.JSONEncoder(ensure_ascii=False).encode


class Part(BaseModel):
    """One file of a stage's output: path below the stage's URI, rows (0 where it has none), bytes, SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    rows: int
    bytes: int
    sha256: str


class Parts(Sequence[Part]):
    """A sequence of ``Part``, which are made when they are asked for.

    Args:
        table: their columns (``SCHEMA``).
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, parts: Iterable[Part]) -> "Parts":
        """Return the columns of parts, in their order; an iterator is read block by block."""
        if isinstance(parts, Parts):
            return parts
        each, blocks = iter(parts), []
        while block := list(islice(each, _BLOCK)):
            # Through JSON: what makes columns of lists imports pandas, which takes most of a second.
            lines = "\n".join(part.model_dump_json() for part in block).encode()
            at_once = pa_json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
            made = pa_json.read_json(pa.py_buffer(lines), at_once, pa_json.ParseOptions(explicit_schema=SCHEMA))
            blocks.append(pa.table(made.columns, schema=SCHEMA))
        return cls(pa.concat_tables(blocks) if blocks else pa.Table.from_batches([], SCHEMA))

    @classmethod
    def in_order(cls, parts: Iterable[Part]) -> "Parts":
        """Return the columns of parts, in the order of their paths; of an iterator one column is in memory twice."""
        columns = cls.of(parts).table.columns
        path = columns[0]
        if pc.all(pc.less_equal(path[:-1], path[1:])).as_py() in (True, None):
            return cls(pa.table(columns, schema=SCHEMA))
        order = pc.sort_indices(path)
        del path
        for number in reversed(range(len(columns))):  # the largest first
            columns[number] = columns[number].take(order)
        return cls(pa.table(columns, schema=SCHEMA))

    @property
    def rows(self) -> int:
        """Number of rows of all parts."""
        return pc.sum(self.table["rows"]).as_py() or 0

    @property
    def bytes(self) -> int:
        """Number of bytes of all parts."""
        return pc.sum(self.table["bytes"]).as_py() or 0

    @property
    def paths(self) -> list[str]:
        """Their paths."""
        return list(self.table["path"].to_pylist())

    def below(self, prefix: str = "", suffix: str = "") -> "Parts":
        """Return those whose path starts with ``prefix`` and ends with ``suffix``."""
        path = self.table["path"]
        return Parts(self.table.filter(pc.and_(pc.starts_with(path, prefix), pc.ends_with(path, suffix))))

    def named(self, paths: Collection[str]) -> "Parts":
        """Return those with one of some paths."""
        return Parts(self.table.filter(pc.is_in(self.table["path"], value_set=pa.array(list(paths), pa.string()))))

    def has(self, path: str) -> bool:
        """Return whether one of them has this path."""
        return path in self.below(path).paths

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of the one with a path, of parts in the order of their paths; empty if there is none."""
        paths = self.table["path"]
        row = bisect_left(range(len(paths)), path, key=lambda row: paths[row].as_py())
        found = row < len(paths) and paths[row].as_py() == path
        return str(self.table["sha256"][row].as_py()) if found else ""

    def replaced(self, new: Mapping[str, Part], gone: Collection[str] = ()) -> "Parts":
        """Return them with others in place of those of the same path, or beside them, in the order of their paths.

        Args:
            new: the others, by path.
            gone: paths of those that are left out.
        """
        changed = pa.array([*new, *gone], pa.string())
        left = self.table.filter(pc.invert(pc.is_in(self.table["path"], value_set=changed)))
        others = Parts.of(part for path, part in new.items() if path not in gone)
        return Parts.in_order(Parts(pa.concat_tables([left, others.table])))

    def json_blocks(self) -> Iterator[str]:
        """Iterate over their canonical JSON, of some at a time: objects with a comma between two."""
        for block in self.table.to_batches(max_chunksize=_BLOCK):
            columns = [block[name].to_pylist() for name in ("bytes", "path", "rows", "sha256")]
            yield ",".join(
                f'{{"bytes":{size},"path":{_text(path)},"rows":{rows},"sha256":{_text(sha256)}}}'
                for size, path, rows, sha256 in zip(*columns, strict=True)
            )

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Part]:
        for block in self.table.to_batches(max_chunksize=_BLOCK):
            for path, rows, size, sha256 in zip(*(column.to_pylist() for column in block.columns), strict=True):
                yield Part(path=path, rows=rows, bytes=size, sha256=sha256)

    @overload
    def __getitem__(self, place: int) -> Part: ...
    @overload
    def __getitem__(self, place: slice) -> "Parts": ...
    def __getitem__(self, place: int | slice) -> "Part | Parts":
        if isinstance(place, slice):
            first, end, step = place.indices(len(self))
            if step == 1:
                return Parts(self.table.slice(first, max(0, end - first)))
            return Parts(self.table.take(pa.array(range(first, end, step), pa.int64())))
        row = range(len(self))[place]  # raises IndexError, and counts from the end
        return Part(**self.table.slice(row, 1).to_pylist()[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parts) and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} parts of {self.rows} rows and {self.bytes} bytes>"

    def __reduce__(self) -> tuple[Any, ...]:
        sink = pa.BufferOutputStream()  # the rows of a slice, not the table that it is cut from
        with pa.ipc.new_stream(sink, SCHEMA) as stream:
            stream.write_table(self.table)
        return _unpickled, (sink.getvalue().to_pybytes(),)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Pydantic takes these, or a sequence of parts, and writes a list of objects."""
        return core_schema.no_info_wrap_validator_function(
            lambda value, validate: value if isinstance(value, Parts) else cls.of(validate(value)),
            handler(tuple[Part, ...]),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda parts: parts.table.to_pylist()),
        )


def _unpickled(data: bytes) -> Parts:
    return Parts(pa.ipc.open_stream(data).read_all())
