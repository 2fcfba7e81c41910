"""Rehearse the paper at its own size: published sets in a slow store, trainings with validation, and evaluations.

    make bench NAME=paper_size                        up to 150 minutes on two cores
    make bench NAME=paper_size ARGS='--share 0.01'    some minutes

Nine published sets lie in the object store of an embedded stack, with their numbers of pictures, classes and prompts:
ImageNet, SUN397 and Flickr30K-CN whole, six others by a tenth. Their pictures are small. A proxy adds 20 ms to each
request. Three columns of Table 5, in small versions, are pre-trained with validation on ImageNet and evaluated. One
training is killed after a validation and goes on.

A folder for temporary files has a quota: that of a pod, 2 GiB, by the share of the pictures' bytes, and the share of
numbers in a vector; and for each worker of a training a checkpoint. It is mounted where that is allowed. Otherwise its
size is looked at all the time, and the benchmark fails above the quota. Ray's own folder lies elsewhere. On a tenth of
each set, the metrics of the jobs must be those of the evaluator in one process.

Each part that has finished is a file in the folder, so a benchmark that was killed goes on.
"""

import argparse
import io
import json
import os
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "scale"), str(ROOT)]

import psutil  # noqa: E402
import pyarrow as pa  # noqa: E402
import run  # noqa: E402
import sizes  # noqa: E402
from sizes import COLUMNS, STORAGE  # noqa: E402
from slow_store import SlowStore  # noqa: E402
from watch import MIB, Watch, quota, tree  # noqa: E402

from wukong.evaluate import sets as published  # noqa: E402
from wukong.store import storage  # noqa: E402

QUOTA = 2**31 // 64
"""Of temporary files: a pod's 2 GiB. A picture has 1 KB in place of 110, and a vector 16 numbers in place of 256."""
CHECKPOINT, WORKERS = 22 * MIB, 2
"""Each worker of a training copies the checkpoint from which it goes on, as the plan says."""
PAIRS, SHARD = 20_000, 1_000
KILLED = "vit-l"
TENTH, RESTART_SECONDS = 0.1, 60
VALIDATION = re.compile(r"validation after step \d+, (\d+\.\d+) s")


