"""Leases: of the processes that would make the same output, one makes it and the others wait for it.

The output of a stage has one lease, the file ``_lease.json`` below its prefix. The process that makes the output holds
the lease and renews it, by writing it again, every 15 seconds. Others wait, and use the output when it is there. A
holder that ends without output releases the lease.

A holder that died cannot. Its lease is taken over

- at once, if it was an earlier attempt at the same stage of the same run, or a process of this machine that is gone;
- otherwise when the lease has not changed for 60 seconds in which it was watched. Only the watcher's own clock measures
  that. The time in the lease is for people, so clocks that differ change nothing. Time in which the store did not
  answer hardly counts, because the holder could not renew the lease either.

A holder that seemed dead may be alive. So whoever takes over ends that holder's attempt before its own work
(``wukong.store.fence.end``): neither the holder nor its workers commit anything afterwards. A holder that cannot renew
its lease goes on working, and finds out when it commits.

The attempts that are to be ended stand in the lease itself (``Holder.took``), written by the one conditional write that
takes it. This is safe however the answers, the processes and their order are:

- Only an attempt whose lease was taken is ended: the store refuses the write if the holder has renewed meanwhile.
- Nobody forgets one. If the answer to the write is lost, or the taker is killed before the end, the lease still names
  the attempts. Whoever takes it next inherits the names, and leaves them out only after it has ended all.
- Nobody works beside one. Work begins when all that the lease named have ended. An attempt may be ended twice.
- A lease that is gone may have been another's, who made or deleted the output. So its former holder neither writes it
  again nor commits.

A store without conditional writes has no leases: there all processes work, as the log says once.

Who deletes an output holds its lease too (``deleting``). So nobody makes it meanwhile, and who finds its manifest waits
for the end (``wait_for_deletion``).
"""

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from wukong.errors import StorageError
from wukong.runtime import cancel
from wukong.store import fence, storage
from wukong.store.conditional_store import ChangedError, UnconditionalError

NAME = "_lease.json"
SECONDS = 60.0
"""For how long a lease must not change until it is taken over."""

_RENEWALS = 4  # in that time
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0  # seconds between two looks of one who waits
_TOLD_EVERY = 60.0
_NEXT_SECONDS = 10.0
_RELEASE_SECONDS = 5.0

log = logging.getLogger(__name__)


class Holder(BaseModel):
    """Who holds a lease.

    Attributes:
        id: identifier of this holding; no two are equal.
        attempt: URI of the holder's claim (``wukong.store.fence``), which has the run's name; empty where there is
            none.
        host: name of the machine.
        machine: identity of the running system in which ``process`` is a process; empty where it has none.
        process: the holder's process.
        born: when that process began, in the system's own count.
        since: when it got the lease by its own clock, UTC.
        seconds: for how long the lease must not change until it is taken over.
        renewed: how often it has been renewed.
        released: whether the holder has ended without output.
        deletes: whether it deletes the output instead of making it.
        took: URIs of the claims of attempts that held the lease before, and of which it is not certain that they have
            been ended.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    attempt: str = ""
    host: str
    machine: str
    process: int
    born: str
    since: str
    seconds: float
    renewed: int = 0
    released: bool = False
    deletes: bool = False
    took: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The holder in words."""
        if self.attempt.count("/") <= 3:
            return f"process {self.process} on {self.host}, since {self.since}"
        run = self.attempt.split("/")[-4]
        return f"run {run} (process {self.process} on {self.host}, since {self.since})"

    @property
    def is_gone(self) -> bool:
        """Whether it is a process of this system that has ended; False where that cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return False
        return not cancel.is_running(self.process) or _born(self.process) != self.born

    def shares_claims(self, other: "Holder") -> bool:
        """Whether both are attempts at one stage of one run."""
        folders = [holder.attempt.rpartition("/")[0] for holder in (self, other)]
        return bool(self.attempt) and folders[0] == folders[1]

    @property
    def is_over(self) -> bool:
        """Whether the lease says by itself that nobody makes the output."""
        return self.released or self.deletes or self.is_gone

    def after(self, seen: "_Seen | None") -> "Holder":
        """This holder of a lease that is taken as it was seen, unless it was this holder's own."""
        if seen is None:
            return self
        before = seen.holder
        is_left = before.attempt and not before.released and not self.shares_claims(before)
        return self.model_copy(update={"took": (*before.took, *([before.attempt] if is_left else []))})


