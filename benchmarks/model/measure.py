"""Measure seconds and peak memory of a piece of work, each in a separate process."""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

OPEN_CLIP = ("open_clip_torch==3.3.0", "ftfy==6.3.1", "wcwidth==0.9.4")
CN_CLIP = ("cn-clip==1.6.0",)
"""Without torch, timm and their requirements, which come from this environment."""


def resident() -> int:
    """Return the bytes of memory that this process uses now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def peak() -> int:
    """Return the most bytes of memory that this process has used since ``reset_peak``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def reset_peak() -> None:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def extra_memory(work: Callable[[], Any]) -> int:
    """Return the additional bytes that the work needs at its peak; its result counts too."""
    reset_peak()
    before = resident()
    _kept = work()
    return peak() - before


def seconds(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the elapsed seconds of each piece of work: the best of several rounds in which they alternate.

    Other load on the machine can only increase a time, so the best is closest to the true time. The first round is not
    counted, because libraries initialise themselves in it.
    """
    best = dict.fromkeys(works, float("inf"))
    for round_number in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if round_number:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def installed(work: Path, name: str, packages: Sequence[str]) -> Path:
    """Return a folder with packages, without their requirements, which come from this environment."""
    folder = work / name
    if not folder.exists():
        print(f"installing {name}", flush=True)
        partial = work / f"{name}.partial"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", partial, *packages]
        subprocess.run(command, check=True)
        partial.rename(folder)
    return folder


def run_for_memory(script: str, *arguments: object) -> dict[str, Any]:
    """Run a script in a separate process to measure memory; its last line of output is JSON."""
    command = [sys.executable, script, *map(str, arguments)]
    # The allocator returns freed blocks to the system immediately, so that peaks are peaks of used memory.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def run_for_time(script: str, *arguments: object, python_path: Sequence[Path] = ()) -> dict[str, Any]:
    """Run a script in a separate process to measure time, with the default allocator and additional import paths."""
    command = [sys.executable, script, *map(str, arguments)]
    paths = [*map(str, python_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])
