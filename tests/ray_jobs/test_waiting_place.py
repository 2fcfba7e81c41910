"""Where pairs wait for their shards: beside a stack on its disk, else in the store; a killed process leaves nothing."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from ray_jobs.waiting_place import delete_left, waiting_place
from wukong.errors import DataError
from wukong.store import storage
from wukong.store.manifest import Stage

STAGE = Stage("s3://bucket/test", "filter", {})
OTHER = Stage("s3://bucket/test", "filter", {"another": 1})
_SECONDS = 20  # that a filter has for all it does here
_FILTER = """
import sys
from ray_jobs.waiting_place import delete_left, waiting_place
from wukong.store import storage
from wukong.store.manifest import Stage
with waiting_place(Stage(sys.argv[1], "filter", {}), 100) as place:
    if place.startswith("file://"):
        storage.write_bytes(storage.join(place, "pairs"), b"pairs")
    print(place, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of an embedded stack, and no Ray of other machines."""
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


@contextmanager
def filtering(root: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process whose filter of an experiment has pairs that wait, until it is sent a line; and their place."""
    command = [sys.executable, "-c", _FILTER, root]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        late = threading.Timer(_SECONDS, process.kill)
        late.start()
        try:
            yield process, process.stdout.readline().strip()
        finally:
            late.cancel()
            process.kill()


def pairs_in(home: Path) -> list[Path]:
    return list(home.rglob("pairs"))


def ray_of(monkeypatch: pytest.MonkeyPatch, nodes: list[str]) -> None:
    if nodes:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeManagerAddress": node} for node in nodes])


def fill(stage: Stage) -> None:
    with waiting_place(stage, 100) as place:
        storage.write_bytes(storage.join(place, "pairs"), b"pairs")
        raise InterruptedError


@pytest.mark.parametrize("nodes", [[], ["127.0.0.1"]])
def test_pairs_wait_in_the_home_of_a_stack_and_are_gone_afterwards(home, monkeypatch, nodes):
    ray_of(monkeypatch, nodes)
    with waiting_place(STAGE, 100) as place:
        storage.write_bytes(storage.join(place, "pairs"), b"pairs")
        assert [storage.from_path(file) for file in pairs_in(home)] == [storage.join(place, "pairs")]
    assert not pairs_in(home)
    with pytest.raises(InterruptedError):
        fill(STAGE)
    assert not pairs_in(home)


@pytest.mark.parametrize(
    ("root", "room", "folder", "nodes"),
    [
        ("file:///data", 100, ".", []),
        ("s3://bucket/test", 1 << 60, ".", []),
        ("s3://bucket/test", 100, "missing", []),
        ("s3://bucket/test", 100, ".", ["10.0.0.1"]),  # a pod: the next node may be another machine
        ("s3://bucket/test", 100, ".", ["127.0.0.1", "127.0.0.2"]),
    ],
)
def test_elsewhere_pairs_wait_among_the_work_files(home, monkeypatch, root, room, folder, nodes):
    monkeypatch.setenv("WUKONG_HOME", str(home / folder))
    ray_of(monkeypatch, nodes)
    stage = Stage(root, "filter", {})
    with waiting_place(stage, room) as place:
        assert place == stage.path("_work/buckets")


def test_what_a_killed_process_leaves_is_used_by_its_stage_or_deleted_by_another(home):
    def killed() -> str:
        with filtering("s3://bucket/test") as (process, place):
            with waiting_place(OTHER, 100):
                assert pairs_in(home), "a process that is alive keeps its own"
            process.send_signal(signal.SIGKILL)
        return place

    left = killed()
    assert pairs_in(home)
    with waiting_place(STAGE, 100) as place:
        assert place == left
        assert storage.read_bytes(storage.join(place, "pairs")) == b"pairs"
    assert not pairs_in(home)
    killed()
    with waiting_place(OTHER, 1 << 60):  # also where there is no room, for which they may be the reason
        assert not pairs_in(home)


@pytest.mark.parametrize("root", ["s3://bucket/test", "s3://bucket/another-name"])
def test_two_filters_of_one_key_do_not_wait_for_each_other(home: Path, root: str) -> None:
    """With equal data, settings and versions, filters of two experiments have equal keys."""
    with filtering("s3://bucket/test") as (first, place), filtering(root) as (second, other):
        assert place != other and place.startswith("file://")
        assert other.startswith("file://") == (root != "s3://bucket/test")
        for process in (first, second):
            process.communicate("\n")
            assert process.returncode == 0
    assert not pairs_in(home)


def test_a_takedown_deletes_what_a_killed_filter_of_its_experiment_has_left(home: Path) -> None:
    with filtering("s3://bucket/test"), pytest.raises(DataError, match="at work has pairs of s3://bucket/test/filter"):
        delete_left("s3://bucket/test")
    with filtering("s3://bucket/test-2") as (_, other):
        with filtering("s3://bucket/test"):
            pass
        delete_left("s3://bucket/tes")
        assert len(pairs_in(home)) == 2
        delete_left("s3://bucket/test")
        assert [storage.from_path(file.parent) for file in pairs_in(home)] == [other]
    earlier = home / "waiting" / STAGE.key  # of a process that was killed before it wrote whose it is
    earlier.mkdir()
    (earlier / "lock").touch()
    delete_left("s3://bucket/nothing")
    assert not earlier.exists() and len(pairs_in(home)) == 1
