"""Find and stop the processes of a stack by a variable in their environment, not by stored process ids.

Every process of a stack has the stack's identity in its environment, and its children inherit it. This works also if
the parent process has ended, and a process id that was reused cannot be mistaken.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from wukong.errors import StackError

MARK = "WUKONG_STACK_ID"
SERVICE_MARK = "WUKONG_STACK_SERVICE"

_GRACE = 8.0
"""Seconds between SIGTERM and SIGKILL."""

_RAY_GRACE = 2.0
"""The same for Ray, which has no data to save and whose control service does not end on SIGTERM."""

_ROUNDS = 5


class Marked(NamedTuple):
    """A running process of a stack, and the name of its service."""

    process: psutil.Process
    service: str


def find(identity: str, scratch: Path, services: Collection[str] | None = None) -> list[Marked]:
    """Return the running processes of a stack, or of some of its services.

    Args:
        identity: the stack's identity.
        scratch: the folder of its Ray session.
        services: names of the services to look for; None for all.
    """
    marked = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(MARK) == identity:
                belongs_to = environment.get(SERVICE_MARK, "")
            elif _is_ray_worker_of(process, scratch):
                belongs_to = "ray"
            else:
                continue
            if (services is None or belongs_to in services) and _is_alive(process):
                marked.append(Marked(process, belongs_to))
    return marked


def _is_ray_worker_of(process: psutil.Process, scratch: Path) -> bool:
    """Return whether this is a worker or agent of a Ray session.

    These processes overwrite their environment with their title. They are recognised by their log files, which are in
    the session's folder.
    """
    if not process.name().startswith("ray::"):
        return False
    prefix = f"{scratch}/"
    return any(
        str(link.readlink()).startswith(prefix)
        for link in Path(f"/proc/{process.pid}/fd").iterdir()
        if link.is_symlink()
    )


def stop(find_them: Callable[[], list[Marked]]) -> int:
    """Stop all processes that ``find_them`` returns, until it returns none; SIGTERM first, then SIGKILL.

    Returns:
        The number of processes.

    Raises:
        StackError: some processes cannot be stopped.
    """
    stopped: set[int] = set()
    for _ in range(_ROUNDS):
        running = find_them()
        if not running:
            # While a process executes another program its environment cannot be read, so search once more.
            time.sleep(0.2)
            running = find_them()
        if not running:
            return len(stopped)
        stopped.update(marked.process.pid for marked in running)
        alive = [marked.process for marked in running]
        ray = {marked.process for marked in running if marked.service == "ray"}
        _signal(alive, psutil.Process.terminate)
        alive = _wait(alive, _RAY_GRACE)
        _signal([process for process in alive if process in ray], psutil.Process.kill)
        alive = _wait(alive, _GRACE - _RAY_GRACE)
        _signal(alive, psutil.Process.kill)
        _wait(alive, _GRACE)
    if left := find_them():
        names = ", ".join(f"pid {marked.process.pid} ({marked.service})" for marked in left)
        raise StackError(f"cannot stop {names}: end them by hand, as the user who started them or as root")
    return len(stopped)


def _wait(targets: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for processes to end, and return those that still run. A zombie counts as ended."""
    deadline = time.monotonic() + seconds
    alive = list(targets)
    while alive := [process for process in alive if _is_alive(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(targets: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in targets:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            send(process)
