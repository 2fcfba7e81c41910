"""Look at a process and its children while they run, and give them a folder for temporary files with a quota."""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

MIB = 2**20
LARGE = 300 * MIB
"""Of memory; Ray's own processes, which have less, are not named."""


class Watch(threading.Thread):
    """Looks at a part while it runs: memory of its processes, temporary files, when a training takes its first step.

    Attributes:
        memory: most bytes of a process, by its name.
        disk: most bytes of the temporary files.
        first_step: seconds until the log said that a training takes steps; None before.
    """

    def __init__(self, process: psutil.Popen, scratch: Path, log: Path, mounted: bool) -> None:
        super().__init__(daemon=True)
        self._process, self._scratch, self._log, self._mounted = process, scratch, log, mounted
        self._ended, self._began = threading.Event(), time.monotonic()
        self.memory: dict[str, int] = {}
        self.disk = 0
        self.first_step: float | None = None

    def run(self) -> None:
        due = 0.0
        while not self._ended.wait(0.05):
            self.disk = max(self.disk, self._bytes())
            if time.monotonic() < due:
                continue
            due = time.monotonic() + 0.5
            for each in tree(self._process):
                with suppress(psutil.Error):
                    name = "driver" if each.pid == self._process.pid else each.name().partition(".")[0]
                    self.memory[name] = max(self.memory.get(name, 0), each.memory_info().rss)
            if self.first_step is None and "training on " in self._log.read_text(errors="replace"):
                self.first_step = round(time.monotonic() - self._began, 1)

    def _bytes(self) -> int:
        if self._mounted:
            return shutil.disk_usage(self._scratch).used
        files = [path for path in self._scratch.rglob("*") if not path.is_dir()]
        opened = [fd for each in tree(self._process) for fd in listed(Path(f"/proc/{each.pid}/fd"))]
        deleted = [fd for fd in opened if is_deleted(fd, self._scratch)]
        return sum(map(size_of, [*files, *deleted]))

    def end(self) -> dict[str, Any]:
        self._ended.set()
        self.join()
        mib = {name: round(held / MIB) for name, held in self.memory.items() if held > LARGE}
        return {"disk_mib": round(self.disk / MIB, 1), "memory_mib": mib, "first_step": self.first_step}


def tree(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def listed(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [*folder.iterdir()]
    return []


def is_deleted(opened: Path, folder: Path) -> bool:
    with suppress(OSError):
        target = str(opened.readlink())
        return target.startswith(str(folder)) and target.endswith("(deleted)")
    return False


def size_of(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


@contextmanager
def quota(folder: Path, most: int) -> Iterator[bool]:
    """Empty a folder, and mount a file system of so many bytes there; yields whether that is allowed here."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={most}", "tmpfs", str(folder)]
    mounted = not subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