class _Seen(NamedTuple):
    holder: Holder
    version: str


_held: dict[str, "_Lease"] = {}


@contextmanager
def held(
    prefix: str, is_there: Callable[[], bool], attempt: str | None = None, seconds: float = SECONDS
) -> Iterator[None]:
    """Hold the lease of an output while the block lasts, after waiting for whoever holds it.

    Without the lease the block runs when the output has come meanwhile, where the store has no conditional writes, and
    where a newer attempt of the same run holds the lease already, as a job does that this process has started.

    Args:
        prefix: URI of the output.
        is_there: returns whether the output is complete.
        attempt: URI of the claim of the holder; None for this process's (``wukong.store.fence.claimed``).
        seconds: for how long the lease must not change until others take it over.

    Raises:
        FencedError: a newer attempt of this run holds it, and this process has claimed an older one.
        StorageError: the store cannot be read or written.
    """
    lease = _acquired(storage.join(prefix, NAME), is_there, fence.claimed() if attempt is None else attempt, seconds)
    try:
        yield
    finally:
        if lease is not None:
            lease.end()


def wait_for_holder(prefix: str) -> None:
    """Wait some seconds until somebody has the lease of an output, who has just ended what comes before it."""
    until = time.monotonic() + _NEXT_SECONDS
    while time.monotonic() < until and not storage.exists(storage.join(prefix, NAME)):
        time.sleep(_FIRST_PAUSE)


@contextmanager
def deleting(prefix: str, is_idle: Callable[[], bool], silent: str = "") -> Iterator[bool]:
    """Hold the lease of an output that is to be deleted, while the block lasts; nobody is waited for.

    The block gets whether it may delete. It may not if the output is in use, if another process takes the lease at the
    same moment, or if the store has no conditional writes. The lease's own file is the last to be deleted.

    Args:
        prefix: URI of the output.
        is_idle: returns whether nothing of the output was written for a time in which who works on it writes.
        silent: version of a lease that nobody renews, from ``silent``. One of another version is left to its holder,
            unless it is over.

    Raises:
        StorageError: the store cannot be read or written.
    """
    uri = storage.join(prefix, NAME)
    seen = _read(uri)  # before it is looked at whether the output is idle: it must still be this one afterwards
    lease: _Lease | None = None
    if (seen is None or seen.holder.is_over or seen.version == silent) and is_idle():
        with suppress(UnconditionalError):
            lease = _taken(uri, _holder("", SECONDS).model_copy(update={"deletes": True}), seen, lambda: True)
    try:
        yield lease is not None
    finally:
        if lease is not None:
            lease.end()


def wait_for_deletion(prefix: str) -> bool:
    """Wait until nobody deletes an output any more; return whether somebody did, so that it may be gone."""
    seen = _read(storage.join(prefix, NAME))
    if seen is None or not seen.holder.deletes or seen.holder.released:
        return False
    with held(prefix, lambda: False):  # it takes over from one that died
        return True


def is_over(prefix: str) -> bool:
    """Whether the lease of an output says by itself that nobody makes it: it was released, or its process is gone.

    A lease of somebody who deletes the output says so too.
    """
    seen = _read(storage.join(prefix, NAME))
    return seen is None or seen.holder.is_over


