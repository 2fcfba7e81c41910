"""Time a whole run on distinct pictures beside what `wukong plan` predicts of it.

    python benchmarks/scale/run.py --pictures 20000 --trained 4000 --folder /tmp/scale

``--pictures`` JPEGs (crops of the demo's pictures, each with a seed of its own) go from a list of URLs through crawl,
filter and validate; a run of its own takes ``--trained`` of them through features, an epoch and evaluate. Each stage is a
process with an embedded Ray, as `wukong run` starts it, on the object store of an embedded stack whose home is in the
folder. A stage that is in the folder already is not run again, so a benchmark that was killed goes on.

A line of JSON is printed for each stage: seconds with its start, seconds of all cores (without the object store's), peak MiB
of its driver and of its largest task, bytes written, and the seconds that were predicted. ``copy`` is the sequential limit: one
process reads the shards of the filter and writes them again.
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
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import served
import yaml

from infra import corpus, stack
from wukong.config import documents, stored
from wukong.config.experiment import Experiment
from wukong.runs import run_records
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

ROOT = Path(__file__).parents[2]
HOST = "pictures.wukong.test"
DATA = ("crawl", "filter", "validate", "copy")
MODEL = ("features", "pretrain", "evaluate")
MIB = 2**20
_LOOK_SECONDS = 0.1
_FEATURES = """
import sys
from ray_jobs import __main__ as driver, features
from wukong.config import stored
from wukong.store import manifest
driver._connect()
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


class Watch(threading.Thread):
    """Peak memory and seconds of the cores of a driver and of all processes that it starts."""

    def __init__(self, driver: int) -> None:
        super().__init__(daemon=True)
        self._driver = psutil.Process(driver)
        self._seconds: dict[int, float] = {}
        self._ended = threading.Event()
        self.driver_bytes = self.task_bytes = 0

    def run(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
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

    def end(self) -> dict[str, float]:
        self._ended.set()
        self.join()
        return {
            "core_seconds": round(sum(self._seconds.values()), 1),
            "driver_mib": round(self.driver_bytes / MIB),
            "task_mib": round(self.task_bytes / MIB),
        }


def run_stage(experiment: Experiment, stage: str, log: Path) -> dict[str, Any]:
    """Run a stage in a process of its own and return what was measured."""
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
        watch = Watch(process.pid)
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
    filtered, began, size = made(experiment, "filter"), time.monotonic(), 0
    for part in filtered.parts:
        if part.path.endswith(".tar"):
            data = storage.read_bytes(storage.join(filtered.uri, part.path))
            storage.write_bytes(storage.join(experiment.root, "copy", part.path), data)
            size += len(data)
    return {"seconds": round(time.monotonic() - began, 1), "bytes": size}


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
    served.make(folder / "pictures", max(options.pictures, options.trained), [demo.file(entry) for entry in entries])
    held = stack.up(folder / "home", only=["seaweedfs"])
    os.environ |= held.environment()
    del os.environ["RAY_ADDRESS"]  # each stage starts its own
    try:
        for name, count, names in (("data", options.pictures, DATA), ("model", options.trained, MODEL)):
            if count and set(names) & set(options.only):
                measure(folder, f"{name}-{count}", count, [stage for stage in names if stage in options.only], entries)
    finally:
        stack.down(folder / "home")


def measure(folder: Path, name: str, count: int, names: list[str], entries: list[corpus.Entry]) -> None:
    """Run the stages of one experiment, and print a line for each."""
    listed = folder / f"{name}.parquet"
    if not listed.exists():
        write_list(listed, count, [entry.title for entry in entries])
    experiment = experiment_of(name, listed)
    with serving(folder / "pictures") as port:
        os.environ["WUKONG_CONNECT_TO"] = f"{HOST}=127.0.0.1:{port}"
        needed = [stage for stage in ("crawl", "filter", "validate") if stage not in names and "copy" not in names]
        for stage in [*needed, *names]:
            file = folder / f"{name}-{stage}.json"
            if stage == "copy":
                work: Callable[[], Mapping[str, Any]] = lambda: copy(experiment)  # noqa: E731
            elif stage == "evaluate":
                once(folder / f"{name}-finetune.json", lambda: run_stage(experiment, "finetune", folder / "finetune.log"))
                work = lambda: run_stage(experiment, "evaluate", folder / "evaluate.log")  # noqa: E731
            else:
                work = lambda stage=stage: run_stage(experiment, stage, folder / f"{stage}.log")  # noqa: E731
            found = once(file, work)
            if stage in names:
                print(json.dumps({"stage": stage, "n": count, **found}), flush=True)


if __name__ == "__main__":
    main()
