"""Find and stop the processes of a stack by the mark they carry, not by remembered process ids.

Every process of a stack has the stack's identity in its environment, and its children inherit it. That holds when the
process that started them is gone, and no id can be taken by a stranger.
"""

import time
from collections.abc import Callable, Iterable, Sequence
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
"""The same for Ray, which keeps nothing and whose control service does not end on SIGTERM."""

_ROUNDS = 5


class Marked(NamedTuple):
    """A live process of a stack and the name of the service it belongs to."""

    process: psutil.Process
    service: str


def find(identity: str, scratch: Path, service: str | None = None) -> list[Marked]:
    """The live processes of a stack, or of one of its services.

    Args:
        identity: the stack's identity.
        scratch: the folder of its Ray session.
        service: name of the one service to look for; None for all.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(MARK) == identity:
                belongs_to = environment.get(SERVICE_MARK, "")
            elif _is_ray_worker_of(process, scratch):
                belongs_to = "ray"
            else:
                continue
            if service in {None, belongs_to} and _is_alive(process):
                found.append(Marked(process, belongs_to))
    return found


def _is_ray_worker_of(process: psutil.Process, scratch: Path) -> bool:
    """Whether this is a worker or agent of a Ray session: they overwrite their environment with their title.

    What tells them is their log files, which lie in the session's folder.
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
    """Stop all processes that ``find_them`` gives, until it gives none; SIGTERM first, SIGKILL for what stays.

    Returns:
        how many processes were stopped.

    Raises:
        StackError: some cannot be stopped.
    """
    stopped: set[int] = set()
    for _ in range(_ROUNDS):
        found = find_them()
        if not found and stopped:
            # Between fork and exec a process shows no environment: look once more.
            time.sleep(0.2)
            found = find_them()
        if not found:
            return len(stopped)
        stopped.update(marked.process.pid for marked in found)
        alive = [marked.process for marked in found]
        ray = {marked.process for marked in found if marked.service == "ray"}
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
    """Wait for processes to end and give those that have not. One whose parent has yet to notice has ended."""
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
