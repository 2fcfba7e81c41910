"""Of two attempts at a stage only the newer writes, on a file system and on a real S3 server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wukong.store import fence, storage
from wukong.store.conditional_store import ChangedError
from wukong.store.fence import FencedError
from wukong.store.manifest import Stage


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(fence.VARIABLE, "")
    return storage.from_path(tmp_path)


def as_attempt(monkeypatch: pytest.MonkeyPatch, claimed: str) -> None:
    monkeypatch.setenv(fence.VARIABLE, claimed)


def test_the_older_of_two_attempts_is_refused(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(root, "filter", {})
    fence.claim(root, "r", "filter")
    old = os.environ[fence.VARIABLE]
    stage.commit_task("part-0", {"rows": 1})
    fence.claim(root, "r", "filter")
    new = os.environ[fence.VARIABLE]
    as_attempt(monkeypatch, old)
    with pytest.raises(FencedError, match=r"attempt 00001-\w{8} writes no more: attempt 00002-\w{8} has begun"):
        stage.commit_task("part-0", {"rows": 2})
    with pytest.raises(FencedError):
        stage.commit([])
    assert stage.finished() is None and stage.finished_task("part-0", lambda _: ()) == {"rows": 1}
    as_attempt(monkeypatch, new)
    stage.commit_task("part-1", {"rows": 3})
    assert stage.commit([]) == stage.finished()


def test_two_claims_of_one_moment_have_one_winner(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "list_files", lambda *_: [])
    names = {fence.claim(root, "r", "filter"): os.environ[fence.VARIABLE] for _ in range(2)}
    monkeypatch.undo()
    assert {name[:5] for name in names} == {"00001"}
    refused = []
    for name, claimed in names.items():
        as_attempt(monkeypatch, claimed)
        try:
            fence.check()
        except FencedError:
            refused.append(name)
    assert refused == [min(names)]


def test_runs_and_stages_do_not_fence_each_other(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fence.claim(root, "a", "filter")
    claimed = os.environ[fence.VARIABLE]
    fence.claim(root, "b", "filter")
    fence.claim(root, "a", "crawl")
    as_attempt(monkeypatch, claimed)
    fence.check()


def test_nothing_is_fenced_without_a_claim(root: str) -> None:
    fence.check()
    assert fence.attempt() == ""
    Stage(root, "filter", {}).commit([])


def publish_while_a_newer_attempt_does(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older attempt is held up after its look at the claims; the newer one publishes; then the older one writes."""
    uri = storage.join(root, "filter", "manifest.json")
    fence.claim(root, "r", "filter")
    check = fence.check

    def held_up() -> None:
        old = os.environ[fence.VARIABLE]
        check()
        monkeypatch.setattr(fence, "check", check)
        fence.claim(root, "r", "filter")
        fence.publish(uri, {"by": fence.attempt()})
        as_attempt(monkeypatch, old)

    for before in (None, {"by": "the older one"}):
        if before:
            fence.publish(uri, before)
        old = fence.attempt()
        monkeypatch.setattr(fence, "check", held_up)
        with pytest.raises(FencedError, match=f"attempt {old} writes no more"):
            fence.publish(uri, {"by": old})
        newer = f"{int(old[:5]) + 1:05d}-"
        assert storage.read_json(uri)["by"].startswith(newer)
        fence.claim(root, "r", "filter")
        storage.delete(uri)


