"""How what belongs to a run ends with it: by a signal, in order and once, or because the run's own process is gone."""

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
"""Names the process without which this one must not go on: a run on one machine, or a job's component."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What cancels: the first is sent to a component and to a job, the second comes from a terminal to all of them."""

_LOOK_SECONDS = 0.5
_ORDER_SECONDS = 9.0  # for an end in order, after which there is another end

log = logging.getLogger(__name__)


class _Cancelled:
    """Whether this process is being cancelled: a second signal must not interrupt what ends it in order."""

    already = False


@contextmanager
def cancelled_with_us(stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """End the block by SystemExit at the first SIGTERM or interrupt, and call ``stop`` then; later ones are ignored.

    Elsewhere than in the main thread, which alone gets signals, the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: FrameType | None) -> None:
        if not _Cancelled.already:
            _Cancelled.already = True
            raise SystemExit(128 + number)

    previous = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        stop()
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Watch the process that ``WUKONG_ENDS_WITH`` names, if it names one, and end this one when it is gone.

    A process that is killed ends nothing it started. What it left would go on writing, beside the next run.
    """
    named = os.environ.get(ENDS_WITH, "")
    if named.isdigit():
        threading.Thread(target=_end_after, args=(int(named),), name="ends-with-parent", daemon=True).start()


def _end_after(process: int) -> None:
    while lives(process):
        time.sleep(_LOOK_SECONDS)
    log.error("process %d, to which this one belongs, is gone: ending", process)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORDER_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def lives(process: int) -> bool:
    """Whether a process is there and has not ended; one whose parent has yet to notice its end has ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return True  # a system without /proc, or it has ended between the two looks: the next look tells
    return fields[:1] not in (["Z"], ["X"])
