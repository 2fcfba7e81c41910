"""Time a whole run on distinct pictures beside what `wukong plan` predicts of it.

    python benchmarks/scale/run.py --pictures 20000 --trained 4000 --folder /tmp/scale

``--pictures`` JPEGs (crops of the demo's pictures, each with a seed of its own) go from a list of URLs through crawl,
filter and validate; a run of its own takes ``--trained`` of them through features, an epoch and evaluate. Each stage is
a process with an embedded Ray, on the object store of an embedded stack whose home is in the folder. A stage whose
result is in the folder is not run again, so a benchmark that was killed goes on. The folder ``pictures`` in it may be
deleted when the crawls are done.

A line of JSON is printed for each stage: seconds with the start of Ray; seconds of cores, the object store's among
them, which say more on a machine that has other work; peak MiB of its driver and of its largest task; bytes written;
and what the plan predicts of both. ``decode_ms`` is the speed of the machine during the stage: milliseconds of a core
for one picture, always the same, decoded every two seconds. As far as it differs between two lines of a stage, their
seconds of cores differ too. ``copy`` is the sequential limit: one process reads the filter's shards and writes them
again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import served
import yaml
from PIL import Image

from infra import corpus
from infra.stack import processes, services
from infra.stack.ports import choose_ports
from infra.stack.state import Stack
from wukong import stages
from wukong.config import documents, stored
from wukong.config.experiment import Experiment
from wukong.model.cost import Size
from wukong.runs import run_records
from wukong.runtime import environment
from wukong.stages import estimate, measured_rates
from wukong.stages.capacity import Capacity
from wukong.stages.estimate import Work
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

ROOT = Path(__file__).parents[2]
HOST = "pictures.wukong.test"
DATA = ("crawl", "filter", "validate", "copy")
MODEL = ("features", "pretrain", "evaluate")
MIB = 2**20
CORES = os.cpu_count() or 1
_LOOK_SECONDS = 0.3
_DECODE_SECONDS = 2.0  # between two measurements of the machine's speed
_FEATURES = """
import sys
from ray_jobs import features
from ray_jobs.connection import connect
from wukong.config import stored
from wukong.store import manifest
connect()
filtered = manifest.load(sys.argv[2])
print(features.run(stored.load(sys.argv[1]), {"filter": filtered}).uri, flush=True)
"""
PARENTS = {
    "crawl": (),
    "filter": ("crawl",),
    "validate": ("filter",),
    "features": ("filter",),
    "pretrain": ("filter", "validate"),
    "finetune": ("filter", "pretrain"),
    "evaluate": ("filter", "pretrain", "finetune"),
}


def experiment_of(name: str, listed: Path) -> Experiment:
    """The demo's experiment with another crawl, one hold-out, and one epoch on two stored views."""
    value = yaml.safe_load((ROOT / "configs/demo.yaml").read_text(encoding="utf-8"))
    value |= {"name": name, "sources": []}
    value["crawl"] = {
        "engine": "urls",
        "endpoint": storage.from_path(listed),
        "politeness": {"per_host_concurrency": 1024, "robots_txt": False},
    }
    holdout = {"name": "held-out", "source": "*", "captions": "unseen"}
    value["filter"] = {"split": {"held_out_captions": 0.05, "holdouts": [holdout]}, "max_caption_count": 1000}
    value["validation"] = {"min_pairs": 1, "max_caption_count": 1000}
    value["evaluate"] = {}
    value["pretrain"] |= {"epochs": 1, "views": 1}
    value["finetune"] = {"epochs": 1, "batch_size": 256, "views": 1}
    return documents.parse(value)


def write_list(file: Path, count: int, titles: list[str]) -> None:
    """Write the list of URLs; each picture has a caption of its own."""
    captions = [f"{titles[number % len(titles)][:20]}第{number}张" for number in range(count)]
    urls = [f"http://{HOST}/{number}.jpg" for number in range(count)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), file)


