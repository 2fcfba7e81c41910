"""Measure the search over many pictures: latency, recall, memory, start and building; and clip-retrieval beside it.

    python benchmarks/serve/search.py --work FOLDER [--pictures 10000000] [--model URI --data URI] [--peer]

``--work`` names a folder with room for 2,000 bytes a picture while the index is made, and 1,300 afterwards; what is
complete there is used again, so a run that was ended goes on. Vectors and queries are those of ``made_up.py``, of the
model (by default the champion, which ``make run`` leaves) and of what it has seen. The server is ``wukong serve`` on
two cores, which its clients use too; each query is a text. One half of the texts are the captions of the index, by
which it decides how many lists a search looks through, and the other half are the queries. Recall is the share of the
exact ten best, by the products of the stored vectors.

``--peer`` asks clip-retrieval's server (``peer.py``) for the same vectors, with the index that its own library makes of
them. It gets the vector of a query and so encodes no text, since CLIP's weights cannot be had everywhere.
"""

import argparse
import asyncio
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import aiohttp
import made_up
import made_up_index
import numpy as np
import numpy.typing as npt
import psutil
import torch

import wukong
from wukong.commands import search
from wukong.evaluate.model import OwnModel
from wukong.publish import superseded
from wukong.serve import collection
from wukong.serve.query import search_forms
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

BEST = 10
RECALLED = 300
"""Queries whose exact answers are computed."""
TARGETS = {
    "p95_ms": ("p95 of all clients, ms", 60, -1),
    "recall": ("recall@10 of exact", 0.98, 1),
    "private_mib": ("memory without mapped pages, MiB", 1536, -1),
    "resident_mib": ("memory with mapped pages, MiB", 6144, -1),
    "start_s": ("start, seconds", 10, -1),
    "build_s": ("building, seconds", 1800, -1),
    "build_peak_mib": ("peak memory of the process that builds, with mapped pages, MiB", None, 0),
}
PEER = ("clip-retrieval==2.45.0", "setuptools<81")
"""The second has pkg_resources, which its CLIP imports."""

Ask = Callable[[aiohttp.ClientSession, int], Awaitable[list[int]]]
"""Asks the query of a number, and returns the rows of the pictures that are found."""


def texts_of(model: str | None, data: str | None) -> list[str]:
    """The distinct captions, in the form in which they are searched, of what a model has seen."""
    found = collection.of(data or search.data_of(model or search.champion()))
    captions = {caption: None for piece in found.pieces for each in piece.captions.values() for caption in each}
    forms = {form: None for form in search_forms([*captions]) if form}
    order = np.random.default_rng(0).permutation(len(forms))
    named = [*forms]
    return [named[place] for place in order.tolist()]


