"""Seconds and peak memory of a piece of work, each taken in a process of its own."""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resident() -> int:
    """Bytes this process holds in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def peak() -> int:
    """The most bytes this process held since ``reset_peak``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def reset_peak() -> None:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def extra_memory(work: Callable[[], Any]) -> int:
    """Bytes the work needs at its peak beyond what is held when it starts; what it returns counts."""
    reset_peak()
    before = resident()
    _kept = work()
    return peak() - before


def seconds(works: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Wall-clock seconds of each piece of work, the best of several rounds in which they take turns.

    What else the machine does only ever adds to a time, so the best is nearest to the work's own. The first round, in
    which libraries set up what they need, is not counted.
    """
    best = dict.fromkeys(works, float("inf"))
    for round_number in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if round_number:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def alone(script: str, *arguments: object) -> dict[str, Any]:
    """Run this script with arguments in a process of its own; its last line of output is JSON."""
    command = [sys.executable, script, *map(str, arguments)]
    # Freed blocks go back to the system at once, so that peaks are peaks of use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])


def plain(script: str, *arguments: object, python_path: Path | None = None) -> dict[str, Any]:
    """``alone`` with the allocator as it comes, for times, and with packages of a folder of their own."""
    command = [sys.executable, script, *map(str, arguments)]
    environment = {**os.environ, **({"PYTHONPATH": str(python_path)} if python_path else {})}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(result.stdout.splitlines()[-1])
