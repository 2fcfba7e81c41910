"""Make a shard of an index of what its pieces left: gather captions, join blocks, index them where they are many."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from wukong.serve import approximate, earlier, recall
from wukong.serve.approximate import Before, Candidates
from wukong.serve.earlier import PIECES
from wukong.serve.index import CAPTIONS, PICTURES, RECALL
from wukong.serve.query import search_forms
from wukong.serve.vectors import Vectors
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, Part, Stage

EXACT_BELOW = 200_000
"""A shard with fewer pictures, or captions, compares a query with all of them."""

ENCODED = pa.schema(
    [
        *(field for field in PICTURES if field.name not in ("captions", "by_key", "group")),
        ("captions", pa.list_(pa.string())),
        ("image_hash", pa.uint64()),
        ("earlier", pa.int64()),
    ]
)
"""What a piece leaves of its pictures; ``earlier`` is the number of a picture in earlier shards, or -1."""

COLLECTED = pa.schema([("caption", pa.string()), ("form", pa.string()), ("shard", pa.int64()), ("row", pa.int64())])
"""Distinct captions; ``shard`` and ``row`` are where the vector of each is in earlier shards, or -1."""

_COLLECTED = "captions"
_PICTURES_OF = "_captions/pictures.parquet"
_LEAST_EFFORT = {"probes": 64, "candidates": approximate.LEAST_CANDIDATES}
"""Of a search among many captions of few pictures, whose exact answers are not computed."""
_TEXTS = 65_536

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """A shard that is made.

    Attributes:
        stage: its output.
        pieces: names of its pieces, in their order.
        tars: digest of each tar, by its path.
        earlier: URIs of earlier shards that may have its pictures.
        width: numbers of a vector.
        token_wise: whether the model has a vector for each token.
        block: captions that are encoded at a time.
    """

    stage: Stage
    pieces: tuple[str, ...]
    tars: dict[str, str]
    earlier: tuple[str, ...]
    width: int
    token_wise: bool
    block: int

    def record(self, name: str) -> dict[str, Any]:
        """The record of a task that is complete."""
        record = self.stage.finished_task(name, lambda _: ())
        if record is None:
            raise ValueError(f"the task {name} of {self.stage.uri} is not complete")
        return record

    def of_pieces(self) -> Iterator[dict[str, Any]]:
        """The records of its pieces."""
        return (self.record(name) for name in self.pieces)


def collect(made: Made) -> int:
    """Join the tables of the pieces and find the distinct captions; return the number of their blocks."""
    if (record := made.stage.finished_task(_COLLECTED, _collected_files)) is not None:
        return int(record["blocks"])
    uris = [made.stage.path(f"{name}.parquet") for each in made.of_pieces() for name, _ in each["blocks"]]
    table = pa.concat_tables([ENCODED.empty_table(), *map(storage.read_table, uris)]).combine_chunks()
    named, distinct = _captions(table["captions"])
    every = pl.DataFrame({"picture": pl.Series(range(len(table)), dtype=pl.UInt32)})
    captions_of = every.join(named.group_by("picture").agg("caption"), on="picture", how="left", maintain_order="left")
    columns = {
        "captions": _lists(captions_of["caption"].fill_null([])),
        "by_key": pl.Series(table["key"]).arg_sort().cast(pl.Int32).to_arrow(),
        "group": _without_nulls(pl.Series(table["image_hash"]).reinterpret(signed=True).to_arrow()),
    }
    columns |= {name: _without_nulls(table[name]) for name in PICTURES.names if name not in columns}
    part = _write_arrow(made.stage, "pictures.arrow", pa.table([columns[name] for name in PICTURES.names], PICTURES))
    known = pl.DataFrame(schema={"form": pl.String, "shard": pl.Int64, "row": pl.Int64})
    if made.earlier:
        known = earlier.opened(made.earlier).caption_forms()
    distinct = distinct.join(known, on="form", how="left", maintain_order="left").with_columns(
        pl.col("shard", "row").fill_null(-1)
    )
    blocks = -(-len(distinct) // made.block)
    for number in range(blocks):
        block = distinct.select(COLLECTED.names).slice(number * made.block, made.block)
        storage.write_table(made.stage.path(f"{caption_block(number)}.parquet"), block.to_arrow().cast(COLLECTED))
    pictures_of = _lists(named.group_by("caption").agg("picture").sort("caption")["picture"])
    storage.write_table(made.stage.path(_PICTURES_OF), pa.table({"pictures": pictures_of}))
    made.stage.commit_task(_COLLECTED, {"blocks": blocks, "part": part.model_dump(mode="json")})
    return blocks


def _collected_files(record: Mapping[str, Any]) -> list[str]:
    blocks = [f"{caption_block(number)}.parquet" for number in range(record["blocks"])]
    return [record["part"]["path"], _PICTURES_OF, *blocks]


def _captions(column: pa.ChunkedArray) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Number the captions of pictures.

    Returns:
        The rows of each ``picture`` and of each ``caption`` that it has; and the distinct captions, ``caption`` and
        ``form``, in the order in which they come first.
    """
    shown = pl.DataFrame({"picture": pl.Series(range(len(column)), dtype=pl.UInt32), "caption": pl.Series(column)})
    shown = shown.explode("caption").drop_nulls("caption")
    # Slice by slice: all texts at once, as Python has them, take many GB.
    slices = (each["caption"].to_list() for each in shown.iter_slices(_TEXTS))
    forms = [pl.Series(each, dtype=pl.String) for each in ([], *map(search_forms, slices))]
    shown = shown.with_columns(form=pl.concat(forms)).filter(pl.col("form") != "")
    distinct = shown.unique("form", keep="first", maintain_order=True).select("caption", "form")
    rows = distinct.select("form").with_row_index("caption")
    named = shown.select("picture", "form").join(rows, on="form", maintain_order="left").select("picture", "caption")
    return named.unique(maintain_order=True), distinct