class Rehearsal:
    """What all parts need.

    Args:
        folder: keeps what has finished.
        share: of the published numbers of pictures.
        slow: the proxy before the store.
    """

    def __init__(self, folder: Path, share: float, slow: SlowStore) -> None:
        self.folder, self.share, self._slow = folder, share, slow
        self.pairs = max(round(PAIRS * share), 1_024)

    def done(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do a part, unless its result is in the folder, and print it."""
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        found = run.once(self.folder / f"{name}.json", lambda: work() | {"seconds": round(time.monotonic() - began, 1)})
        print(json.dumps({"part": name, **{key: value for key, value in found.items() if key != "told"}}), flush=True)
        return found

    def write_set(self, root: str, name: str, share: float) -> dict[str, Any]:
        """Write a set to a folder and to the bucket."""
        local = self.folder / root / name
        shutil.rmtree(local, ignore_errors=True)
        sizes.write(local, name, share)
        files = [path for path in local.rglob("*") if path.is_file()]
        send(local, files, f"{STORAGE}/{root}/{name}")
        return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}

    def write_pairs(self) -> dict[str, Any]:
        """Write what a filter leaves: pictures whose captions name a class."""
        stage = sizes.pairs_stage(self.pairs)
        names, parts = [each.chinese for each in published.of("imagenet").classes], []
        for number, start in enumerate(range(0, self.pairs, SHARD)):
            rows = range(start, min(start + SHARD, self.pairs))
            keys = [f"{row:016x}" for row in rows]
            shard = io.BytesIO()
            with tarfile.open(fileobj=shard, mode="w") as tar:
                for row, key in zip(rows, keys, strict=True):
                    entry, data = tarfile.TarInfo(f"{key}.jpg"), sizes.picture(10**6 + row)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
            storage.write_bytes(stage.path(f"train/{number:05d}.tar"), shard.getvalue())
            captions = [f"一张{names[row % len(names)]}的照片，第{row}张" for row in rows]
            table = {"key": keys, "url": [f"http://x/{key}.jpg" for key in keys], "caption": captions, "sha256": keys}
            storage.write_table(stage.path(f"train/{number:05d}.parquet"), pa.table(table))
            parts += [stage.describe(f"train/{number:05d}{end}", len(keys)) for end in (".parquet", ".tar")]
        stage.commit(parts, counts={"train": self.pairs})
        return {"pairs": self.pairs}

    def ran(
        self,
        part: str,
        column: str,
        root: str = "sets",
        share: float | None = None,
        is_over: Callable[[str], bool] | None = None,
    ) -> dict[str, Any]:
        """Run a part as a process behind the slow store; kill it when ``is_over`` says so of its log."""
        scratch, log = self.folder / "tmp", self.folder / f"{part}-{column}.log"
        before = self._slow.requests.total()
        self._slow.read.clear()
        arguments = [part, column, root, str(share or self.share), str(self.pairs), str(self.folder / root)]
        # The evaluator in one process is a command of one machine, whose disk holds what it compares.
        most = {"train": QUOTA + WORKERS * CHECKPOINT, "evaluate": QUOTA, "compare": 2**31}[part]
        said = log.with_suffix(".out")
        with (
            quota(scratch, most) as mounted,
            tempfile.TemporaryDirectory(prefix="wukong-", ignore_cleanup_errors=True) as of_ray,
            log.open("w") as told,
            said.open("w") as output,
        ):
            given = {
                "AWS_ENDPOINT_URL_S3": self._slow.endpoint, "TMPDIR": str(scratch), "RAY_TMPDIR": of_ray,
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
                "RAY_USAGE_STATS_ENABLED": "0", "LC_ALL": "C.UTF-8",
            }  # fmt: skip
            command = [sys.executable, str(HERE / "part.py"), *arguments]
            process = psutil.Popen(command, env=os.environ | given, stdout=output, stderr=told, cwd=ROOT)
            watch = Watch(process, scratch, log, mounted)
            watch.start()
            try:
                while process.poll() is None and (is_over is None or not is_over(log.read_text())):
                    time.sleep(0.2)
            finally:
                for each in tree(process):
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
            process.wait()
            seen = watch.end() | {"requests": self._slow.requests.total() - before}
        if is_over is None and process.returncode:
            sys.exit(f"{part} of {column} failed:\n{log.read_text(errors='replace')[-3000:]}")
        if is_over is not None and not process.returncode:
            sys.exit(f"{part} of {column} ended before it was killed")
        if seen["disk_mib"] * MIB > most:
            sys.exit(f"{part} of {column} has had {seen['disk_mib']} MiB of temporary files, above {most // MIB}")
        # An archive of at most 64 MiB is read once more, for the key (``set_folders.digest_of``).
        pictures = {
            " ".join(place): times
            for place, times in self._slow.read.items()
            if place[0].lower().endswith((".jpg", ".jpeg"))
        }
        asked = max(pictures, key=lambda place: pictures[place], default="")
        seen |= {"pictures_asked_for": len(pictures), "most_asked": asked, "most_times": pictures.get(asked, 0)}
        answer = [line for line in said.read_text().splitlines() if line.startswith("{")] or ["{}"]
        seconds = [float(found) for found in VALIDATION.findall(log.read_text(errors="replace"))]
        seen |= {"most_disk_mib": most // MIB, "mounted": mounted}
        return seen | {"validations": seconds, "told": json.loads(answer[-1])}


def send(folder: Path, files: list[Path], uri: str) -> None:
    with ThreadPoolExecutor(16) as senders:
        targets = [storage.join(uri, path.relative_to(folder).as_posix()) for path in files]
        list(senders.map(storage.upload, files, targets))


def rehearse(given: Rehearsal) -> None:
    tenth = given.share if given.share <= TENTH else given.share * TENTH
    roots = {"sets": given.share} | ({} if tenth == given.share else {"tenth": tenth})
    for root, share in roots.items():
        for name in sizes.SHARES:
            given.done(f"{root}-{name}", partial(given.write_set, root, name, share))
    given.done("pairs", given.write_pairs)

    def is_validated(log: str) -> bool:
        root = sizes.experiment(KILLED, "sets", given.pairs).root
        return "validation after step" in log and bool(storage.list_files(f"{root}/pretrain", "checkpoint.json"))

    given.done("killed", lambda: given.ran("train", KILLED, is_over=is_validated))
    parts = {name: given.done(f"train-{name}", partial(given.ran, "train", name)) for name in COLUMNS}
    evaluated = {name: given.done(f"evaluate-{name}", partial(given.ran, "evaluate", name)) for name in COLUMNS}
    last = [*roots][-1]
    if last != "sets":
        evaluated = {
            name: given.done(f"tenth-{name}", partial(given.ran, "evaluate", name, last, tenth)) for name in COLUMNS
        }
    for name in COLUMNS:
        alone = given.done(f"compare-{name}", partial(given.ran, "compare", name, last, tenth))["told"]
        job = {key: value for key, value in evaluated[name]["told"].items() if key.startswith("eval/")}
        if not alone or job != alone:
            other = {
                key: (job.get(key), alone.get(key)) for key in job.keys() | alone if job.get(key) != alone.get(key)
            }
            sys.exit(f"{name}: the job's metrics are not those of one process: {other}")
        print(f"{name}: {len(alone)} metrics of the job are those of the evaluator in one process")
    for name, part in parts.items():
        (took, *_), speed = part["validations"], part["told"]["pairs_per_second"]
        epoch = given.pairs / speed
        print(
            f"{name}: a validation takes {took:.1f} s, {took / (took + epoch):.0%} of an epoch of {given.pairs:,} pairs"
        )
    print(f"first step {parts[KILLED]['first_step']} s after the restart (target: {RESTART_SECONDS})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the numbers of pictures and pairs")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/wukong-paper-size"), help="keeps what is finished")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended; run it again, it goes on"))
    with run.object_store(options.folder / "home"):
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # no MLflow runs
        slow = SlowStore(os.environ["AWS_ENDPOINT_URL_S3"])
        rehearse(Rehearsal(options.folder.resolve(), options.share, slow))
    print(f"{(time.monotonic() - began) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