def exact(work: Path, made: Manifest, queries: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The rows of the ten best pictures of each query, of all shards."""
    file = work / f"exact-{made.counts['pictures']}.npy"
    if file.exists():
        return np.asarray(np.load(file))
    best = torch.empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.int64)
    start = 0
    for vectors in map(halves_of, shards_of(made)):
        for begin in range(0, len(vectors), made_up.BLOCK):
            block = torch.from_numpy(vectors[begin : begin + made_up.BLOCK].astype(np.float32))
            scores, places = (torch.from_numpy(queries) @ block.T).topk(BEST, dim=1)
            joined, both = torch.cat([best, scores], 1), torch.cat([rows, places + start], 1)
            best, kept = joined.topk(BEST, dim=1)
            rows = both.gather(1, kept)
            start += len(block)
    np.save(file, rows.numpy())
    return rows.numpy()


def shards_of(made: Manifest) -> list[str]:
    return [superseded.shard_uri(made.uri, key) for key in superseded.listed(made.uri).keys]


def halves_of(shard: str) -> npt.NDArray[np.float16]:
    width = manifest.load(shard).config["width"]
    return np.memmap(shard.removeprefix("file://") + "/pictures.f16", np.float16, "r").reshape(-1, width)


@contextmanager
def running(command: list[object], cores: int) -> Iterator[subprocess.Popen[str]]:
    """A server on some cores."""
    pinned = ["taskset", "--cpu-list", f"0-{cores - 1}", *map(str, command)]
    with subprocess.Popen(pinned, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.terminate()


def memory_of(process: int) -> tuple[float, float]:
    """MiB of a process without pages of files, and with them."""
    status = Path(f"/proc/{process}/status").read_text()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.endswith(" kB")}
    return (kib["VmRSS"] - kib["RssFile"]) / 1024, kib["VmRSS"] / 1024


async def asked(
    ask: Ask, queries: int, clients: int, seconds: float, answers: npt.NDArray[np.int64], server: int
) -> dict[str, float]:
    """Recall of one client, and then latency of clients that ask one query after another."""
    process = psutil.Process(server)
    times: list[float] = []
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        right = 0
        for number, answer in enumerate(answers):
            right += len(set(await ask(session, number)) & set(answer.tolist()))
        used, end = core_seconds(process), time.perf_counter() + seconds

        async def client(number: int) -> None:
            while time.perf_counter() < end:
                began = time.perf_counter()
                await ask(session, number % queries)
                times.append(time.perf_counter() - began)
                number += clients

        await asyncio.gather(*(client(number) for number in range(clients)))
    return {
        "recall": right / answers.size,
        "queries_per_second": len(times) / seconds,
        "median_ms": 1e3 * statistics.median(times),
        "p95_ms": 1e3 * float(np.quantile(times, 0.95)),
        "core_ms_a_query": 1e3 * (core_seconds(process) - used) / len(times),
    }


def core_seconds(process: psutil.Process) -> float:
    """Seconds of a core that a process has used, which other work on the machine changes less than the clock."""
    return float(sum(process.cpu_times()[:2]))


def own(options: argparse.Namespace, texts: list[str], answers: npt.NDArray[np.int64]) -> dict[str, float]:
    """Measure ``wukong serve``."""
    command = [sys.executable, "-m", "cli.main", "serve", "--port=0", "--model", options.model or search.champion()]
    command += ["--data", str(options.work / "pictures"), "--index", str(options.work / "indexes")]
    began = time.perf_counter()
    with running([*command], options.cores) as started:
        assert started.stdout is not None
        address = started.stdout.readline().partition(" at ")[2].partition(" ")[0]
        urllib.request.urlopen(f"{address}/", timeout=60).read()
        start = {"start_s": time.perf_counter() - began, "start_core_s": core_seconds(psutil.Process(started.pid))}

        async def ask(session: aiohttp.ClientSession, number: int) -> list[int]:
            async with session.get(f"{address}/api/search", params={"q": texts[number], "top": BEST}) as answer:
                return [int(hit["picture"]) for hit in (await answer.json())["results"]]

        found = asyncio.run(asked(ask, len(texts), options.clients, options.seconds, answers, started.pid))
        found["private_mib"], found["resident_mib"] = memory_of(started.pid)
    return found | start


def peer(
    options: argparse.Namespace, made: Manifest, queries: npt.NDArray[np.float32], answers: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Measure clip-retrieval's server, in an environment of its own that shares torch with this one."""
    python = environment(options.work / "peer")
    server = Path(__file__).with_name("peer.py")
    folder = options.work / "peer-index"
    if not (folder / "made.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "embeddings").mkdir(parents=True)
        for number, shard in enumerate(shards_of(made)):
            np.save(folder / "embeddings" / f"img_emb_{number}.npy", halves_of(shard))
        subprocess.run(["taskset", "--cpu-list", f"0-{options.cores - 1}", python, server, "build", folder], check=True)
    with running([python, server, "serve", folder], options.cores) as started:
        assert started.stdout is not None
        address = started.stdout.readline().strip()
        while True:
            assert started.poll() is None, "clip-retrieval's server has ended"
            with suppress(OSError):
                urllib.request.urlopen(f"{address}/indices-list", timeout=60).read()
                break
            time.sleep(1)

        async def ask(session: aiohttp.ClientSession, number: int) -> list[int]:
            body = {"embedding_input": queries[number].tolist(), "modality": "image", "num_images": BEST}
            body |= {"num_result_ids": BEST, "indice_name": "all"}
            async with session.post(f"{address}/knn-service", json=body) as answer:
                return [int(hit["id"]) for hit in await answer.json(content_type=None)]

        found = asyncio.run(asked(ask, len(queries), options.clients, options.seconds, answers, started.pid))
        found["private_mib"], found["resident_mib"] = memory_of(started.pid)
    build: dict[str, float] = json.loads((folder / "made.json").read_text())
    return found | build


def environment(folder: Path) -> Path:
    """Return the Python of an environment with clip-retrieval, which takes torch from this one; it is made once."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "shared.pth").write_text(f"{Path(np.__file__).resolve().parents[1]}\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
        (folder / "complete").touch()
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=10_000_000)
    parser.add_argument("--model", help="the champion by default")
    parser.add_argument("--data", help="what the model has seen; by default what its run filtered")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("build/bench-search/results.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.cores)
    os.sched_setaffinity(0, range(options.cores))
    mixture = made_up.fitted(options.work / "mixture.npz", options.model, options.data)
    every = texts_of(options.model, options.data)
    texts, captions = every[::2], every[1::2]
    address = options.model or search.champion()
    model = OwnModel(wukong.load(address), address)
    queries = model.saved.encode_text(texts, strict=False).vectors.numpy()
    began = time.perf_counter()
    made = made_up_index.build(options.work, model, options.pictures, captions, mixture.block)
    seconds, record = time.perf_counter() - began, options.work / f"build-{made.uri.rpartition('/')[2]}.json"
    if not record.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        storage.write_json(storage.from_path(record), {"build_s": seconds, "build_peak_mib": peak})
    answers = exact(options.work, made, queries[:RECALLED])
    results = {"wukong": own(options, texts, answers) | json.loads(record.read_text())}
    report("wukong", results["wukong"], options)
    if options.peer:
        results["clip-retrieval"] = peer(options, made, queries, answers)
        report("clip-retrieval", results["clip-retrieval"], options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def report(name: str, found: dict[str, float], options: argparse.Namespace) -> None:
    found["load"] = os.getloadavg()[0]
    print(f"{name}, {options.pictures:,} pictures, a load of {found['load']:.1f} on {os.cpu_count()} cores")
    for key, value in found.items():
        what, limit, sign = TARGETS.get(key, (key, None, 0))
        target = "" if limit is None else f" (target {limit}: {'met' if sign * (value - limit) >= 0 else 'MISSED'})"
        print(f"  {what}: {value:.4g}{target if name == 'wukong' else ''}", flush=True)


if __name__ == "__main__":
    main()
