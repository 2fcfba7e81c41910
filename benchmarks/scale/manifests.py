"""Manifests of very many parts, and takedown and release from them; each step in a process of its own.

``python -m benchmarks.scale.manifests --parts 1660000 --rows 1000000`` prints one line of JSON a step: seconds; by how
much the peak of memory grew (MiB) over a process that has imported the library, and the peak of its worker processes;
requests to the store (functions of ``wukong.store.storage`` that were called in the process itself).

Everything is made up. A manifest lists a tar and a table for each part of a crawl, with digests that do not compress.
The takedown is of ``--keys`` URLs from a crawl and a filtered set with ``--parts`` files each: of the parts only those
exist that hold a listed pair, so one that is read although no index names it ends the benchmark. The release writes
``--rows`` pairs from shards of 1,000.
"""

import argparse
import hashlib
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from wukong.crawl import previous
from wukong.crawl.found import ROW_GROUP
from wukong.crawl.optout import OptOut
from wukong.crawl.url import key_of
from wukong.curate import lookup, repack
from wukong.data.shards import END, packed
from wukong.publish import parallel, release, takedown, takedown_plan
from wukong.store import manifest, storage
from wukong.store.manifest import Part, Stage

COUNTED = (
    *("read_with", "read_bytes", "exists", "list_names", "list_files"),
    *("open_input", "open_output", "write_if", "delete"),
)
A_SHARD = 1000
A_PLAN = 500_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, nargs="+", default=[10_000, 100_000, 1_660_000])
    parser.add_argument("--rows", type=int, default=0, help="pairs of the takedown and of the release; 0 for neither")
    parser.add_argument("--keys", type=int, default=10_000, help="pairs that are taken down")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for parts in options.parts:
            root = storage.from_path(Path(folder, str(parts)))
            for step in (build, commit, load, digest):
                show(step, {"parts": parts}, root, parts)
        if options.rows:
            root = storage.from_path(Path(folder, "takedown"))
            size = {"parts": max(options.parts), "rows": options.rows, "keys": options.keys}
            show(make_experiment, size, root, max(options.parts), options.rows, options.keys)
            show(plan_takedown, size, root)
            show(carry_out_takedown, size, root)
            root = storage.from_path(Path(folder, "release"))
            show(make_shards, {"rows": options.rows}, root, options.rows)
            for many in (False, True):
                show(release_files, {"rows": options.rows, "processes": many}, root, options.rows, many)