def _lists(column: pl.Series) -> pa.Array:
    return column.cast(pl.List(pl.Int32)).to_arrow().cast(pa.list_(pa.int32()))


def _without_nulls(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers of which some are not known get -1, so that they can be read where they are mapped."""
    some = 0 < column.null_count < len(column)
    return column.fill_null(-1) if some and pa.types.is_integer(column.type) else column


def finish(made: Made) -> Manifest:
    """Join the blocks of a shard, index them where they are many, and write its manifest."""
    if (there := made.stage.finished()) is not None:
        return there
    stage, collected = made.stage, made.record(_COLLECTED)
    pieces = list(made.of_pieces())
    captions = [made.record(f"captions-{number:05d}") for number in range(collected["blocks"])]
    parts = [Part.model_validate(part) for each in [*pieces, *captions] for part in each["tokens"]]
    parts.append(Part.model_validate(collected["part"]))
    tables = [storage.read_table(stage.path(f"{caption_block(number)}.parquet")) for number in range(len(captions))]
    table = pa.concat_tables([COLLECTED.empty_table(), *tables])
    pictures_of = storage.read_table(stage.path(_PICTURES_OF))["pictures"]
    counted = pa.array([length for each in captions for length in each["counted"]], pa.int32())
    columns = [table["caption"], table["form"], counted, pictures_of]
    parts.append(_write_arrow(stage, "captions.arrow", pa.table(columns, CAPTIONS)))
    blocks = {
        "pictures": [(name, rows) for each in pieces for name, rows in each["blocks"]],
        "captions": [(caption_block(number), rows) for number, rows in enumerate(map(len, tables))],
    }
    metrics: dict[str, float] = {}
    counts = {"left_out": sum(each["left_out"] for each in pieces)}
    with tempfile.TemporaryDirectory() as scratch:
        vectors = {}
        for kind, named in blocks.items():
            counts[kind] = sum(rows for _, rows in named)
            part = _join(stage, f"{kind}.f16", [f"{name}.f16" for name, _ in named], counts[kind])
            parts.append(part)
            vectors[kind] = Vectors(_local(stage.path(part.path), Path(scratch)), counts[kind], made.width)
        if counts["pictures"] >= EXACT_BELOW:
            before = None
            if made.earlier:
                tables = [
                    storage.read_table(stage.path(f"{name}.parquet"), ["earlier"]) for name, _ in blocks["pictures"]
                ]
                before = earlier.opened(made.earlier).candidates(pa.concat_tables(tables)["earlier"].to_numpy())
            parts.append(_index(stage, "pictures", vectors["pictures"], before))
            asked, part = _ask(stage, vectors, Path(scratch))
            parts.append(part)
            metrics |= asked
        if counts["captions"] >= EXACT_BELOW:
            parts.append(_index(stage, "captions", vectors["captions"], None))
            for what, least in _LEAST_EFFORT.items():
                metrics[f"{what}/captions"] = metrics.get(f"{what}/pictures", least)
    storage.write_json(stage.path(PIECES), made.tars)
    parts.append(stage.describe(PIECES))
    finished = stage.commit(parts, counts=counts, metrics=metrics)
    manifest.clean(stage.uri)
    return finished


def _index(stage: Stage, kind: str, vectors: Vectors, before: Before | None) -> Part:
    with stage.output(f"{kind}.codes.faiss") as output:
        approximate.build(vectors, output.write, before)
    return output.part(len(vectors))


def _ask(stage: Stage, vectors: Mapping[str, Vectors], scratch: Path) -> tuple[dict[str, float], Part]:
    """Find the exact answers to questions, and by them how much a search must look through."""
    asked = recall.questions(len(vectors["captions"]))
    queries = vectors["captions"][torch.from_numpy(asked.astype(np.int64))]
    exact = recall.answers(vectors["pictures"], queries)
    candidates = Candidates(_local(stage.path("pictures.codes.faiss"), scratch), len(vectors["pictures"]))
    share = recall.calibrate(vectors["pictures"], candidates, queries, exact)
    log.info(
        "%s: %d lists are looked through for %d candidates, which finds %.2f %% of the exact answers",
        *(stage.uri, candidates.probes, candidates.count, 100 * share),
    )
    answers = pa.FixedSizeListArray.from_arrays(pa.array(exact.ravel()), recall.BEST)
    part = _write_arrow(stage, RECALL, pa.table({"caption": pa.array(asked), "pictures": answers}))
    effort = {"probes/pictures": candidates.probes, "candidates/pictures": candidates.count}
    return {**effort, "recall": round(share, 4)}, part


def _join(stage: Stage, path: str, blocks: Iterable[str], rows: int) -> Part:
    with stage.output(path) as output:
        for block in blocks:
            output.write(storage.read_bytes(stage.path(block)))
    return output.part(rows)


def _write_arrow(stage: Stage, path: str, table: pa.Table) -> Part:
    """Write a table in one batch, so that its numbers can be read where they are mapped."""
    with stage.output(path) as output, pa.ipc.new_file(pa.PythonFile(output, mode="w"), table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return output.part(len(table))


def _local(uri: str, scratch: Path) -> Path:
    """A file on this machine; one in an object store is copied to a folder."""
    if urlsplit(uri).scheme == "file":
        return Path(unquote(urlsplit(uri).path))
    return storage.download(uri, scratch, uri.rpartition("/")[2])


def caption_block(number: int) -> str:
    """Return the path, without a suffix, of a block of captions."""
    return f"_captions/{number:05d}"