def silent(prefixes: Iterable[str]) -> dict[str, str]:
    """Watch the leases of outputs until each has changed, or has not for its time; return the versions of the latter.

    They are by the prefix of the output. A lease that is over by itself is none of them.
    """
    watches = {prefix: _Watch() for prefix in prefixes}
    found: dict[str, str] = {}
    if watches:
        log.info("%d leases are watched for %.0f s: does anybody renew them?", len(watches), SECONDS)
    while watches:
        pause = _LONGEST_PAUSE
        for prefix, watch in [*watches.items()]:
            seen = _read(storage.join(prefix, NAME))
            if seen is None or seen.holder.is_over or not watch.goes_on(seen):
                del watches[prefix]
            elif watch.seconds >= seen.holder.seconds:
                found[prefix] = seen.version
                del watches[prefix]
            else:
                pause = min(pause, seen.holder.seconds / _RENEWALS)
        if watches:
            time.sleep(pause)
    return found


def check(prefix: str) -> None:
    """Check, where this process has the lease of an output, that it has it still; call it before a commit.

    Raises:
        FencedError: a newer attempt of this run has begun.
        TakenOverError: somebody has taken the lease over, or deleted it.
    """
    lease = _held.get(storage.join(prefix, NAME))
    if lease is None:
        return
    seen = _read(lease.uri)
    if seen is None:
        fence.check()  # it knows by whom, if it was taken over, and whether an attempt of one run has finished
        raise fence.TakenOverError(f"{prefix} is not written: {lease.uri} is gone, {_GONE}")
    if seen.holder.id != lease.holder.id and not lease.holder.shares_claims(seen.holder):
        raise fence.TakenOverError(f"{prefix} is not written: {seen.holder} took it over, {_WHY}")


_WHY = "because its lease was not renewed. Run again: what is complete is used"
_GONE = "so somebody else has made or deleted this output. Run again: what is complete is used"


class _Watch:
    """For how many ``seconds`` a lease was watched and did not change, by this process's own clock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._version, self._looked = "", 0.0

    def goes_on(self, seen: "_Seen") -> bool:
        """Look at the lease; return False if it has changed, so that its time begins anew.

        Time in which the store did not answer hardly counts.
        """
        now, before = time.monotonic(), self._version
        is_same = seen.version == before
        passed = min(now - self._looked, seen.holder.seconds / _RENEWALS)
        self.seconds = self.seconds + passed if is_same else 0.0
        self._version, self._looked = seen.version, now
        return is_same or not before


class _Lease:
    """A lease that this process holds; a thread renews it until ``end``."""

    def __init__(self, uri: str, holder: Holder, is_there: Callable[[], bool]) -> None:
        self.uri, self.holder, self._is_there = uri, holder, is_there
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        _held[uri] = self
        self._thread.start()

    def end(self) -> None:
        """Release the lease. A store that is away is not waited for: then the lease is taken over in its time."""
        self._over.set()
        self._thread.join(_RELEASE_SECONDS)
        if _held.get(self.uri) is self:
            del _held[self.uri]

    def _keep(self) -> None:
        while not self._over.wait(self.holder.seconds / _RENEWALS):
            try:
                if not self._write():
                    return
            except StorageError as error:
                log.warning("the lease %s cannot be renewed: %s", self.uri, error)
        try:
            self._write(released=True)
        except StorageError as error:
            log.warning("the lease %s cannot be released: %s", self.uri, error)

    def _write(self, *, released: bool = False) -> bool:
        """Write the lease again; return whether it is still this holder's."""
        while True:
            seen = _read(self.uri)
            if seen is None:
                if not (released or self._is_there()):
                    log.error("%s is gone, %s", self.uri, _GONE)
                return False
            if seen.holder.id != self.holder.id:
                if not (self.holder.released or self.holder.shares_claims(seen.holder)):
                    log.error("%s took over what this process makes, %s (%s)", seen.holder, _WHY, self.uri)
                return False
            self.holder = self.holder.model_copy(update={"renewed": self.holder.renewed + 1, "released": released})
            try:
                _store(self.uri, self.holder, seen)
            except ChangedError:
                continue  # by whom, the next look finds out
            return True


