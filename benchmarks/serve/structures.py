"""Compare index structures on made-up vectors: FAISS, usearch and LanceDB, beside one another.

    python benchmarks/serve/structures.py --work FOLDER [--vectors 1000000] [--only NAME ...] [--model URI --data URI]

Vectors are those of ``made_up.py``. Each structure runs in a process of its own, in an environment with the packages
``PACKAGES``, and gives candidates, whose order the products of the mapped float16 vectors decide, as in a search. For
each structure the least effort is sought with which 98 % of the exact ten best are found. Times are those of a core, in
one thread, so that other work on the machine changes them less than the clock's. Memory is what a process that searches
has, besides pages of files, and with them.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

PACKAGES = ("numpy", "faiss-cpu==1.15.1", "usearch==2.26.6", "lancedb==0.40.0")
QUERIES = 400
BEST = 10
RECALL = 0.98
CANDIDATES = (100, 400, 1600)
REFINED = 50
"""Candidates that are left where FAISS ranks them again."""
EFFORTS = (8, 16, 32, 64, 128, 256, 512, 1024)

Search = Callable[[Any, int, int], Any]
"""Takes a query, the number of candidates and the effort; returns rows."""


class Structure(NamedTuple):
    """How a structure is built of vectors in a folder, which returns what it wrote, and how it is opened there."""

    build: Callable[[Any, Path], Path]
    opened: Callable[[Path], Search]


def faiss_of(description: str) -> Structure:
    def build(vectors: Any, folder: Path) -> Path:
        import faiss

        index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT)
        sample = np.sort(np.random.default_rng(0).choice(len(vectors), min(len(vectors), 160_000), replace=False))
        index.train(vectors[sample].astype(np.float32))
        for start in range(0, len(vectors), 65_536):
            index.add(vectors[start : start + 65_536].astype(np.float32))
        faiss.write_index(index, str(folder / "index.faiss"))
        return folder / "index.faiss"

    def opened(folder: Path) -> Search:
        import faiss

        faiss.omp_set_num_threads(1)
        mapped = "fs" not in description and "HNSW" not in description
        flags = faiss.IO_FLAG_MMAP_IFC if "Refine" in description else faiss.IO_FLAG_MMAP if mapped else 0
        index = faiss.read_index(str(folder / "index.faiss"), flags)
        space = faiss.ParameterSpace()
        name = "efSearch" if "HNSW" in description else "nprobe"

        def search(query: Any, count: int, effort: int) -> Any:
            space.set_index_parameter(index, name, max(effort, count) if name == "efSearch" else effort)
            if "Refine" in description:
                space.set_index_parameter(index, "k_factor_rf", count / REFINED)
                return index.search(query[None], REFINED)[1][0]
            return index.search(query[None], count)[1][0]

        return search

    return Structure(build, opened)


def usearch_of(kind: str) -> Structure:
    def build(vectors: Any, folder: Path) -> Path:
        index = import_module("usearch.index").Index(ndim=vectors.shape[1], metric="ip", dtype=kind)
        for start in range(0, len(vectors), 65_536):
            rows = np.arange(start, min(start + 65_536, len(vectors)))
            index.add(rows, vectors[start : start + 65_536].astype(np.float32), threads=2)
        index.save(str(folder / "index.usearch"))
        return folder / "index.usearch"

    def opened(folder: Path) -> Search:
        index = import_module("usearch.index").Index.restore(str(folder / "index.usearch"), view=True)

        def search(query: Any, count: int, effort: int) -> Any:
            index.expansion_search = max(effort, count)
            return index.search(query, count, threads=1).keys.astype(np.int64)

        return search

    return Structure(build, opened)


def lancedb_of(kind: Literal["IVF_PQ", "IVF_HNSW_SQ"]) -> Structure:
    def build(vectors: Any, folder: Path) -> Path:
        import lancedb
        import pyarrow as pa

        width = vectors.shape[1]
        schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float16(), width))])

        def batches() -> Iterator[pa.RecordBatch]:
            for start in range(0, len(vectors), 65_536):
                block = np.ascontiguousarray(vectors[start : start + 65_536])
                lists = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), width)
                yield pa.record_batch([pa.array(range(start, start + len(block)), pa.int64()), lists], schema)

        reader = pa.RecordBatchReader.from_batches(schema, batches())
        table = lancedb.connect(folder / "lance").create_table("v", reader)
        table.create_index(metric="dot", index_type=kind, num_partitions=1024 if kind == "IVF_PQ" else 16)
        return folder / "lance"

    def opened(folder: Path) -> Search:
        import lancedb

        table = lancedb.connect(folder / "lance").open_table("v")

        def search(query: Any, count: int, effort: int) -> Any:
            asked: Any = table.search(query)
            asked = asked.distance_type("dot").select(["row"]).limit(count)
            asked = asked.nprobes(effort) if kind == "IVF_PQ" else asked.nprobes(16).ef(max(effort, count))
            return asked.to_arrow()["row"].to_numpy()

        return search

    return Structure(build, opened)


STRUCTURES = {
    "faiss IVF4096,SQ8": faiss_of("IVF4096,SQ8"),
    "faiss PCA128,IVF4096,SQ8": faiss_of("PCA128,IVF4096,SQ8"),
    "faiss IVF4096,PQ64": faiss_of("IVF4096,PQ64"),
    "faiss OPQ64_128,IVF4096,PQ64x4fsr": faiss_of("OPQ64_128,IVF4096,PQ64x4fsr"),
    "faiss IVF4096,PQ128x4fsr": faiss_of("IVF4096,PQ128x4fsr"),
    "faiss PCAR160,IVF2048,PQ80x4fsr,Refine(SQ8)": faiss_of("PCAR160,IVF2048,PQ80x4fsr,Refine(SQ8)"),
    "faiss IVF4096,RaBitQ": faiss_of("IVF4096,RaBitQ"),
    "faiss IVF4096,RaBitQfs": faiss_of("IVF4096,RaBitQfs"),
    "faiss IVF4096,RaBitQfs4": faiss_of("IVF4096,RaBitQfs4"),
    "faiss HNSW32,SQ8": faiss_of("HNSW32_SQ8"),
    "usearch f16": usearch_of("f16"),
    "usearch i8": usearch_of("i8"),
    "lancedb IVF_PQ": lancedb_of("IVF_PQ"),
    "lancedb IVF_HNSW_SQ": lancedb_of("IVF_HNSW_SQ"),
}


def built(name: str, work: Path) -> dict[str, float]:
    """Build a structure."""
    folder = work / "structure"
    folder.mkdir()
    began, clock = time.process_time(), time.perf_counter()
    file = STRUCTURES[name].build(vectors_of(work), folder)
    found = {"build_core_s": time.process_time() - began, "build_s": time.perf_counter() - clock}
    files = [file] if file.is_file() else [each for each in file.rglob("*") if each.is_file()]
    return found | {"mib": sum(each.stat().st_size for each in files) / 2**20}


def searched(name: str, work: Path) -> dict[str, float]:
    """Open a structure and search with growing effort."""
    queries, exact, vectors = np.load(work / "queries.npy"), np.load(work / "exact.npy"), vectors_of(work)
    search = STRUCTURES[name].opened(work / "structure")
    found: dict[str, float] = {}
    for count in CANDIDATES:
        for effort in EFFORTS:
            began, right = time.process_time(), 0
            for query, answer in zip(queries, exact, strict=True):
                rows = np.asarray(search(query, count, effort))
                rows = rows[rows >= 0]
                scores = vectors[rows].astype(np.float32) @ query
                right += len(set(rows[np.argsort(-scores)[:BEST]].tolist()) & set(answer.tolist()))
            core_ms = 1e3 * (time.process_time() - began) / len(queries)
            recall = right / exact.size
            print(f"  {name}: {count} candidates, effort {effort}: {recall:.4f}, {core_ms:.2f} ms", file=sys.stderr)
            if recall >= RECALL and core_ms < found.get("core_ms", np.inf):
                found |= {"recall": recall, "core_ms": core_ms, "candidates": count, "effort": effort}
            if recall >= RECALL or core_ms > 50:
                break
    status = Path("/proc/self/status").read_text()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith(" kB")}
    return found | {"private_mib": (kib["VmRSS"] - kib["RssFile"]) / 1024, "resident_mib": kib["VmRSS"] / 1024}


def vectors_of(work: Path) -> Any:
    """The vectors, mapped, float16 [vectors, d]."""
    return np.memmap(work / "vectors.f16", np.float16, "r").reshape(-1, np.load(work / "queries.npy").shape[1])


def prepare(work: Path, count: int, model: str | None, data: str | None) -> None:
    """Write the vectors, the queries and their exact answers, where they are not there."""
    import made_up

    found = made_up.fitted(work / "mixture.npz", model, data)
    queries = found.queries[:QUERIES]
    file = work / "vectors.f16"
    if not file.exists():
        with file.with_suffix(".partial").open("wb") as stream:
            for number, start in enumerate(range(0, count, made_up.BLOCK)):
                stream.write(found.block(number, min(made_up.BLOCK, count - start)).tobytes())
        file.with_suffix(".partial").rename(file)
    vectors = np.memmap(file, np.float16, "r").reshape(-1, queries.shape[1])
    best = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(vectors), made_up.BLOCK):
        scores = queries @ vectors[start : start + made_up.BLOCK].astype(np.float32).T
        top = np.argpartition(-scores, BEST, 1)[:, :BEST]
        best = np.concatenate([best, np.take_along_axis(scores, top, 1)], 1)
        rows = np.concatenate([rows, top + start], 1)
        kept = np.argsort(-best, 1)[:, :BEST]
        best, rows = np.take_along_axis(best, kept, 1), np.take_along_axis(rows, kept, 1)
    np.save(work / "queries.npy", queries)
    np.save(work / "exact.npy", rows)


def environment(folder: Path) -> Path:
    """Return the Python of an environment with the packages, which is made once."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="+", choices=STRUCTURES, default=list(STRUCTURES))
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--measure", choices=STRUCTURES, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=("build", "search"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        run = built if options.step == "build" else searched
        print(json.dumps(run(options.measure, options.work)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    prepare(options.work, options.vectors, options.model, options.data)
    python = environment(options.work / "environment")
    for name in options.only:
        found: dict[str, float] = {}
        for step in "build", "search":
            command = [python, __file__, "--work", options.work, "--measure", name, "--step", step]
            found |= json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        shutil.rmtree(options.work / "structure")
        with (options.work / "structures.jsonl").open("a") as results:
            results.write(json.dumps({"structure": name, "vectors": options.vectors, **found}) + "\n")
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
