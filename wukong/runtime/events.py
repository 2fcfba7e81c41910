"""What happens in a run, told to the process that shows it: a file of events, one line of JSON each.

``wukong run`` makes the file, names it in ``WUKONG_EVENTS`` and reads it while the run lasts. A component writes when
its stage begins and ends; long work writes how far it has come (``wukong.runtime.progress``). Without the variable, or
where the file does not exist, as on a cluster, nothing is written: there people read the log lines, and the launcher
of RayJobs reads from them how far the work has come.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from wukong.runtime.language import _

VARIABLE = "WUKONG_EVENTS"
"""Names the file, in the environment of components, jobs and Ray's workers."""

_COUNT = r"[0-9]{1,3}(?:,[0-9]{3}){0,8}"
_ADVANCED = re.compile(rf"(.+): ({_COUNT}) of ({_COUNT}) (.+) \(({_COUNT}\.[0-9])/s(?:, ({_COUNT}) s left)?\)")

log = logging.getLogger(__name__)


class _Event(BaseModel):
    # A component in a container may be of another version, and say more than this one knows.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Begun(_Event):
    """A stage's component has begun its work."""

    kind: Literal["begun"] = "begun"
    stage: str


class Ended(_Event):
    """A stage's component has ended its work, after so many seconds."""

    kind: Literal["ended"] = "ended"
    stage: str
    state: Literal["succeeded", "failed"]
    seconds: float


class Advanced(_Event):
    """Long work has come so far.

    Attributes:
        what: the work, for instance ``download``.
        done: units done.
        total: units in all.
        unit: what is counted, for instance ``pictures``.
        rate: units a second since it began.
    """

    kind: Literal["advanced"] = "advanced"
    what: str
    done: int
    total: int
    unit: str
    rate: float

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end, if the work goes on as it went; None before the first unit and after the last."""
        return (self.total - self.done) / self.rate if self.rate and 0 < self.done < self.total else None

    def sentence(self) -> str:
        """The event as a line for people."""
        seconds = self.seconds_left
        return (
            _("{what}: {done:,} of {total:,} {unit} ({rate:,.1f}/s, {seconds:,.0f} s left)")
            if seconds is not None
            else _("{what}: {done:,} of {total:,} {unit} ({rate:,.1f}/s)")
        ).format(what=self.what, done=self.done, total=self.total, unit=self.unit, rate=self.rate, seconds=seconds)

    @classmethod
    def read(cls, sentence: str) -> "Advanced | None":
        """Read the event from its sentence, in the log of a job on another machine; None if it is another one."""
        if (found := _ADVANCED.fullmatch(sentence)) is None:
            return None
        done, total, left = (int((found[group] or "0").replace(",", "")) for group in (2, 3, 6))
        # Of slow work the rate reads 0.0; the time that is left tells it.
        rate = (total - done) / left if left else float(found[5].replace(",", ""))
        return cls(what=found[1], done=done, total=total, unit=found[4], rate=rate)


class Measured(_Event):
    """A training has measured something once more, which makes a point of a curve.

    Attributes:
        name: what, for instance ``loss``.
        value: its value now.
        best: the best value so far; None if no value is better than another.
    """

    kind: Literal["measured"] = "measured"
    name: str
    value: float
    best: float | None = None

    def sentence(self) -> str:
        """The event as words for people."""
        if self.best is None:
            return f"{self.name} {self.value:.4g}"
        return _("{name} {value:.4g}, best so far {best:.4g}").format(name=self.name, value=self.value, best=self.best)


Event: TypeAlias = Begun | Ended | Advanced | Measured
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def write(event: Event) -> None:
    """Append an event to the file that ``WUKONG_EVENTS`` names; without that file this does nothing.

    Many processes write to the file at once. A line is one write to a file opened for appending, so lines do not mix;
    it begins with a line feed too, so that a line cut short by a full disk does not spoil the next.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    line = f"\n{event.model_dump_json()}\n".encode()
    try:
        target = os.open(path, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:  # this is another machine
        return
    except OSError as error:
        log.warning("cannot open %s, which %s names, so this is not shown: %s", path, VARIABLE, error)
        return
    try:
        os.write(target, line)
    except OSError as error:
        log.warning("cannot write to %s, which %s names, so this is not shown: %s", path, VARIABLE, error)
    finally:
        os.close(target)


@dataclass
class Took:
    """How long a stage took.

    Attributes:
        seconds: as its record says. Until the block sets it, the time since the block began counts.
    """

    seconds: float | None = None


@contextmanager
def stage(name: str) -> Iterator[Took]:
    """Write that a stage begins, and after the block that it has ended, in which state and after how long."""
    began, took = time.monotonic(), Took()
    write(Begun(stage=name))
    state: Literal["succeeded", "failed"] = "failed"
    try:
        yield took
        state = "succeeded"
    finally:  # a cancelled stage has ended too
        seconds = time.monotonic() - began if took.seconds is None else took.seconds
        write(Ended(stage=name, state=state, seconds=seconds))


class Reader:
    """Reads the events of a file while others append to it.

    Args:
        path: the file, which may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""
        self._lock = threading.Lock()

    def new(self) -> list[Event]:
        """The events since the last call, in order; what is no event that this version knows is passed over."""
        with self._lock:
            try:
                with self.path.open("rb") as stream:
                    stream.seek(self._offset)
                    data = stream.read()
            except FileNotFoundError:
                return []
            self._offset += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
        return [event for line in lines if (event := _parse(line)) is not None]


@contextmanager
def received(path: Path) -> Iterator[Reader]:
    """Make an empty file for events and name it to all that this process starts, while the block lasts.

    Everybody may write to the file: a container's user may be another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    path.chmod(0o666)
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(path)
    try:
        yield Reader(path)
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def _parse(line: bytes) -> Event | None:
    try:
        return _EVENT.validate_json(line) if line else None
    except ValidationError:
        return None
