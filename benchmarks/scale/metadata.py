"""Measure the stages that read tables alone, on made-up metadata: plan, count, rules, compare, assign, validate.

    python benchmarks/scale/metadata.py --rows 1000000 [--work FOLDER] [--tasks 2]

There are no pictures: a crawl's plan becomes a crawl whose pictures are said to be stored. The jobs' own code runs, but
for Ray: their tasks run in processes of this machine, which tell their peak and what they opened. One caption in ten
repeats, and one picture in twenty.

For each stage a line of JSON is printed: ``seconds`` of the clock, ``core_seconds`` of all processes, which other work
of the machine hardly changes, ``driver_mib`` and ``task_mib`` (peak memory of the driver and of the largest task),
``tasks``, ``references`` (values that tasks return), ``opened`` (files opened, to read or to write), and a ``digest``
of what was made. With several ``--rows`` a last line has the exponent of the growth of each from the fewest to the most
rows. With ``--work`` a run that was ended goes on after the stages that are complete.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray import cloudpickle

from ray_jobs import crawl, validate
from ray_jobs import filter as filtering
from ray_jobs import groups as groups_job
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.crawl import plan
from wukong.crawl.found import FOUND, write_found
from wukong.crawl.url import key_of
from wukong.curate import rules
from wukong.curate.pairs import PAIRS
from wukong.data.schema import CRAWLED
from wukong.stages import places
from wukong.store import storage
from wukong.store.manifest import Manifest, Part, Stage
from wukong.store.parts import Parts

FILE_ROWS = 100_000
AHEAD = 16  # files that are written at a time
NOUNS, COLOURS = "猫狗鸟鱼马牛羊鸡猪兔山河湖海桥楼树花草云", "红橙黄绿青蓝紫黑白灰"
OPENED: list[str] = []


def count_opened(name: str) -> None:
    original = getattr(storage, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        OPENED.append(name)
        return original(*arguments, **named)

    setattr(storage, name, counted)


def prepare() -> None:
    """Count opened files in this process."""
    for name in ("read_with", "read_bytes", "open_input", "open_output"):
        count_opened(name)


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measured(call: bytes) -> tuple[Any, float, int, float]:
    forget_peak()
    before, began = len(OPENED), time.process_time()
    task, arguments = cloudpickle.loads(call)
    result = task(*arguments)
    return result, peak_mib(), len(OPENED) - before, time.process_time() - began


class Tasks:
    """In the place of Ray: tasks run in a few processes; what is put is sent to each task."""

    exceptions = ray.exceptions

    def __init__(self, processes: int) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it for a task of one core
        self.pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), prepare)
        self.free = threading.Semaphore(4 * processes)
        for started in [self.pool.submit(time.sleep, 1) for _ in range(processes)]:
            started.result()  # what a process imports is no part of a stage
        self.forget()

    def forget(self) -> None:
        self.done, self.opened, self.peak, self.references, self.core_seconds = 0, 0, 0.0, 0, 0.0

    def remote(self, task: Any) -> "Task":
        return Task(self, task)

    def put(self, value: Any) -> Any:
        return value

    def wait(self, some: list[Future], num_returns: int) -> tuple[list[Future], list[Future]]:
        done, _ = futures.wait(some, return_when=futures.FIRST_COMPLETED)
        first = [each for each in some if each in done][:num_returns]
        return first, [each for each in some if each not in first]

    def cancel(self, some: Future) -> None:
        some.cancel()

    def get(self, some: Any) -> Any:
        if isinstance(some, list):
            return [self.get(each) for each in some]
        if isinstance(some, Piece):
            return self.get(some.of)[some.number]
        if not isinstance(some, Future):
            return some
        result, peak, opened, core_seconds = some.result()
        if not getattr(some, "counted", False):
            self.done, self.opened, self.peak = self.done + 1, self.opened + opened, max(self.peak, peak)
            self.core_seconds += core_seconds
            some.counted = True
        return result


class Piece:
    """One of several values that a task returns."""

    def __init__(self, of: Future, number: int) -> None:
        self.of, self.number = of, number


class Task:
    def __init__(self, tasks: Tasks, function: Any, num_returns: int = 1) -> None:
        self.tasks, self.function, self.num_returns = tasks, function, num_returns

    def options(self, num_returns: int = 1, num_gpus: int = 0) -> "Task":
        if num_gpus:
            raise ValueError("the tasks of this benchmark run on cores alone")
        return Task(self.tasks, self.function, num_returns)

    def remote(self, *arguments: Any) -> Any:
        given = tuple(self.tasks.get(each) for each in arguments)
        self.tasks.free.acquire()
        future = self.tasks.pool.submit(measured, cloudpickle.dumps((self.function, given)))
        future.add_done_callback(lambda _: self.tasks.free.release())
        self.tasks.references += self.num_returns
        return future if self.num_returns == 1 else [Piece(future, number) for number in range(self.num_returns)]


class Measured:
    """The stages at one number of rows. What a stage returned is kept, so that a run that was ended goes on after it.

    Args:
        rows: how many results the search has.
        folder: everything lies there.
        tasks: run the tasks.
    """

    def __init__(self, rows: int, folder: Path, tasks: Tasks) -> None:
        self.rows, self.tasks, self._kept = rows, tasks, folder / "stages"
        folder.mkdir(parents=True, exist_ok=True)
        self._stages = cloudpickle.loads(self._kept.read_bytes()) if self._kept.exists() else {}

    def stage(self, name: str, do: Callable[[], Any], digest: Callable[[], str] | None = None) -> Any:
        """Do a stage and print its line, or print what it was when it was done before."""
        if name not in self._stages:
            self.tasks.forget()
            forget_peak()
            before, started, cpu = len(OPENED), time.monotonic(), time.process_time()
            value = do()
            result = {
                "stage": name,
                "rows": self.rows,
                "seconds": round(time.monotonic() - started, 1),
                "core_seconds": round(time.process_time() - cpu + self.tasks.core_seconds, 1),
                "driver_mib": round(peak_mib()),
                "task_mib": round(self.tasks.peak),
                "tasks": self.tasks.done,
                "references": self.tasks.references,
                "opened": self.tasks.opened + len(OPENED) - before,
            }
            self._stages[name] = value, result | ({"digest": digest()} if digest else {})
            self._kept.write_bytes(cloudpickle.dumps(self._stages))
        value, result = self._stages[name]
        print(json.dumps(result), flush=True)
        return value


def caption(number: int) -> str:
    if number % 10 == 0:
        number //= 100  # a tenth of the captions; each of them ten times
    digits = np.base_repr(number + 10_000, 20)
    return COLOURS[number % 10] + "色的" + "".join(NOUNS[int(digit, 20)] for digit in digits)


def write_results(folder: str, rows: int, pool: ProcessPoolExecutor) -> list[str]:
    """What a search found, in files as a crawl writes them; a fifth is found twice."""
    generator, uris = np.random.default_rng(0), []
    written: deque[Future] = deque()
    for first in range(0, rows, FILE_ROWS):
        size = min(FILE_ROWS, rows - first)
        identity = np.arange(first, first + size)
        again = generator.random(size) < 0.2
        identity[again] = generator.integers(0, first + size, int(again.sum()))
        uris.append(storage.join(folder, f"search/{first:012d}.parquet"))
        written.append(pool.submit(write_result, uris[-1], first, identity))
        if len(written) > AHEAD:
            written.popleft().result()
    for each in written:
        each.result()
    return uris


def write_result(uri: str, first: int, identity: Any) -> None:
    """A file of results, from the numbers of their pictures."""
    if storage.exists(uri):
        return
    urls = [f"http://x/{'abc'[n % 3]}/{n:012d}.jpg" for n in identity]
    columns = {
        "key": [key_of(url) for url in urls],
        "url": urls,
        "caption": [caption(int(n)) for n in identity],
        "query": [f"词{(first + n) // 1000}" for n in range(len(identity))],
        "order": np.arange(first, first + len(identity)),
        "page_url": [None] * len(identity),
    }
    write_found(uri, pa.table(columns, schema=FOUND).sort_by([("key", "ascending")]))


def write_part(uri: str, plan_uri: str, group: int) -> Part:
    """A part of a crawl whose pictures are said to be stored; of twenty pictures two are equal."""
    if storage.exists(uri):
        return Part(path="", rows=pq.read_metadata(uri.removeprefix("file://")).num_rows, bytes=0, sha256="")
    planned = pl.DataFrame(plan.read_part(plan_uri, group))
    numbers = planned["url"].str.extract(r"(\d+)\.jpg").cast(pl.Int64)
    pictures = [hashlib.sha256(str(n // 20 if n % 20 == 0 else -n).encode()).hexdigest() for n in numbers]
    values = {
        "engine": "bench", "status": "success", "width": 300, "height": 300, "mime": "image/jpeg",
        "stored_width": 256, "stored_height": 256,
    }  # fmt: skip
    missing = [name for name in CRAWLED.names if name not in planned.columns and name not in values]
    frame = planned.with_columns(
        **{name: pl.lit(value) for name, value in values.items()}, **{name: pl.lit(None) for name in missing}
    ).with_columns(sha256=pl.Series(pictures))
    storage.write_table(uri, frame.select(CRAWLED.names).to_arrow().cast(CRAWLED))
    return Part(path="", rows=len(frame), bytes=0, sha256="")


def write_parts(crawled: Stage, planned: list[dict[str, Any]], pool: ProcessPoolExecutor) -> Parts:
    """All parts of the crawl; only their columns stay in memory, as where a manifest is read."""
    made = []
    groups = ((each["plan"], group) for each in planned for group in range(len(each["parts"])))
    for number, (path, group) in enumerate(groups):
        part = f"parts/{number:05d}.parquet"
        made.append((part, pool.submit(write_part, crawled.path(part), crawled.path(path), group)))
    return Parts.of(future.result().model_copy(update={"path": path}) for path, future in made)


def write_shards(uri: str, placed: str, number: int) -> list[Part]:
    """Shards of kept pairs, without pictures."""
    parts = []
    for (split,), pairs in pl.DataFrame(storage.read_table(placed)).group_by("split", maintain_order=True):
        for piece, rows in enumerate(pairs.iter_slices(2_000)):
            path = f"{split}/{number:05d}{piece:03d}.parquet"
            storage.write_table(storage.join(uri, path), rows.select(PAIRS.names).to_arrow().cast(PAIRS))
            parts.append(Part(path=path, rows=len(rows), bytes=0, sha256=""))
    return parts


def digest_of(folder: str) -> str:
    digest = hashlib.sha256()
    for uri in storage.list_files(folder, ".parquet"):
        digest.update(storage.read_bytes(uri))
    return digest.hexdigest()[:16]


def experiment_at(root: str) -> Experiment:
    holdouts = [
        {"name": "seen", "source": "*/a/*9*", "captions": "seen"},
        {"name": "new", "source": "*/a/*", "captions": "unseen"},
    ]
    return documents.parse(
        {
            "name": "bench",
            "storage": root,
            "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
            "filter": {
                "mask_names": False,
                "duplicate_images": "equal",
                "split": {"held_out_captions": 0.01, "holdouts": holdouts},
            },
        }
    )


def measure(rows: int, work: Path, processes: int, gate: bool) -> None:
    """All stages at one number of rows."""
    root = storage.from_path(work / str(rows))
    tasks = Tasks(processes)
    for module in (crawl, groups_job, validate, sys.modules.get("ray_jobs.exchange")):
        if module is not None and hasattr(module, "ray"):
            module.ray = tasks
    crawl._plan = tasks.remote(crawl._plan._function)
    experiment, measured = experiment_at(root), Measured(rows, work / str(rows), tasks)

    crawled = Stage(root, "crawl", {})
    found = write_results(crawled.uri, rows, tasks.pool)
    job = crawl._Job.__new__(crawl._Job)
    job._stage, job._config, job._cores = crawled, experiment.crawl, processes
    planned = measured.stage("plan", lambda: job._plan(found, rows), lambda: digest_of(crawled.path("plan")))
    manifest = Manifest(stage="crawl", uri=crawled.uri, config={}, parts=write_parts(crawled, planned, tasks.pool))

    settings = experiment.filter
    rules.load(settings)
    filtered = places.filtering(experiment, manifest)
    groups = groups_job.groups_of(manifest)
    counts = measured.stage("count", lambda: filtering._count(filtered, groups, settings))
    measured.stage(
        "rules",
        lambda: groups_job.run_missing("rules", filtered, filtering._apply_rules, groups, lambda: (settings, counts)),
        lambda: digest_of(filtered.path("_work/rules")),
    )
    facts = measured.stage("compare", lambda: filtering._corpus_facts(experiment, manifest, filtered, groups))
    measured.stage(
        "assign",
        lambda: groups_job.run_missing("assign", filtered, filtering._assign, groups, lambda: facts),
        lambda: digest_of(filtered.path("_work/placed")),
    )
    if gate:
        written = [
            tasks.pool.submit(
                write_shards, filtered.uri, filtered.path(filtering._placed_path(group.number)), group.number
            )
            for group in groups
        ]
        shards = [part for future in written for part in future.result()]
        shards.sort(key=lambda part: part.path)
        kept = Manifest(stage="filter", uri=filtered.uri, config={}, parts=tuple(shards))
        validate.card.of = lambda *_, **__: None
        validate.card.write = lambda uri, _: storage.write_bytes(storage.join(uri, validate.card.PATH), b"")
        checked = places.validation(experiment, kept)
        measured.stage(
            "validate",
            lambda: validate._validate(checked, experiment, kept),
            lambda: hashlib.sha256(storage.read_bytes(checked.path("results.json"))).hexdigest()[:16],
        )
    tasks.pool.shutdown()


def growth(results: list[dict]) -> dict[str, dict[str, float]]:
    """The exponents of the growth of each stage from its fewest to its most rows."""
    fitted = {}
    for name in dict.fromkeys(result["stage"] for result in results):
        some = sorted((each for each in results if each["stage"] == name), key=lambda each: each["rows"])
        first, last = some[0], some[-1]
        ratio = math.log(last["rows"] / first["rows"])
        fitted[name] = {
            what: round(math.log(max(last[what], 1e-3) / max(first[what], 1e-3)) / ratio, 2)
            for what in ("core_seconds", "driver_mib", "task_mib", "opened")
        }
    return fitted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--tasks", type=int, default=2, help="tasks at a time")
    parser.add_argument("--without-validate", action="store_true", help="leave out the gate, which takes longest")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="wukong-scale-"))
    if len(options.rows) == 1:
        prepare()
        measure(options.rows[0], work, options.tasks, not options.without_validate)
    else:  # each in a process of its own, whose driver begins small
        results = []
        for rows in options.rows:
            command = [sys.executable, __file__, "--rows", str(rows), "--work", str(work)]
            command += ["--tasks", str(options.tasks), *(["--without-validate"] if options.without_validate else [])]
            made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(made.stdout, end="", flush=True)
            results += [json.loads(line) for line in made.stdout.splitlines()]
        print(json.dumps({"growth": growth(results)}))
    if options.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
