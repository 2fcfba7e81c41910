"""Time `make test` and `make test-all`: where their seconds go, by folder, phase, test and kind of process.

A selection of tests runs as the Makefile runs it. Twice a second all processes of its session are looked at, which
``conftest.py`` marks: what each is, whether it has loaded torch or Ray, and the seconds of a core that it has used.
What no process uses is waiting.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.tests.defects import ROOT, TEST, TEST_ALL, show
from conftest import SESSION

KINDS = (
    ("Ray: worker", r"^ray::|default_worker\.py"),
    ("Ray: services", r"raylet|gcs_server|ray/dashboard|ray/autoscaler|ray/_private|runtime_env"),
    ("object store", r"seaweedfs|/weed\b|radosgw|minio"),
    ("MLflow", r"mlflow|uvicorn|gunicorn"),
    ("browser", r"chrom|playwright"),
    ("API server", r"kube-apiserver|etcd"),
    ("Prometheus", r"prometheus|promtool"),
    ("wukong command", r"/wukong |-m cli\.main"),
    ("pytest", r"-c import sys;exec|pytest"),
    ("other Python", r"python"),
    ("other", r""),
)
"""Kinds of processes by what their command line holds; the first that fits."""
_LOOK_SECONDS = 0.5
_LIBRARIES = {"torch": "libtorch_cpu", "Ray": "_raylet"}


@dataclass
class Seen:
    """A process, when it was last looked at.

    Attributes:
        kind: one of `KINDS`.
        cpu: seconds of a core.
        loaded: those of torch and Ray that it has loaded.
    """

    kind: str
    cpu: float
    loaded: frozenset[str]


def main() -> int:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", action="append", help="marks of the tests; by default both selections, one by one")
    parser.add_argument("--most", type=int, default=25, help="tests to list")
    parser.add_argument("paths", nargs="*", help="files or folders of tests; by default all")
    options = parser.parse_args()
    status = 0
    for selection in options.tests or (TEST, TEST_ALL):
        status |= measure(selection, options.paths, options.most)
    return status


def measure(selection: str, paths: Iterable[str], most: int) -> int:
    """Run a selection of tests, print where its seconds went, and return the exit status of pytest."""
    command = [sys.executable, "-m", "pytest", "-m", selection, *flags(), "-vv", "--durations=0", "--durations-min=0"]
    seen: dict[tuple[int, float], Seen] = {}
    over = threading.Event()
    with tempfile.TemporaryFile("w+") as output:
        began = time.monotonic()
        process = subprocess.Popen([*command, *paths], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        watch = threading.Thread(target=_watch, args=(process.pid, seen, over))
        watch.start()
        status = process.wait()
        wall = time.monotonic() - began
        over.set()
        watch.join()
        output.seek(0)
        lines = output.read().splitlines()
    show(f"\n## -m '{selection}': {wall:.0f} s on {os.cpu_count()} cores, {lines[-1].strip('= ')}\n")
    _print_processes(seen.values(), wall)
    _print_tests(lines, most)
    return status


def flags() -> list[str]:
    """Return how the Makefile spreads files over processes."""
    (found,) = re.findall(r"^FILES_AT_A_TIME := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    return str(found).split()


def durations(lines: Iterable[str]) -> dict[tuple[str, str], float]:
    """Return seconds by test and phase, from what ``--durations`` prints."""
    found = (re.match(r"([\d.]+)s (setup|call|teardown) +(\S.*)$", line) for line in lines)
    return {(match[3], match[2]): float(match[1]) for match in found if match}


def kind(command: str) -> str:
    """Return what a process is, by its command line."""
    return next(name for name, pattern in KINDS if re.search(pattern, command))


def _watch(session: int, seen: dict[tuple[int, float], Seen], over: threading.Event) -> None:
    while not over.wait(_LOOK_SECONDS):
        for process in psutil.process_iter():
            try:
                with process.oneshot():
                    if process.pid != session and process.environ().get(SESSION) != str(session):
                        continue
                    times = process.cpu_times()
                    command = " ".join(process.cmdline()) or process.name()
                    seen[process.pid, process.create_time()] = Seen(
                        kind(command), times.user + times.system, _loaded(process.pid)
                    )
            except (psutil.Error, OSError):
                continue


def _loaded(pid: int) -> frozenset[str]:
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    return frozenset(name for name, library in _LIBRARIES.items() if library in maps)


def _print_processes(seen: Iterable[Seen], wall: float) -> None:
    by_kind: dict[str, list[Seen]] = defaultdict(list)
    for each in seen:
        by_kind[each.kind].append(each)
    show(f"{'processes':<18}{'started':>8}{'with torch':>12}{'with Ray':>10}{'core-s':>9}")
    for name, _ in KINDS:
        of_kind = by_kind.get(name, [])
        loaded = Counter(library for each in of_kind for library in each.loaded)
        used = sum(each.cpu for each in of_kind)
        if of_kind:
            show(f"{name:<18}{len(of_kind):>8}{loaded['torch']:>12}{loaded['Ray']:>10}{used:>9.0f}")
    used, there = sum(each.cpu for of_kind in by_kind.values() for each in of_kind), wall * (os.cpu_count() or 1)
    show(f"{'cores without work':<48}{max(there - used, 0):>9.0f}\n")


def _print_tests(lines: Iterable[str], most: int) -> None:
    seconds = durations(lines)
    by_folder: dict[str, Counter[str]] = defaultdict(Counter)
    by_file: Counter[str] = Counter()
    by_test: Counter[str] = Counter()
    for (test, phase), taken in seconds.items():
        file = test.partition("::")[0]
        by_folder["/".join(Path(file).parts[1:-1][:2]) or "tests"][phase] += taken
        by_file[file] += taken
        by_test[test] += taken
    show(f"{'folder':<24}{'setup':>8}{'call':>8}{'teardown':>10}")
    for folder, phases in sorted(by_folder.items(), key=lambda each: -each[1].total()):
        show(f"{folder:<24}{phases['setup']:>8.0f}{phases['call']:>8.0f}{phases['teardown']:>10.0f}")
    _print_most("file", by_file, most)
    _print_most("test", by_test, most)


def _print_most(what: str, seconds: Mapping[str, float], most: int) -> None:
    show(f"\n{'seconds':>8}  {what}")
    for name, taken in sorted(seconds.items(), key=lambda each: -each[1])[:most]:
        show(f"{taken:>8.1f}  {name}")


if __name__ == "__main__":
    sys.exit(main())
