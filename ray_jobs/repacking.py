"""The repacking of kept pairs into shards as Ray tasks: which task reads what, and how the pairs of a bucket meet.

Each tar of the crawl is read once, and its kept pairs are written into files of buckets, pictures and all
(``wukong/curate/bucket_files.py``). A bucket is a range of the shuffled order that fits into memory. Then the buckets
of each piece of the order become shards. Where there are so many buckets that the reader of one would read too little
of each file, the pairs are divided in several rounds.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import ray

from ray_jobs.exchange import run_all
from wukong.curate import bucket_files, repack
from wukong.curate.bucket_files import Buckets, Division, File, Segments, Span
from wukong.errors import StorageError
from wukong.store import damage, storage
from wukong.store.manifest import Stage

Histogram = npt.NDArray[np.int64]

_MIN_PIECES = 64
_MAX_ROWS = 100_000
_BINS = 1024
_BIN_ROWS = 8192
_TABLES = 64
_MIN_SOURCES = 8


@dataclass(frozen=True)
class Tar:
    """A tar of the crawl, and where its kept pairs are.

    Attributes:
        part: number of its part.
        uri: where it is.
        bytes: its size.
        placed: URI of a table with its kept pairs: ``part``, ``position`` in the shuffled order, ``split`` and the rest
            of the columns of ``PAIRS``. The tars of a table follow one another.
        sha256: its digest; empty where nothing says it.
    """

    part: int
    uri: str
    bytes: int
    placed: str
    sha256: str = ""


@dataclass(frozen=True)
class Piece:
    """A run of buckets of a split's shuffled order, and the shards that it becomes."""

    number: int
    split: str
    buckets: range
    rows: int
    first_shard: int
    shards: int


@dataclass
class _Source:
    """Tars that one task reads, by the table that holds their kept pairs."""

    bytes: int = 0
    tars: dict[str, dict[int, Tar]] = field(default_factory=dict)


def planned(tars: Sequence[Tar], kept: int, shard_size: int, pair_bytes: float) -> tuple[list[Piece], Buckets]:
    """Cut the shuffled order of each split into pieces and buckets.

    Args:
        tars: all of the crawl's.
        kept: number of pairs that are in a split.
        shard_size: pairs of a shard.
        pair_bytes: mean bytes of a pair.
    """
    bins = _BINS  # more where there are more pairs, so that pieces can be equal
    while bins * _BIN_ROWS < kept:
        bins *= 2
    tables = list(dict.fromkeys(tar.placed for tar in tars))
    histograms: dict[str, Histogram] = {}
    for each in run_all(_histograms, [(tables[n : n + _TABLES], bins) for n in range(0, len(tables), _TABLES)]):
        for name, counts in each.items():
            histograms[name] = histograms.get(name, 0) + counts
    return _pieces(histograms, shard_size, pair_bytes)


