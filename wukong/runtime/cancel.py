"""End a process together with the run it belongs to: when it gets a signal, or when the run's own process is gone."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ENDS_WITH = "WUKONG_ENDS_WITH"
"""Environment variable: the number of the process that this one must not outlive. A run on one machine sets it for its
components, a component for its job."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that cancel. A component and a job get SIGTERM; a terminal sends SIGINT to all processes of a run, and SIGHUP
when it closes, which ``nohup`` has them ignore."""

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 9.0  # between SIGTERM and SIGKILL, when the watched process is gone

log = logging.getLogger(__name__)


class JobLeftError(SystemExit):
    """This process is being ended and its stage's job goes on, so that a later process takes it over.

    It is a ``SystemExit``, and not a failure of the stage: what is open for the stage stays open.
    """


class _Cancelled:
    """Whether this process is being cancelled: a second signal must not interrupt the cleaning up."""

    already = False


@contextmanager
def end_on_signal(stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """End the block by SystemExit at the first of ``SIGNALS``, after a call of ``stop``; ignore later signals.

    Only the main thread gets signals. In another thread the block runs without this.

    Args:
        stop: ends what the block started, or raises ``JobLeftError`` where that is to go on.

    Raises:
        SystemExit: this process got a signal; the exit status is 128 plus the signal's number.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        if not _Cancelled.already:
            _Cancelled.already = True
            raise SystemExit(128 + number)

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in SIGNALS if number is not signal.SIGHUP or not ignored]
    previous = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        stop()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Watch the process that ``WUKONG_ENDS_WITH`` names, in a thread, and end this process when that one is gone.

    A process that is killed cannot end the processes it started. They would go on writing beside the next run's.
    Without the variable nothing is watched.
    """
    named = os.environ.get(ENDS_WITH, "")
    if named.isdigit():
        threading.Thread(target=_end_after, args=(int(named),), name="ends-with-parent", daemon=True).start()


def _end_after(process: int) -> None:
    while is_running(process):
        time.sleep(_POLL_SECONDS)
    log.error("process %d, to which this one belongs, is gone: ending", process)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def is_running(process: int) -> bool:
    """Whether a process exists and has not ended. One that ended and was not waited for (a zombie) has ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return True  # a system without /proc, or the process ended after os.kill: the next call returns False
    return fields[:1] not in (["Z"], ["X"])
