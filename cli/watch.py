"""What `wukong run` shows of a run that goes on."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.text import Text

from wukong.commands.output import Console, Table
from wukong.runtime import progress
from wukong.runtime.events import Advanced, Begun, Ended, Event, Measured, Reader
from wukong.runtime.language import translated

_LOOK_SECONDS = 0.2  # between two looks at the events
_BLOCKS = "▁▂▃▄▅▆▇█"
_POINTS = 40  # of a curve


@contextmanager
def waiting(console: Console) -> Iterator[Callable[[str], None]]:
    """Give what says what a command waits for, in English: a line each, on a terminal one that goes away at the end."""
    if not console.is_terminal:
        yield lambda what: console.out(f"{translated(what)} …", highlight=False)
        return
    status = console.status("")

    def tell(what: str) -> None:
        status.update(f"{translated(what)} …")
        status.start()

    try:
        yield tell
    finally:
        status.stop()


class Watch:
    """Shows a run as a table of stages; without a terminal as lines, of which one a minute says how far a stage is.

    The run's events say what has happened. What a training measures is drawn as a curve.
    """

    def __init__(self, console: Console, reader: Reader) -> None:
        self._console = console
        self._reader = reader
        self._turn = threading.Lock()
        self._done: list[tuple[str, str, float]] = []
        self._began = self._told = time.monotonic()
        self._step: Advanced | None = None
        self._measured: dict[str, list[Measured]] = {}
        self._live: Live | None = None
        self._current = ""

    @contextmanager
    def shown(self) -> Iterator["Watch"]:
        """Follow the events while the block runs, and draw the table where the terminal can."""
        over = threading.Event()
        follower = threading.Thread(target=self._follow, args=(over,), name="follows-events", daemon=True)
        with ExitStack() as ends:
            if self._console.is_terminal:
                self._live = ends.enter_context(Live(self, console=self._console, refresh_per_second=8, transient=True))
            follower.start()
            ends.callback(follower.join)
            ends.callback(over.set)
            yield self

    def catch_up(self) -> None:
        """Take all events that have been written."""
        with self._turn:
            for event in self._reader.new():
                self._take(event)

    def _follow(self, over: threading.Event) -> None:
        while not over.wait(_LOOK_SECONDS):
            self.catch_up()
        self.catch_up()

    def _take(self, event: Event) -> None:
        if isinstance(event, Begun):
            self._current, self._step, self._measured = event.stage, None, {}
            self._began = self._told = time.monotonic()
        elif isinstance(event, Ended):
            mark = "✓" if event.state == "succeeded" else "✗"
            self._done.append((mark, event.stage, event.seconds))
            self._print(f"{mark} {event.stage}  {event.seconds:.1f} s")
            self._current = ""
        elif isinstance(event, Measured):
            self._measured.setdefault(event.name, []).append(event)
        else:
            self._step = event = event.model_copy(
                update={"what": translated(event.what), "unit": translated(event.unit)}
            )
            if event.done >= event.total or time.monotonic() - self._told >= progress.LINE_SECONDS:
                self._told = time.monotonic()
                measured = (points[-1].sentence() for points in self._measured.values())
                self._print(f"  {'; '.join(map(translated, [event.sentence(), *measured]))}")

    def _print(self, text: str) -> None:
        if self._live is None:
            self._console.out(text, highlight=False)

    def __rich__(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        for mark, stage, seconds in self._done:
            table.add_row(Text(mark, "green" if mark == "✓" else "red"), stage, f"{seconds:6.1f} s", "")
        if self._current:
            seconds = time.monotonic() - self._began
            row: list[RenderableType] = [Spinner("dots"), self._current, f"{seconds:6.1f} s"]
            if self._step is not None:
                step, bar = self._step, Table.grid(padding=(0, 1))
                bar.add_row(
                    ProgressBar(total=max(step.total, 1), completed=step.done, width=30),
                    f"{step.what}: {step.done:,}/{step.total:,} {step.unit}",
                )
                row.append(bar)
            table.add_row(*row)
            for points in self._measured.values():
                drawn = curve([point.value for point in points])
                table.add_row("", "", "", Text(f"{drawn}  {translated(points[-1].sentence())}"))
        return table


def curve(values: Sequence[float]) -> str:
    """Draw values as a line of blocks, one for each of the last 40; the lowest and the highest of them are its ends."""
    shown = [value for value in values if math.isfinite(value)][-_POINTS:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    return "".join(_BLOCKS[round((len(_BLOCKS) - 1) * (value - low) / ((high - low) or 1))] for value in shown)