def records(number: int) -> Iterator[dict[str, Any]]:
    """What the tasks of a crawl say of their files."""
    for part in range(number // 2):
        sha256 = hashlib.sha256(b"%d" % part).hexdigest()
        for end in ("parquet", "tar"):
            yield {
                "path": f"parts/{part:05d}.{end}",
                "rows": 1000,
                "bytes": 10**8 + part,
                "sha256": sha256[:: 1 if end == "tar" else -1],
            }


def build(_root: str, number: int) -> None:
    """Only the parts, one after the other."""
    for record in records(number):
        Part.model_validate(record)


def commit(root: str, number: int) -> None:
    """Build and commit them."""
    Stage(root, "crawl", {}).commit(Part.model_validate(record) for record in records(number))


def load(root: str, number: int) -> None:
    """Load the manifest, and take what readers take: the number of rows of the tables."""
    found = manifest.load(Stage(root, "crawl", {}).uri)
    if found.parts.below("parts/", ".parquet").rows != 1000 * (number // 2):
        raise AssertionError("other parts")


def digest(root: str, _number: int) -> str:
    """The digest of a manifest, its loading included."""
    return manifest.load(Stage(root, "crawl", {}).uri).digest


def make_experiment(root: str, files: int, rows: int, keys: int) -> None:
    """Write a crawl and a filtered set of many files each; those exist that hold listed pairs."""
    generator = np.random.default_rng(0)
    listed = [f"http://host{n % 1000}.example.com/gone/{n}.jpg" for n in range(keys)]
    urls = [*listed, *(f"http://host{n % 1000}.example.com/{n}.jpg" for n in range(keys, rows))]
    other = generator.bytes(10 * (rows - keys)).hex()
    hashes = [*map(key_of, listed), *(other[20 * n : 20 * n + 20] for n in range(rows - keys))]
    pairs = pl.DataFrame({"key": hashes, "url": urls}).with_row_index("number").sort("key")
    pairs = pairs.with_columns(
        caption=pl.format("第{}张", "number"), sha256=pl.lit("0" * 64), gone=pl.col("number") < keys
    )
    pairs = pairs.drop("number").with_columns(status=pl.lit("success"))
    crawl, each = Stage(root, "crawl", {}), -(-rows // (files // 2))
    parts, bounds = [], []
    for number, some in enumerate(pairs.iter_slices(each)):
        parts += write_part(crawl, f"parts/{number:05d}", some)
        bounds.append((f"parts/{number:05d}", some["key"][0], some["key"][-1]))
    index = dict(zip(previous.INDEX_SCHEMA.names, zip(*bounds, strict=True), strict=True))
    storage.write_table(crawl.path(previous.INDEX), pa.table(index, schema=previous.INDEX_SCHEMA))
    for folder, size in ("plan", max(each, 1000)), ("search", ROW_GROUP):  # as of parts of 1,000 URLs
        for number, some in enumerate(pairs.select("key", "url", "caption").iter_slices(A_PLAN)):
            target = Path(storage.filesystem(crawl.path(f"{folder}/{number:05d}.parquet"))[1])
            target.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(some.to_arrow(), target, row_group_size=size, compression="zstd")
    counts = {"urls": rows, "success": rows, "results": rows}
    crawled = crawl.commit([*parts, crawl.describe(previous.INDEX)], counts=counts)
    shuffled = pairs.with_columns(position=repack.positions(pairs["key"], 0)).sort("position").drop("status")
    filtered, parts, places = Stage(root, "filter", {}, [crawled]), [], []
    for number, some in enumerate(shuffled.iter_slices(each)):
        parts += write_part(filtered, f"train/{number:05d}", some.drop("position"))
        places.append((f"train/{number:05d}.parquet", int(some["position"][0]), int(some["position"][-1])))
    lookup.write(filtered.uri, places, 0)
    filtered.commit(parts, counts={"pairs": rows, "kept": rows, "train": rows})
    storage.write_bytes(f"{root}-list.txt", "\n".join(listed).encode())


def write_part(stage: Stage, name: str, rows: pl.DataFrame) -> list[Part]:
    """Write a table and a tar, if a listed pair is in them; tell of both."""
    if rows["gone"].any():
        table = Path(storage.filesystem(stage.path(f"{name}.parquet"))[1])
        table.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows.drop("gone").to_arrow(), table, compression="zstd")
        table.with_suffix(".tar").write_bytes(b"".join(packed(f"{key}.jpg", bytes(100)) for key in rows["key"]) + END)
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    return [Part(path=f"{name}.{end}", rows=len(rows), bytes=10**6, sha256=sha256) for end in ("parquet", "tar")]


def plan_takedown(root: str) -> None:
    """Plan the takedown, and store the plan as its beginning."""
    planned = takedown_plan.plan(root, f"{root}-list.txt", "made up", datetime.now(UTC))
    storage.write_json(f"{root}/takedowns/pending.json", planned.model_dump(mode="json"))


def carry_out_takedown(root: str) -> None:
    """Carry the takedown out."""
    begun = takedown.pending(root)
    if begun is None:
        raise AssertionError("nothing was planned")
    takedown.carry_out(root, begun)


def make_shards(root: str, rows: int) -> None:
    """Write the tables of a filtered set."""
    stage, parts = Stage(root, "filter", {}), []
    for number, first in enumerate(range(0, rows, A_SHARD)):
        names = range(first, min(rows, first + A_SHARD))
        columns = {
            "key": [f"{n:020x}" for n in names],
            "url": [f"http://host{n % 1000}.example.com/{n}.jpg" for n in names],
            "caption": [f"第{n}张图片, 说明" for n in names],
            "sha256": [f"{n:064x}" for n in names],
            **{name: [300] * len(names) for name in ("width", "height", "length")},
        }
        path = f"train/{number:05d}.parquet"
        target = Path(storage.filesystem(stage.path(path))[1])
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), target, compression="zstd")
        parts.append(Part(path=path, rows=len(names), bytes=1, sha256=""))
    stage.commit(parts)


def release_files(root: str, rows: int, many: bool) -> None:
    """Write the CSV files of a release, in threads or in processes."""
    filtered = manifest.load(Stage(root, "filter", {}).uri)
    shards = filtered.parts.below("train/", ".parquet")
    stage = Stage(root, "release", {"many": many})
    edges = [rows * number // 16 for number in range(17)]
    files = list(zip(release.file_names("made-up", 16), pairwise(edges), strict=True))
    listed = OptOut(domains=frozenset({"host7.example.com"}))
    write = partial(release._write_file, stage=stage, filtered_uri=filtered.uri, shards=shards, listed=listed)
    list(parallel.for_each("release", files, write, many=many))


def show(step: Callable[..., object], size: dict[str, Any], *arguments: object) -> None:
    """Run a step in a process of its own, and print what it took."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_measure, args=(step, arguments, theirs))
    process.start()
    theirs.close()
    print(json.dumps({"step": step.__name__, **size, **ours.recv()}), flush=True)
    process.join()


def _measure(step: Callable[..., object], arguments: tuple[Any, ...], answer: Connection) -> None:
    requests = 0

    def counted(original: Callable[..., Any], *given: Any, **named: Any) -> Any:
        nonlocal requests
        requests += 1
        return original(*given, **named)

    for name in COUNTED:
        setattr(storage, name, partial(counted, getattr(storage, name)))
    with tempfile.TemporaryDirectory() as folder:  # what a first manifest needs is not its parts'
        Stage(storage.from_path(Path(folder)), "crawl", {}).commit(Part.model_validate(each) for each in records(10))
    before, requests = _peak(resource.RUSAGE_SELF), 0
    started, cpu = time.monotonic(), time.process_time()
    step(*arguments)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    answer.send(
        {
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu_seconds, 2),
            "peak_growth_mib": round(_peak(resource.RUSAGE_SELF) - before, 1),
            "peak_of_workers_mib": round(_peak(resource.RUSAGE_CHILDREN), 1),
            "requests": requests,
        }
    )


def _peak(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


if __name__ == "__main__":
    main()