def write_a_large_file_while_a_newer_attempt_does(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with a model's weights, which are others in each attempt on GPUs."""
    uri, size = storage.join(root, "model", "weights"), 20 << 20

    def write() -> None:
        with fence.output(uri) as stream:
            for _ in range(size >> 20):
                stream.write(fence.attempt()[-8:].encode() * (1 << 17))

    monkeypatch.setenv(fence.VARIABLE, "")
    fence.claim(root, "r", "model")
    old, check = fence.claimed(), fence.check

    def held_up() -> None:
        check()
        monkeypatch.setattr(fence, "check", check)
        fence.claim(root, "r", "model")
        write()
        newer.append(fence.attempt()[-8:].encode())
        as_attempt(monkeypatch, old)

    newer: list[bytes] = []
    monkeypatch.setattr(fence, "check", held_up)
    with pytest.raises(FencedError):
        write()
    assert storage.read_bytes(uri) == newer[0] * (size // 8)
    with pytest.raises(ZeroDivisionError), fence.output(uri) as stream:
        stream.write(bytes([1 // 0]))
    assert len(storage.read_bytes(uri)) == size


def test_an_older_attempt_replaces_nothing_after_its_look(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_while_a_newer_attempt_does(root, monkeypatch)
    write_a_large_file_while_a_newer_attempt_does(root, monkeypatch)


def test_an_attempt_publishes_again_what_it_published(root: str) -> None:
    fence.claim(root, "r", "filter")
    for number in range(2):
        fence.publish(f"{root}/record.json", {"number": number})
        assert storage.read_json(f"{root}/record.json") == {"number": number}


def test_a_store_without_conditional_writes_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that ignores conditions, in memory: the fence's look is all there is."""
    objects = {"s3://b/e/runs/r/attempts/s/00001-aaaaaaaa.json": b"{}"}
    monkeypatch.setattr(storage, "write_bytes", objects.__setitem__)
    monkeypatch.setattr(storage, "write_if", lambda uri, data, _expected: objects.__setitem__(uri, data))
    monkeypatch.setattr(storage, "read_version", lambda uri: (objects[uri], "its version"))
    monkeypatch.setattr(storage, "list_files", lambda *_: sorted(uri for uri in objects if "attempts" in uri))
    as_attempt(monkeypatch, next(iter(objects)))
    fence.is_conditional.cache_clear()
    for number in range(2):
        fence.publish("s3://b/e/manifest.json", number)
    assert objects["s3://b/e/manifest.json"] == b"1\n"
    assert objects["s3://b/e/runs/r/attempts/s/00001-aaaaaaaa.json"] == b"{}"
    assert [record.message for record in caplog.records if "no conditional writes" in record.message] == [
        "the object store has no conditional writes (it ignores If-None-Match): an older attempt that is held up for "
        "long between its look at the newer claims and its write could replace a manifest, and runs that make the same "
        "output at once all work"
    ]
    objects["s3://b/e/runs/r/attempts/s/00002-aaaaaaaa.json"] = b"{}"
    with pytest.raises(FencedError):
        fence.publish("s3://b/e/manifest.json", 2)


DRIVER = """
import sys
from wukong.store import fence
from wukong.store.manifest import Stage
root = sys.argv[1]
name = fence.claim(root, "r", "filter")
print(name, flush=True)
for number, _ in enumerate(sys.stdin):
    try:
        Stage(root, "filter", {}).commit_task(f"part-{number}", {"by": name})
        print("written", flush=True)
    except fence.FencedError:
        print("refused", flush=True)
"""


@pytest.mark.slow
def test_a_real_s3_server_heeds_conditions(object_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fence.VARIABLE, "")
    uri = f"{object_store}/conditions/one.json"
    assert storage.version(uri) is None
    storage.write_if(uri, b"first", None)
    with pytest.raises(ChangedError):
        storage.write_if(uri, b"second", None)
    seen = storage.version(uri)
    assert seen is not None
    storage.write_bytes(uri, b"other")
    with pytest.raises(ChangedError):
        storage.write_if(uri, b"third", seen)
    assert storage.read_bytes(uri) == b"other"
    storage.write_if(uri, b"fourth", storage.version(uri))
    assert storage.read_bytes(uri) == b"fourth"
    seen = storage.version(uri)
    storage.delete(uri)
    with pytest.raises(ChangedError):
        storage.write_if(uri, b"fifth", seen)
    assert not storage.exists(uri)
    publish_while_a_newer_attempt_does(f"{object_store}/held-up", monkeypatch)
    write_a_large_file_while_a_newer_attempt_does(f"{object_store}/held-up", monkeypatch)


@pytest.mark.slow
def test_an_old_driver_is_refused_by_a_real_s3_server(object_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fence.VARIABLE, "")

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", DRIVER, object_store]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(driver: "subprocess.Popen[str]", request: str = "") -> str:
        assert driver.stdin is not None
        assert driver.stdout is not None
        if request:
            driver.stdin.write(f"{request}\n")
            driver.stdin.flush()
        return driver.stdout.readline().strip()

    with start() as old:
        assert answer(old).startswith("00001-")
        assert answer(old, "go") == "written"
        with start() as new:
            name = answer(new)
            assert name.startswith("00002-")
            assert answer(old, "go") == "refused"
            assert [answer(new, "go"), answer(new, "go")] == ["written", "written"]
            assert answer(old, "go") == "refused"
            assert new.stdin is not None
            new.stdin.close()
        assert old.stdin is not None
        old.stdin.close()
    stage = Stage(object_store, "filter", {})
    assert [stage.finished_task(f"part-{number}", lambda _: ()) for number in range(3)] == [
        {"by": name},
        {"by": name},
        None,
    ]


def test_whose_attempt_is_over_commits_nothing_more(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of a process from outside is what the process is told when it commits."""
    place = (root, "r", "filter")

    def is_refused() -> bool:
        try:
            fence.check()
        except FencedError:
            return True
        return False

    assert not fence.is_over(*place, 7), "it has claimed nothing"
    for ends in (lambda: fence.end(fence.claimed(), "run b"), lambda: fence.claim(*place)):
        monkeypatch.setattr(os, "getpid", lambda: 7)
        fence.claim(*place)
        old = fence.claimed()
        assert not fence.is_over(*place, 7) and not is_refused()
        monkeypatch.setattr(os, "getpid", lambda: 8)
        ends()
        as_attempt(monkeypatch, old)
        assert fence.is_over(*place, 7) and is_refused()
    assert not fence.is_over(*place, 8), "the newest is its own"