@contextmanager
def serving(folder: Path) -> Iterator[int]:
    """Serve the pictures; yields the port."""
    command = [sys.executable, str(Path(served.__file__)), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.send_signal(signal.SIGKILL)


def store_seconds() -> float:
    """The seconds of cores that the object store of this benchmark has taken."""
    children = psutil.Process().children()
    times = [child.cpu_times() for child in children if child.name() == "weed"]
    return sum(time.user + time.system for time in times)


class Watch(threading.Thread):
    """Peak memory and seconds of cores of a driver and of all processes that it starts, with the object store's.

    Decodes ``picture`` from time to time, to know the speed of a core.
    """

    def __init__(self, driver: int, picture: Path) -> None:
        super().__init__(daemon=True)
        self._driver, self._picture = psutil.Process(driver), picture
        self._decodes: list[float] = []
        self._before = store_seconds()
        self._seconds: dict[int, float] = {}
        self._ended = threading.Event()
        self.driver_bytes = self.task_bytes = 0

    def run(self) -> None:
        due = 0.0
        while not self._ended.wait(_LOOK_SECONDS):
            if time.monotonic() >= due:
                due = time.monotonic() + _DECODE_SECONDS
                self._decode()
            try:
                tree = [self._driver, *self._driver.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in tree:
                try:
                    times, held = process.cpu_times(), process.memory_info().rss
                    name = process.name()
                except psutil.NoSuchProcess:
                    continue
                self._seconds[process.pid] = times.user + times.system
                if process.pid == self._driver.pid:
                    self.driver_bytes = max(self.driver_bytes, held)
                elif name.startswith("ray::"):
                    self.task_bytes = max(self.task_bytes, held)

    def _decode(self) -> None:
        before = time.thread_time()
        with Image.open(self._picture) as opened:
            opened.load()
        self._decodes.append(time.thread_time() - before)

    def end(self) -> dict[str, float]:
        self._ended.set()
        self.join()
        return {
            "core_seconds": round(sum(self._seconds.values()) + store_seconds() - self._before, 1),
            "driver_mib": round(self.driver_bytes / MIB),
            "task_mib": round(self.task_bytes / MIB),
            "decode_ms": round(1e3 * sum(self._decodes) / max(len(self._decodes), 1), 2),
        }


def run_stage(experiment: Experiment, stage: str, log: Path, picture: Path) -> dict[str, Any]:
    """Run a stage in a process of its own and return what was measured; ``picture`` tells the machine's speed."""
    if stage == "copy":
        return copy(experiment)
    uri = stored.store(experiment)
    parents = [storage.join(made(experiment, parent).uri, "manifest.json") for parent in PARENTS[stage]]
    if stage == "features":
        command = [sys.executable, "-c", _FEATURES, uri, *parents]
    else:
        given = [word for parent in parents for word in ("--parent", parent)]
        command = [sys.executable, "-m", "ray_jobs", stage, "--experiment", uri, "--run", "bench", *given]
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, cwd=ROOT)
        watch = Watch(process.pid, picture)
        watch.start()
        said, _ = process.communicate()
    seconds = time.monotonic() - began
    if process.returncode:
        sys.exit(f"{stage} failed: {log.read_text(errors='replace')[-2000:]}")
    if stage == "features":
        result = manifest.load(storage.join(said.decode().split()[-1], "manifest.json"))
    else:
        result = made(experiment, stage)
    return {"seconds": round(seconds, 1), **watch.end(), "bytes": sum(part.bytes for part in result.parts)}


def made(experiment: Experiment, stage: str) -> Manifest:
    """The manifest of a stage that has been run."""
    record = run_records.read(experiment, "bench", stage)
    assert record is not None and record.manifest
    return manifest.load(record.manifest)


def copy(experiment: Experiment) -> dict[str, Any]:
    """Read the filter's shards one after the other, and write each again."""
    filtered, began, size, before = (
        made(experiment, "filter"),
        time.monotonic(),
        0,
        store_seconds() + time.process_time(),
    )
    for part in filtered.parts:
        if part.path.endswith(".tar"):
            data = storage.read_bytes(storage.join(filtered.uri, part.path))
            storage.write_bytes(storage.join(experiment.root, "copy", part.path), data)
            size += len(data)
    cores = store_seconds() + time.process_time() - before
    return {"seconds": round(time.monotonic() - began, 1), "core_seconds": round(cores, 1), "bytes": size}


def result_of(folder: Path, name: str, stage: str) -> Path:
    """The file of what was measured of a stage of an experiment."""
    return folder / f"{name}-{stage}.json"


def once(file: Path, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Do a piece of the benchmark, unless its result is there."""
    if not file.exists():
        result = work()
        file.write_text(json.dumps(result))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def main() -> None:
    """Make pictures, run the stages, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2_000)
    parser.add_argument("--trained", type=int, default=1_000, help="pictures of the run that trains; 0 for none")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/wukong-scale"), help="keeps what is finished")
    parser.add_argument("--only", nargs="+", default=[*DATA, *MODEL], choices=[*DATA, *MODEL], metavar="STAGE")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; run it again, it goes on"))
    folder: Path = options.folder
    demo = corpus.prepare(progress=False)
    entries = [entry for entry in demo.entries if min(entry.width, entry.height) >= served.SMALLEST]
    files = [demo.file(entry) for entry in entries]
    with object_store(folder / "home"):
        for name, count, names in (("data", options.pictures, DATA), ("model", options.trained, MODEL)):
            if count and set(names) & set(options.only):
                if not result_of(folder, f"{name}-{count}", "crawl").exists():
                    served.make(folder / "pictures", count, files)
                chosen = [stage for stage in names if stage in options.only]
                measure(folder, f"{name}-{count}", count, chosen, [entry.title for entry in entries], files[0])


@contextmanager
def object_store(home: Path) -> Iterator[None]:
    """Start the object store of an embedded stack; the environment leads to it."""
    home.mkdir(parents=True, exist_ok=True)
    stack = Stack.load_or_new(home)
    stack = stack.with_changes(ports=choose_ports(stack, (), {}))
    stack.save()
    services.start(stack, [services.ObjectStore()])
    os.environ |= {name: value for name, value in stack.variables().items() if name != "RAY_ADDRESS"}
    os.environ[environment.HOME] = str(home)  # where pairs wait for their shards, as in a run of `wukong run`
    try:
        yield
    finally:
        processes.stop(lambda: processes.find(stack.identity, services.scratch(home)))


def measure(folder: Path, name: str, count: int, names: list[str], titles: list[str], picture: Path) -> None:
    """Run the stages of one experiment, and print a line for each of ``names``."""
    listed = folder / f"{name}.parquet"
    if not listed.exists():
        write_list(listed, count, titles)
    experiment = experiment_of(name, listed)
    before = ["crawl", "filter", "validate"] if set(names) & {"copy", *MODEL} else []
    between = ["finetune"] if "evaluate" in names else []
    wanted = {*before, *names, *between}
    with serving(folder / "pictures") as port:
        os.environ["WUKONG_CONNECT_TO"] = f"{HOST}=127.0.0.1:{port}"
        for stage in (stage for stage in (*DATA, "features", "pretrain", "finetune", "evaluate") if stage in wanted):
            log = folder / f"{stage}.log"
            found = once(result_of(folder, name, stage), partial(run_stage, experiment, stage, log, picture))
            if stage in names or stage in between:
                print(
                    json.dumps({"stage": stage, "n": count, **found, **predicted(experiment, stage, count)}), flush=True
                )


@cache
def size() -> Size:
    """The size of the demo's model."""
    return Size.of(experiment_of("size", Path("none")).model)


def predicted(experiment: Experiment, stage: str, count: int) -> dict[str, float]:
    """The seconds that the plan predicts of a stage on this machine, and those of all its cores."""
    if stage == "copy":
        return {}
    kept = made(experiment, "filter").counts["train"] if stage not in ("crawl", "filter") else count
    work = Work(experiment, count, kept, size(), Capacity(CORES), measured_rates.load())
    if stage not in DATA:
        tokens = made(experiment, "validate").metrics["tokens_mean"] + 2  # [CLS] and [SEP]
        work = replace(work, caption_tokens=round(tokens))
    planned = estimate.of_features(work) if stage == "features" else stages.of(stage).estimate(work)  # type: ignore[misc]
    assert planned is not None
    seconds, start = planned.seconds, work.rates.of(stage).start
    if stage == "pretrain" and (features := estimate.of_features(work)):
        seconds -= features.seconds
    return {"predicted": round(seconds, 1), "predicted_core_seconds": round(start + (seconds - start) * CORES, 1)}


if __name__ == "__main__":
    main()