def _acquired(uri: str, is_there: Callable[[], bool], attempt: str, seconds: float) -> _Lease | None:
    if fence.claimed() and not fence.is_conditional(fence.claimed()):
        return None
    mine = _holder(attempt, seconds)
    while True:
        may_take, seen = _waited(uri, is_there, mine)
        if not may_take:
            return None
        try:
            if (lease := _taken(uri, mine, seen, is_there)) is not None:
                return lease
        except UnconditionalError:
            return None


def _taken(uri: str, mine: Holder, seen: _Seen | None, is_there: Callable[[], bool]) -> _Lease | None:
    """Take a lease as it was seen, and end the attempts it was taken from; None if others have changed it meanwhile.

    Raises:
        UnconditionalError: the store has no conditional writes.
    """
    mine = mine.after(seen)
    try:
        _store(uri, mine, seen)
    except ChangedError:
        found = _read(uri)
        if found is None or found.holder.id != mine.id:
            return None
        mine = found.holder  # it was written, and only the answer was lost
    except UnconditionalError as error:
        _tell_unconditional(str(error))
        raise
    if not fence.is_conditional(fence.claimed() or uri):
        storage.delete(uri)
        raise UnconditionalError(f"{uri}: the store ignores conditions")
    for attempt in mine.took:
        fence.end(attempt, str(mine))
    return _Lease(uri, mine.model_copy(update={"took": ()}), is_there)


def _holder(attempt: str, seconds: float) -> Holder:
    return Holder(
        id=uuid.uuid4().hex,
        attempt=attempt,
        host=os.uname().nodename,
        machine=_machine(),
        process=os.getpid(),
        born=_born(os.getpid()),
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        seconds=seconds,
    )


def _waited(uri: str, is_there: Callable[[], bool], mine: Holder) -> tuple[bool, _Seen | None]:
    """Wait until a lease may be taken over, or need not be; return which, and the lease as it was seen."""
    watch, pause, told, has_waited = _Watch(), _FIRST_PAUSE, -_TOLD_EVERY, False
    while True:
        seen = _read(uri)
        if seen is None or seen.holder.released or seen.holder.id == mine.id:
            return not (has_waited and is_there()), seen
        holder = seen.holder
        if mine.shares_claims(holder):
            if mine.attempt >= holder.attempt:
                return True, seen
            fence.check()
            return False, seen
        watch.goes_on(seen)
        if holder.is_gone or watch.seconds >= holder.seconds:
            why = "has ended" if holder.is_gone else f"has not renewed its lease for {watch.seconds:.0f} s"
            log.warning("%s %s: its work is taken over (%s)", holder, why, uri)
            return True, seen
        if is_there():
            return False, seen
        if (now := time.monotonic()) - told >= _TOLD_EVERY:
            told = now
            doing = "deletes" if holder.deletes else "makes"
            log.info("waiting for %s, which %s %s", holder, doing, uri.removesuffix(f"/{NAME}"))
        time.sleep(pause)
        has_waited = True
        pause = min(1.5 * pause, _LONGEST_PAUSE, holder.seconds / _RENEWALS)


def _read(uri: str) -> _Seen | None:
    stored = storage.read_version(uri)
    if stored is None:
        return None
    try:
        return _Seen(Holder.model_validate_json(stored[0]), stored[1])
    except ValidationError as error:
        raise StorageError(f"{uri} is no lease ({error}); delete it and run the stage again") from error


def _store(uri: str, holder: Holder, seen: _Seen | None) -> None:
    storage.write_if(uri, storage.json_bytes(holder.model_dump(mode="json")), seen.version if seen else None)


@lru_cache(maxsize=1)
def _tell_unconditional(why: str) -> None:
    log.warning("%s: runs that make the same output at once all work", why)


@lru_cache(maxsize=1)
def _machine() -> str:
    """The identity of this start of the system and of the namespace of processes; empty on systems without them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _born(process: int) -> str:
    """When a process began, in clock ticks since the start of the system; empty where that cannot be read."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
