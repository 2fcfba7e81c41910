"""Of the processes that would make one output, one does: threads, real processes, a real S3 server, other clocks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from wukong.errors import StorageError
from wukong.store import fence, lease, storage
from wukong.store.conditional_store import ChangedError, UnconditionalError
from wukong.store.fence import FencedError, TakenOverError
from wukong.store.manifest import Manifest, Stage

ELSEWHERE = "another machine"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(fence.VARIABLE, "")
    return storage.from_path(tmp_path)


def leave_lease(stage: Stage, **changes: object) -> None:
    """The lease of a process of another machine, which nobody renews."""
    given: dict[str, object] = {
        "id": "0",
        "host": "far",
        "machine": ELSEWHERE,
        "process": 1,
        "born": "1",
        "since": "yesterday",
    }
    given |= {"seconds": 60.0}
    storage.write_json(stage.path(lease.NAME), given | changes)


def never() -> bool:
    return False


class Clock:
    """A clock that only sleeping moves on; ``at`` is called after each sleep with the seconds slept so far."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: Callable[[float], None] = lambda _: None) -> None:
        self.now = 5_000.0
        self._began, self._at = self.now, at
        monkeypatch.setattr(lease, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._at(self.now - self._began)

    @property
    def slept(self) -> float:
        return self.now - self._began


def test_of_many_who_would_make_one_stage_one_does(root: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    made: list[int] = []
    found: list[Manifest] = []

    def work(number: int) -> None:
        stage = Stage(root, "pretrain", {})

        def make() -> Manifest:
            made.append(number)
            time.sleep(0.5)
            storage.write_json(stage.path("_checkpoints/one.json"), {})
            return stage.commit([], counts={"by": number})

        found.append(stage.made(make))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and {each.counts["by"] for each in found} == {*made} and len(found) == 6
    stage = Stage(root, "pretrain", {})
    assert storage.list_names(stage.uri) == ["manifest.json"], "neither the lease nor work files are left"
    waited = [message for message in caplog.messages if message.startswith("waiting for process")]
    assert waited and all(f"on {os.uname().nodename}, since " in message for message in waited)
    assert all(message.endswith(f"which makes {stage.uri}") for message in waited)


def test_a_holder_that_fails_lets_the_next_one_work_at_once(root: str) -> None:
    stage = Stage(root, "filter", {})

    def fail() -> Manifest:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage.made(fail)
    assert storage.read_json(stage.path(lease.NAME))["released"]
    began = time.monotonic()
    assert stage.made(lambda: stage.commit([])) == stage.finished()
    assert time.monotonic() - began < 5


def test_a_finished_stage_needs_no_lease(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(root, "filter", {})
    stage.commit([])
    leave_lease(stage)
    storage.write_json(stage.path("_work/rules/00000.json"), {})
    storage.write_json(stage.path("_parts/rules-00000.json"), {})
    monkeypatch.setattr(lease, "_acquired", None)
    assert stage.made(lambda: pytest.fail("it is finished")) == stage.finished()
    assert storage.list_names(stage.uri) == ["_parts", "manifest.json"], "what a killed run left is deleted"


@pytest.mark.parametrize("minutes", [-45, 0, 45])
def test_only_the_watchers_own_clock_decides(root: str, monkeypatch: pytest.MonkeyPatch, minutes: int) -> None:
    """A holder on a machine whose clock is wrong: as long as it renews nobody takes over, and 60 s after it stopped."""
    stage = Stage(root, "pretrain", {})
    hour = f"{12 + minutes / 60:05.2f} h"
    leave_lease(stage, since=hour)

    def renew(slept: float) -> None:
        if slept < 1_000:
            leave_lease(stage, since=hour, renewed=int(slept // 15))

    clock = Clock(monkeypatch, renew)
    with lease.held(stage.uri, never):
        assert 1_000 - 15 + 60 <= clock.slept <= 1_000 + 60 + 2 * 3
        assert storage.read_json(stage.path(lease.NAME))["id"] != "0"


def test_time_without_the_store_counts_for_nobody(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store is away, neither can the holder renew nor the others look."""
    stage = Stage(root, "pretrain", {})
    leave_lease(stage)
    clock, read = Clock(monkeypatch), storage.read_version
    looks: list[float] = []

    def late(uri: str) -> object:
        looks.append(clock.slept)
        if len(looks) in (5, 9):
            clock.now += 400
        return read(uri)

    monkeypatch.setattr(storage, "read_version", late)
    with lease.held(stage.uri, never):
        assert clock.slept > 800 + 60 - 2 * 15


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for number, process in enumerate((ended.pid, os.getpid())):  # the second number was given to a later process
        stage = Stage(root, "pretrain", {"number": number})
        leave_lease(stage, machine=lease._machine(), process=process)
        with lease.held(stage.uri, never):
            assert not clock.slept
    stage = Stage(root, "pretrain", {})
    leave_lease(stage, machine=lease._machine(), process=os.getpid(), born=lease._born(os.getpid()))
    with lease.held(stage.uri, never):
        assert clock.slept >= 60, "it is there, and does not renew"


def as_attempt(monkeypatch: pytest.MonkeyPatch, root: str, run: str, stage: str = "pretrain") -> str:
    monkeypatch.setenv(fence.VARIABLE, "")
    fence.claim(root, run, stage)
    return fence.claimed()


def test_the_next_attempt_of_a_run_waits_for_no_earlier_one(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stage = Clock(monkeypatch), Stage(root, "pretrain", {})
    old = as_attempt(monkeypatch, root, "a")
    leave_lease(stage, attempt=old)
    new = as_attempt(monkeypatch, root, "a")
    with lease.held(stage.uri, never):
        assert not clock.slept and storage.read_json(stage.path(lease.NAME))["attempt"] == new
        monkeypatch.setenv(fence.VARIABLE, old)
        with pytest.raises(FencedError, match="has begun in its place"), lease.held(stage.uri, never):
            pytest.fail("a newer attempt holds it")
    monkeypatch.setenv(fence.VARIABLE, new)
    fence.check()


def test_who_seemed_dead_commits_nothing(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    stage = Stage(root, "pretrain", {})
    stalled = as_attempt(monkeypatch, root, "a")
    leave_lease(stage, attempt=stalled)
    as_attempt(monkeypatch, root, "b")

    def make() -> Manifest:
        own = fence.claimed()
        monkeypatch.setenv(fence.VARIABLE, stalled)  # it wakes up, or its workers go on
        for write in (lambda: stage.commit([]), lambda: stage.commit_task("part", {}), fence.check):
            with pytest.raises(TakenOverError, match=rf"run b \(process {os.getpid()} on .* took its work over"):
                write()
        monkeypatch.setenv(fence.VARIABLE, own)
        return stage.commit([], counts={"by": 2})

    assert stage.made(make).counts == {"by": 2}
    as_attempt(monkeypatch, root, "a")
    fence.check()


class Killed(BaseException):
    """The process ends here."""


def answer_once(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The next conditional write of a lease is done, and what its writer gets is an error."""
    write_if = storage.write_if

    def write(uri: str, data: bytes, expected: str | None) -> None:
        write_if(uri, data, expected)
        if uri.endswith(lease.NAME):
            monkeypatch.setattr(storage, "write_if", write_if)
            raise error

    monkeypatch.setattr(storage, "write_if", write)


@pytest.mark.parametrize("kills", [0, 1, 2])
def test_who_was_taken_over_is_ended_whatever_happens_to_those_who_do(
    root: str, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    """Takers are killed right behind their write; of the last one the answer is lost, so its repetition is refused."""
    Clock(monkeypatch)
    stage = Stage(root, "pretrain", {})
    attempts = [as_attempt(monkeypatch, root, "stalled")]
    leave_lease(stage, attempt=attempts[0])
    for number in range(kills):
        attempts.append(as_attempt(monkeypatch, root, f"killed {number}"))
        monkeypatch.setattr(lease, "_machine", lambda number=number: f"machine {number}")
        answer_once(monkeypatch, Killed())
        with pytest.raises(Killed), lease.held(stage.uri, never):
            pytest.fail("it is killed before")
    own = as_attempt(monkeypatch, root, "last")
    monkeypatch.setattr(lease, "_machine", lambda: "the last machine")
    answer_once(monkeypatch, ChangedError("written by somebody else"))
    with lease.held(stage.uri, never):
        fence.check()
        for attempt in attempts:
            monkeypatch.setenv(fence.VARIABLE, attempt)
            with pytest.raises(TakenOverError, match="run last"):
                fence.check()
        monkeypatch.setenv(fence.VARIABLE, own)
    assert storage.read_json(stage.path(lease.NAME))["took"] == [], "the next one need not end them again"


def test_who_renews_in_that_moment_is_not_ended(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stage, write_if = Clock(monkeypatch), Stage(root, "pretrain", {}), storage.write_if
    holder = as_attempt(monkeypatch, root, "holder")
    leave_lease(stage, attempt=holder)
    as_attempt(monkeypatch, root, "taker")
    renewed: list[float] = []

    def renew_first(uri: str, data: bytes, expected: str | None) -> None:
        renewed.append(clock.slept)
        leave_lease(stage, attempt=holder, renewed=1)
        write_if(uri, data, expected)

    monkeypatch.setattr(storage, "write_if", renew_first)
    with lease.held(stage.uri, lambda: bool(renewed)):
        assert len(renewed) == 1 and renewed[0] >= 60
        assert storage.read_json(stage.path(lease.NAME))["renewed"] == 1
    monkeypatch.setenv(fence.VARIABLE, holder)
    fence.check()


def test_a_deletion_whose_answer_is_lost_deletes_and_leaves_no_lease(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = Stage(root, "filter", {}).uri
    answer_once(monkeypatch, ChangedError("written by somebody else"))
    with lease.deleting(uri, lambda: True) as may:
        assert may
    assert lease.is_over(uri) and storage.read_json(storage.join(uri, lease.NAME))["released"]


def test_a_release_whose_answer_is_lost_is_no_takeover(
    root: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The repetition finds that another has taken what was released."""
    stage, write_if = Stage(root, "filter", {}), storage.write_if

    def write(uri: str, data: bytes, expected: str | None) -> None:
        write_if(uri, data, expected)
        if json.loads(data)["released"]:
            leave_lease(stage)
            raise ChangedError("written by somebody else")

    with lease.held(stage.uri, never):
        monkeypatch.setattr(storage, "write_if", write)
    assert storage.read_json(stage.path(lease.NAME))["host"] == "far" and caplog.messages == []


@pytest.mark.parametrize("has_attempt", [True, False])
def test_who_has_no_lease_any_more_commits_nothing(
    root: str, monkeypatch: pytest.MonkeyPatch, *, has_attempt: bool
) -> None:
    """Somebody took it over, and deleted it with the output: neither is written again."""
    if has_attempt:
        as_attempt(monkeypatch, root, "a")
    stage, looked = Stage(root, "index", {}), threading.Event()
    monkeypatch.setattr(lease, "held", partial(lease.held, seconds=0.2))

    def make() -> Manifest:
        read = storage.read_version

        def look(uri: str) -> tuple[bytes, str] | None:
            found = read(uri)
            if found is None:
                looked.set()
            return found

        monkeypatch.setattr(storage, "read_version", look)
        storage.delete(stage.path(lease.NAME))
        assert looked.wait(20), "it was to be renewed"
        return stage.commit([])

    with pytest.raises(TakenOverError, match=f"{lease.NAME} is gone, so somebody else has made or deleted"):
        stage.made(make)
    assert storage.list_names(stage.uri) == []


def test_a_holder_without_an_attempt_finds_out_before_it_commits(root: str) -> None:
    """As a search index is made."""
    stage = Stage(root, "index", {})

    def make() -> Manifest:
        leave_lease(stage)
        return stage.commit([])

    with pytest.raises(TakenOverError, match="process 1 on far, since yesterday took it over"):
        stage.made(make)
    assert stage.finished() is None
    assert storage.read_json(stage.path(lease.NAME))["host"] == "far", "the other's lease is not released"


def test_a_holder_renews(root: str) -> None:
    stage = Stage(root, "filter", {})
    with lease.held(stage.uri, never, seconds=0.4):
        seen = set()
        until = time.monotonic() + 20
        while len(seen) < 4 and time.monotonic() < until:
            seen.add(storage.read_json(stage.path(lease.NAME))["renewed"])
        assert len(seen) == 4
    assert storage.read_json(stage.path(lease.NAME))["released"]


def test_a_holder_renews_every_15_of_the_60_seconds_after_which_it_is_taken_over(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []

    class Short(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return super().wait(0.01)

    monkeypatch.setattr(lease, "threading", SimpleNamespace(Event=Short, Thread=threading.Thread))
    stage, until = Stage(root, "filter", {}), time.monotonic() + 20
    with lease.held(stage.uri, never):
        while len(waits) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert storage.read_json(stage.path(lease.NAME))["seconds"] == 60
    assert len(waits) >= 3 and set(waits) == {15.0}


def test_a_holder_that_cannot_renew_goes_on(
    root: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage, write_if = Stage(root, "filter", {}), storage.write_if

    def away(uri: str, data: bytes, expected: str | None) -> None:
        if uri.endswith(lease.NAME) and json.loads(data)["renewed"]:
            raise StorageError("the object store is away")
        write_if(uri, data, expected)

    def make() -> Manifest:
        with lease.held(stage.path("inside"), never, seconds=0.2):
            time.sleep(0.5)
        return stage.commit([])

    monkeypatch.setattr(storage, "write_if", away)
    assert stage.made(make) == stage.finished()
    assert any("cannot be renewed: the object store is away" in message for message in caplog.messages)


@pytest.mark.parametrize("says", [True, False])
def test_without_conditional_writes_all_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, says: bool
) -> None:
    """A store in memory that refuses conditions, or ignores them: the log says once that nobody waits."""
    objects: dict[str, bytes] = {}

    def write_if(uri: str, data: bytes, _expected: str | None) -> None:
        if says:
            raise UnconditionalError("the store has no conditional writes")
        objects[uri] = data

    monkeypatch.setenv(fence.VARIABLE, "")
    monkeypatch.setattr(storage, "write_if", write_if)
    monkeypatch.setattr(storage, "read_version", lambda uri: (objects[uri], "1") if uri in objects else None)
    monkeypatch.setattr(storage, "read_bytes", objects.__getitem__)
    monkeypatch.setattr(storage, "delete", lambda uri: objects.pop(uri, None))
    lease._tell_unconditional.cache_clear()
    fence.is_conditional.cache_clear()
    with lease.held("s3://b/e/filter/1", never), lease.held("s3://b/e/filter/1", never):
        assert not objects
    assert [message for message in caplog.messages if "all work" in message] == caplog.messages
    assert len(caplog.messages) == 1


PROCESS = """
import logging, select, sys
from wukong.store import fence, lease
from wukong.store.manifest import Stage
root, run, number, machine = sys.argv[1:]
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
if machine:
    lease._machine = lambda: machine
fence.claim(root, run, "pretrain")
stage = Stage(root, "pretrain", {})
def make():
    print("makes", flush=True)
    # Not in one call that blocks: a signal that comes just before such a call waits for its end.
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        pass
    sys.stdin.readline()
    return stage.commit([], counts={"number": int(number)})
try:
    print("has", stage.made(make).digest, flush=True)
except fence.FencedError as error:
    print("fenced", error, flush=True)
"""


SHORT_LEASES = """
from functools import partial
from wukong.store import lease
lease.held = partial(lease.held, seconds=12)
"""


class Process:
    """A process that makes a stage, which has not ended before ``may_end``.

    Args:
        root: where the stage is.
        run: the process's run.
        number: what it counts.
        machine: another than this one where others are to judge the process by its lease alone.
        first: code before that of the process.
    """

    def __init__(self, root: str, run: str, number: int, machine: str = "", first: str = "") -> None:
        command = [sys.executable, "-c", first + PROCESS, root, run, str(number), machine]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def may_end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def said(self, start: str) -> str:
        """Wait for a line that begins so, and return it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line.strip()
        raise AssertionError(f"it never said {start!r}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture(params=["file", "s3"])
def shared(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A root that processes share: a folder, or a prefix in a real S3 server."""
    monkeypatch.setenv(fence.VARIABLE, "")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    if request.param == "file":
        return storage.from_path(tmp_path)
    return str(request.getfixturevalue("object_store"))


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for each in started:
        each.end()


@pytest.mark.slow
def test_the_second_of_two_processes_takes_what_the_first_makes(shared: str, processes: list[Process]) -> None:
    first = Process(shared, "a", 3)
    processes.append(first)
    first.said("makes")
    second = Process(shared, "b", 3)
    processes.append(second)
    waiting = second.said("waiting for")
    first.may_end()
    assert f"waiting for run a (process {first.process.pid} on {os.uname().nodename}, since " in waiting
    assert first.said("has") == second.said("has")
    assert storage.list_names(Stage(shared, "pretrain", {}).uri) == ["manifest.json"]


@pytest.mark.slow
def test_a_killed_process_is_taken_over(shared: str, processes: list[Process]) -> None:
    first = Process(shared, "a", 600)
    processes.append(first)
    first.said("makes")
    second = Process(shared, "b", 1)
    processes.append(second)
    second.may_end()
    second.said("waiting for run a")
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    began = time.monotonic()
    second.said("has")
    assert time.monotonic() - began < 20, "on one machine nobody waits for what is gone"


@pytest.mark.long
def test_a_stopped_process_is_taken_over_and_commits_nothing(shared: str, processes: list[Process]) -> None:
    """As if its node were lost: what others know of it is its lease, which says for how long they must wait."""
    first = Process(shared, "a", 5, ELSEWHERE, SHORT_LEASES)
    processes.append(first)
    first.said("makes")
    first.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    second = Process(shared, "b", 1)
    processes.append(second)
    second.may_end()
    second.said("waiting for run a")
    second.said("makes")
    assert 10 < time.monotonic() - began < 60
    digest = second.said("has")
    first.may_end()
    first.process.send_signal(signal.SIGCONT)
    assert "run b (process" in first.said("fenced")
    found = Stage(shared, "pretrain", {}).finished()
    assert found is not None and digest == f"has {found.digest}" and found.counts == {"number": 1}


@pytest.mark.slow
def test_a_terminated_process_releases(shared: str, processes: list[Process]) -> None:
    """Ray's drivers end in order at a SIGTERM; so does this one."""
    code = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))\n"
    first = Process(shared, "a", 600, ELSEWHERE, code)
    processes.append(first)
    first.said("makes")
    first.process.send_signal(signal.SIGTERM)
    first.process.wait()
    second = Process(shared, "b", 0)
    processes.append(second)
    second.may_end()
    began = time.monotonic()
    second.said("has")
    assert time.monotonic() - began < 20
