"""Measure the search page: latency, throughput, memory, start; and the same application under Ray Serve.

    python benchmarks/serve/bench.py [--only global token ray] [--pictures 100000] [--token-pictures 20000]
        [--clients 50] [--seconds 60] [--cores 2]

The index has made-up unit vectors, and the model is that of the demo with random weights, so every cost is there: text
encoder, comparison with all pictures, and the pictures' files. Token vectors of 100,000 pictures are 2.5 GB on the
disk; the cost of a search is that of the 200 that are read, whatever their number. The clients run on the same machine.
Results are printed with the machine's load and written to ``results.json``. On a busy machine the processor's time
counts and the clock's does not.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import aiohttp
import made_up_index
import numpy as np
import psutil
import torch
import torch.nn.functional as F

from wukong.config.model import Model as Settings
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.evaluate.model import OwnModel
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.serve import collection, encode, index
from wukong.serve.search import FIRST_PASS, Hit, Searcher
from wukong.store import storage

PLACES = ("model", "pictures", "indexes")
CAPTIONS = 2_048
WORDS = "红绿蓝黄黑白猫狗鸟鱼马牛羊山水花草树木天地人车船飞机火箭苹果香蕉房子桌椅书笔大小高低新旧"
TARGETS = {
    "p95_ms": ("text to image, one client, p95 in ms", 60, -1),
    "queries_per_second": ("queries a second, all clients", 40, 1),
    "memory_mib": ("memory of the server at its most, MiB", 1536, -1),
    "memory_growth_mib": ("growth of memory in the second half, MiB", 30, -1),
    "rank_ms": (f"token-wise ranking of {FIRST_PASS}, p95 in ms", 100, -1),
    "align_ms": ("alignment of a picture on click, p95 in ms", 300, -1),
    "first_page_s": ("first page after the start, seconds", 5, -1),
    "ray_more_ms": ("Ray Serve beside uvicorn, median, ms more", 10, -1),
}


def make(folder: Path, similarity: str, pictures: int) -> None:
    """Write a model, a folder with one picture for each of a few keys, and an index of many made-up vectors."""
    torch.manual_seed(0)
    settings = Settings.model_validate(
        {"similarity": similarity, "embedding": 256, "text": {"layers": 2, "heads": 4, "width": 256}}
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    model = storage.from_path(folder / "model")
    saved_model.save(model, DualEncoder(settings, tokenizer, ImageEncoder(settings.image)), tokenizer)
    own = OwnModel(saved_model.load(model), model)
    numbers = np.random.default_rng(0)
    captions = sorted({"".join(numbers.choice(list(WORDS), 6)) for _ in range(CAPTIONS)})
    tokens = own.saved.model.image.token_count if own.saved.model.image is not None else 0
    noise = torch.from_numpy(numbers.standard_normal((64, tokens, 256), np.float32)) / 16

    def draw(number: int, rows: int) -> made_up_index.Halves:
        drawn = np.random.default_rng([0, number]).standard_normal((rows, 256), np.float32)
        vectors = F.normalize(torch.from_numpy(drawn), dim=-1)
        if similarity == "token":
            vectors = F.normalize(vectors[:, None] + noise[torch.arange(rows) % 64], dim=-1)
        return vectors.half().numpy()

    made_up_index.build(folder, own, pictures, captions, draw, encode._BLOCK)


@contextmanager
def server(folder: Path, cores: int) -> Iterator[tuple[str, int]]:
    """``wukong serve`` on some cores: its address and process id."""
    model, pictures, indexes = (str(folder / name) for name in PLACES)
    command = ["taskset", "--cpu-list", f"0-{cores - 1}", sys.executable, "-m", "cli.main", "serve", "--port=0"]
    command += ["--model", model, "--data", pictures, "--index", indexes]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        try:
            said = started.stdout.readline()
            yield said.partition(" at ")[2].partition(" ")[0], started.pid
        finally:
            started.terminate()


def queries(count: int) -> list[str]:
    numbers = np.random.default_rng(1)
    return ["".join(numbers.choice(list(WORDS), 4)) for _ in range(count)]


async def asked(address: str, clients: int, seconds: float, process: psutil.Process) -> dict[str, float]:
    """Clients that ask one query after another, each as soon as it has its answer."""
    words, times, memory = queries(500), [], []
    end = time.perf_counter() + seconds
    used = sum(process.cpu_times()[:2])

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        place = number
        while time.perf_counter() < end:
            began = time.perf_counter()
            async with session.get(f"{address}/api/search", params={"q": words[place % 500]}) as answer:
                await answer.read()
                assert answer.status == 200, await answer.text()
            times.append(time.perf_counter() - began)
            place += clients

    async def watch() -> None:
        while time.perf_counter() < end:
            memory.append(process.memory_info().rss / 2**20)
            await asyncio.sleep(0.5)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(watch(), *(client(number, session) for number in range(clients)))
    half = memory[len(memory) // 2 :]
    return {
        "queries_per_second": len(times) / seconds,
        "processor_ms_a_query": 1e3 * (sum(process.cpu_times()[:2]) - used) / len(times),
        "median_ms": 1e3 * statistics.median(times),
        "p95_ms": 1e3 * float(np.quantile(times, 0.95)),
        "memory_mib": max(memory),
        "memory_growth_mib": max(half) - half[0],
    }


def measured(folder: Path, similarity: str, options: argparse.Namespace) -> dict[str, float]:
    began = time.perf_counter()
    with server(folder, options.cores) as (address, pid):
        urllib.request.urlopen(f"{address}/", timeout=60).read()
        found = {"first_page_s": time.perf_counter() - began}
        process = psutil.Process(pid)
        found["first_page_processor_s"] = sum(process.cpu_times()[:2])
        asyncio.run(asked(address, 1, 2, process))
        one = asyncio.run(asked(address, 1, min(options.seconds, 10), process))
        found |= {"p95_ms": one["p95_ms"], "median_ms": one["median_ms"]}
        many = asyncio.run(asked(address, options.clients, options.seconds, process))
        kept = ("queries_per_second", "processor_ms_a_query", "memory_mib", "memory_growth_mib")
        found |= {name: many[name] for name in kept}
        found["p95_ms_all_clients"] = many["p95_ms"]
        if similarity == "token":
            found["align_ms"] = aligned(address, folder)
    return found


def aligned(address: str, folder: Path) -> float:
    """A picture that is sent, with a text: p95 in ms."""
    body, times = (folder / "pictures" / "one.jpg").read_bytes(), []
    for word in queries(30):
        request = urllib.request.Request(f"{address}/api/align?text={quote(word)}", body, method="POST")
        began = time.perf_counter()
        urllib.request.urlopen(request, timeout=60).read()
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.quantile(times, 0.95))


def ranked(folder: Path, cores: int) -> float:
    """Ranking of what the first pass found, with reading it from the disk: p95 in ms."""
    torch.set_num_threads(max(1, cores // 2))
    uri = storage.from_path(folder / "model")
    own = OwnModel(saved_model.load(uri), uri)
    found = collection.of(str(folder / "pictures"))
    searcher = Searcher(index.open_index(encode.build(found, own, storage.from_path(folder / "indexes")), own), own)
    numbers, times = np.random.default_rng(2), []
    for word in queries(60):
        text = searcher.encode_texts([word])
        first = [Hit(int(row), 0.0) for row in numbers.choice(len(searcher.index.keys), FIRST_PASS, replace=False)]
        began = time.perf_counter()
        searcher.rank(text, first, 20)
        times.append(1e3 * (time.perf_counter() - began))
    return float(np.quantile(times[10:], 0.95))


def under_ray(folder: Path, cores: int) -> dict[str, float]:
    """The same application under Ray Serve: whether the bytes are equal, and the difference of the medians."""
    import ray
    from ray import serve

    from ray_jobs.serve import search

    # One of its own, whatever Ray runs on this machine.
    ray.init("local", num_cpus=cores, include_dashboard=False, configure_logging=False, log_to_driver=False)

    arguments = {key: str(folder / name) for key, name in zip(("model", "data", "index"), PLACES, strict=True)}
    words, medians, bodies = queries(100), {}, {}

    def ask(name: str, address: str) -> None:
        times, answers = [], []
        for word in words:
            began = time.perf_counter()
            answers.append(urllib.request.urlopen(f"{address}/api/search?q={quote(word)}", timeout=60).read())
            times.append(1e3 * (time.perf_counter() - began))
        medians[name], bodies[name] = statistics.median(times[20:]), answers

    with server(folder, cores) as (address, _):
        ask("uvicorn", address)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(search(arguments | {"cpus": cores}), route_prefix="/")
    ask("ray", f"http://127.0.0.1:{port}")
    serve.shutdown()
    ray.shutdown()
    same = sum(one == other for one, other in zip(bodies["uvicorn"], bodies["ray"], strict=True))
    return {"ray_more_ms": medians["ray"] - medians["uvicorn"], "ray_same_bytes": same / len(words)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("global", "token", "ray"), default=["global", "token", "ray"])
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--token-pictures", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/bench-serve/results.json"))
    options = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for kind in options.only:
        similarity = "token" if kind == "token" else "global"
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            make(folder, similarity, options.token_pictures if kind == "token" else options.pictures)
            if kind == "ray":
                results[kind] = under_ray(folder, options.cores)
            else:
                results[kind] = measured(folder, similarity, options)
            if kind == "token":
                results[kind]["rank_ms"] = ranked(folder, options.cores)
        results[kind]["load"] = os.getloadavg()[0]
        print(f"{kind}, with a load of {results[kind]['load']:.1f} on {os.cpu_count()} cores")
        for name, value in results[kind].items():
            what, limit, sign = TARGETS.get(name, (name, None, 0))
            target = (
                f" (target {limit}: {'met' if sign * (value - limit) >= 0 else 'MISSED'})" if limit is not None else ""
            )
            print(f"  {what}: {value:.1f}{target}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
