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
QUOTA = 2**31 // 64
"""Of temporary files: a pod's 2 GiB. A picture has 1 KB in place of 110, and a vector 16 numbers in place of 256."""


class Watch(threading.Thread):
    """Looks at a part while it runs: memory of its processes, temporary files, and what its log and events say.

    Attributes:
        memory: most bytes of a process, by its name.
        disk: most bytes of the temporary files.
        first_step: seconds until a training had taken steps; None before.
    """

    def __init__(self, process: psutil.Popen, scratch: Path, events: Path, mounted: bool) -> None:
        super().__init__(daemon=True)
        self._process, self._scratch, self._events, self._mounted = process, scratch, events, mounted
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
                    name = "driver" if each.pid == self._process.pid else each.name()
                    self.memory[name] = max(self.memory.get(name, 0), each.memory_info().rss)
            if self.first_step is None and '"what":"training"' in self._events.read_text():
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
        mib = {name: round(held / MIB) for name, held in sorted(self.memory.items(), key=lambda each: -each[1])}
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
def quota(folder: Path) -> Iterator[bool]:
    """Mount a file system of the quota's size on a folder; yields whether that is allowed here."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={QUOTA}", "tmpfs", str(folder)]
    mounted = not subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