def _histograms(tables: Sequence[str], bins: int) -> dict[str, Histogram]:
    """Count the pairs of each split in bins of the shuffled order."""
    histograms: dict[str, Histogram] = {}
    for uri in tables:
        pairs = _read(uri, ["split", "position"])
        for (name,), rows in pairs.group_by("split"):
            numbers = (rows["position"] // (repack.POSITIONS // bins)).to_numpy()
            histograms[str(name)] = histograms.get(str(name), 0) + np.bincount(numbers, minlength=bins)
    return histograms


def _pieces(histograms: Mapping[str, Histogram], shard_size: int, pair_bytes: float) -> tuple[list[Piece], Buckets]:
    pieces: list[Piece] = []
    starts: dict[str, npt.NDArray[np.int64]] = {}
    buckets = 0
    for name, histogram in sorted(histograms.items()):
        rows = int(histogram.sum())
        shards = -(-rows // shard_size)
        first = 0
        own: list[int] = []
        for low, high in repack.ranges(list(histogram), max(min(shards, _MIN_PIECES), -(-rows // _MAX_ROWS))):
            inside = int(histogram[low:high].sum())
            count = max(1, round(inside * shards / rows))
            start, end = (edge * (repack.POSITIONS // len(histogram)) for edge in (low, high))
            parted = max(1, -(-int(inside * pair_bytes) // bucket_files.RUN_BYTES))
            pieces.append(Piece(len(pieces), name, range(buckets, buckets + parted), inside, first, count))
            own += [start + (end - start) * number // parted for number in range(parted)]
            buckets += parted
            first += count
        starts[name] = np.array(own)
    return pieces, Buckets(starts)


def room(tars: Sequence[Tar], buckets: Buckets) -> int:
    """Bytes that a disk needs for the files of ``scattered``, and for the shards, which may go to the same disk."""
    rounds = len(bucket_files.rounds(buckets.count, bucket_files.FAN_ON_DISK))
    return (rounds + 1) * sum(tar.bytes for tar in tars)


def scattered(place: str, tars: Sequence[Tar], buckets: Buckets) -> list[Span]:
    """Bring the pairs of each bucket together, pictures and all.

    Args:
        place: prefix of the files (``ray_jobs/waiting_place.py``). What a killed run has left there is used.
        tars: all of the crawl's.
        buckets: as ``planned`` returned them.
    """
    sources = _sources(tars)
    folder = storage.join(place, f"{len(sources)}-{buckets.count}")
    fan = bucket_files.FAN_ON_DISK if place.startswith("file://") else bucket_files.FAN
    widths = bucket_files.rounds(buckets.count, fan)
    shared = ray.put(buckets)
    segments = bucket_files.first_round(buckets.count, widths[0])
    places = [storage.join(folder, f"0-{number:06d}") for number in range(len(sources))]
    most = bucket_files.RUN_BYTES
    files = run_all(
        _scatter, [(uri, each.tars, shared, segments, most) for uri, each in zip(places, sources, strict=True)]
    )
    spans = [Span(segments, files)]
    for depth, (_, width) in enumerate(pairwise(widths), 1):
        groups = [
            divisions for span in spans for divisions in bucket_files.next_round(span, buckets.count, width, most)
        ]
        numbered = enumerate(division for divisions in groups for division in divisions)
        files = run_all(_divide, [(storage.join(folder, f"{depth}-{n:06d}"), each, shared) for n, each in numbered])
        made = iter(files)
        spans = [Span(divisions[0].segments, [next(made) for _ in divisions]) for divisions in groups]
    return spans


def _sources(tars: Sequence[Tar]) -> list[_Source]:
    """Divide the tars among tasks: at least some, and as much for each as fits into memory."""
    limit = min(bucket_files.RUN_BYTES, sum(tar.bytes for tar in tars) // _MIN_SOURCES)
    sources: list[_Source] = []
    for tar in tars:
        if not sources or sources[-1].bytes + tar.bytes > limit:
            sources.append(_Source())
        sources[-1].bytes += tar.bytes
        sources[-1].tars.setdefault(tar.placed, {})[tar.part] = tar
    return sources


def _scatter(
    uri: str, tars: Mapping[str, Mapping[int, Tar]], buckets: Buckets, segments: Segments, run_bytes: int
) -> File:
    if (file := bucket_files.complete(uri, segments)) is not None:
        return file
    parts = (
        (by_part[int(part)].uri, by_part[int(part)].sha256, pairs)
        for placed, by_part in tars.items()
        for (part,), pairs in _placed(placed, min(by_part), max(by_part))
        .partition_by("part", as_dict=True, include_key=False)
        .items()
    )
    return bucket_files.write(uri, repack.with_pictures(parts, run_bytes), buckets, segments)


def _placed(uri: str, first: int, last: int) -> pl.DataFrame:
    return _read(uri).filter(pl.col("part").is_between(first, last))


def _read(uri: str, columns: list[str] | None = None) -> pl.DataFrame:
    data = storage.read_bytes(uri)  # as a whole, in one request: Parquet's readers make up to ten
    try:
        return pl.read_parquet(data, columns=columns)
    except pl.exceptions.PolarsError as error:
        raise StorageError(f"{uri} is not a readable Parquet file ({error}); {damage.remedy(uri)}") from error


def _divide(uri: str, division: Division, buckets: Buckets) -> File:
    if (file := bucket_files.complete(uri, division.segments)) is not None:
        return file
    return bucket_files.write(uri, bucket_files.read(division.places), buckets, division.segments)


def pack(stage: Stage, piece: Piece, spans: Sequence[Span]) -> dict[str, Any]:
    """Write the shards of a piece, a bucket at a time.

    Returns:
        Descriptions of the shards' files, under ``parts``, and the places of the shards, under ``bounds``.
    """
    firsts = [span.segments.first for span in spans]
    tables = (
        pairs.sort("position", "key")
        for bucket in piece.buckets
        for pairs in bucket_files.read(spans[bisect_right(firsts, bucket) - 1].places(bucket))
    )
    sizes = enumerate(repack.balanced(piece.rows, piece.shards), piece.first_shard)
    names = [(f"{piece.split}/{shard:05d}", size) for shard, size in sizes]
    parts, bounds = repack.write_shards(stage, names, tables)
    return {"parts": [part.model_dump() for part in parts], "bounds": bounds}
