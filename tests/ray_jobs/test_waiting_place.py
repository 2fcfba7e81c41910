"""Where pairs wait for their shards: beside a stack on its disk, else in the store; a killed process leaves nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from ray_jobs.waiting_place import waiting_place
from wukong.store import storage
from wukong.store.manifest import Stage

STAGE = Stage("s3://bucket/test", "filter", {})
OTHER = Stage("s3://bucket/test", "filter", {"another": 1})
_KILLED = """
import sys, time
from ray_jobs.waiting_place import waiting_place
from wukong.store import storage
from wukong.store.manifest import Stage
with waiting_place(Stage("s3://bucket/test", "filter", {}), 100) as place:
    storage.write_bytes(storage.join(place, "pairs"), b"pairs")
    print(place, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of an embedded stack, and no Ray of other machines."""
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


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
        command = [sys.executable, "-c", _KILLED]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            place = process.stdout.readline().strip()
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
