"""Events of a run: written by many processes, read while they write; what is broken does no harm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.runtime import events
from wukong.runtime.events import Advanced, Begun, Ended, Reader

SCRIPT = """
import sys
from wukong.runtime import events; from wukong.runtime import progress
with events.stage(sys.argv[1]):
    with progress.track("x" * 2000, 300, "things") as advance:
        for number in range(300):
            events.write(events.Advanced(what="x" * 2000, done=number, total=300, unit="things", rate=1.0))
"""


def test_processes_write_side_by_side_and_a_reader_follows_them(tmp_path: Path) -> None:
    path = tmp_path / "kfp" / "events.jsonl"
    with events.received(path) as reader:
        names = ["crawl", "filter", "validate"]
        processes = [subprocess.Popen([sys.executable, "-c", SCRIPT, name]) for name in names]
        found: list[object] = []
        while any(process.poll() is None for process in processes):
            found += reader.new()
        found += reader.new()
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(found) == 3 * (2 + 301), "each event once, and none torn by another"
    assert sorted(event.stage for event in found if isinstance(event, Begun)) == names
    ended = [event for event in found if isinstance(event, Ended)]
    assert {(event.stage, event.state) for event in ended} == {(name, "succeeded") for name in names}
    assert all(event.seconds > 0 for event in ended)
    for line in path.read_text(encoding="utf-8").splitlines():
        assert not line or json.loads(line)["kind"]


def test_a_stage_took_as_long_as_its_record_says(tmp_path: Path) -> None:
    with events.received(tmp_path / "e") as reader:
        with events.stage("crawl") as took:
            took.seconds = 12.5
        assert [event.seconds for event in reader.new() if isinstance(event, Ended)] == [12.5]


def test_a_stage_that_fails_or_is_cancelled_has_ended(tmp_path: Path) -> None:
    with events.received(tmp_path / "e") as reader:
        for error in (ValueError("no"), SystemExit(143)):
            with pytest.raises(type(error)), events.stage("crawl"):
                raise error
        assert [event.state for event in reader.new() if isinstance(event, Ended)] == ["failed", "failed"]


def test_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events"
    reader = Reader(path)
    assert reader.new() == [], "the file is not there yet"
    line = Begun(stage="crawl").model_dump_json().encode() + b"\n"
    path.write_bytes(line[:9])
    assert reader.new() == []
    path.write_bytes(line)
    assert reader.new() == [Begun(stage="crawl")]
    assert reader.new() == []


@pytest.mark.parametrize(
    "broken",
    [b'{"kind": "begun", "stage": "cra', b'{"kind": "paused"}', b"[]", b"\xff\xfe", b"null", b'{"kind": "begun"}'],
)
def test_what_is_no_event_is_passed_over(tmp_path: Path, broken: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events"
    path.write_bytes(broken)
    monkeypatch.setenv(events.VARIABLE, str(path))
    events.write(Begun(stage="filter"))
    assert Reader(path).new() == [Begun(stage="filter")], "what was cut short does not spoil the next"


def test_a_newer_writer_may_say_more(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_text('{"kind": "begun", "stage": "crawl", "host": "a"}\n')
    assert Reader(path).new() == [Begun(stage="crawl")]


@given(st.binary())
def test_no_bytes_end_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "events"
    path.write_bytes(data + b"\n")
    Reader(path).new()


@pytest.mark.parametrize("named", ["", "/not/there/events", "."])
def test_without_a_file_nothing_is_written_and_nothing_fails(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(events.VARIABLE, named)
    with events.stage("crawl"):
        events.write(Advanced(what="a", done=1, total=2, unit="b", rate=1.0))
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_as_it_was_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "/elsewhere"):
        monkeypatch.delenv(events.VARIABLE, raising=False)
        if before:
            monkeypatch.setenv(events.VARIABLE, before)
        with events.received(tmp_path / "e") as reader:
            assert os.environ[events.VARIABLE] == str(reader.path)
            assert reader.path.stat().st_mode & 0o777 == 0o666, "a container's user may be another"
        assert os.environ.get(events.VARIABLE) == before


COUNTS = st.integers(0, 10**12)


@given(st.sampled_from(["download", "compare vectors", "hash: pictures"]), COUNTS, COUNTS, st.floats(1e-6, 1e9))
def test_how_far_work_has_come_is_read_from_its_sentence(what: str, done: int, total: int, rate: float) -> None:
    made = Advanced(what=what, done=done, total=total, unit="pictures", rate=rate)
    found = Advanced.read(made.sentence())
    assert found is not None
    assert (found.what, found.done, found.total, found.unit) == (what, done, total, "pictures")
    if (made.seconds_left or 0) >= 1:
        assert found.seconds_left == pytest.approx(made.seconds_left, abs=0.51)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "training on 2 workers, step 1 to 400",
        "download: 3 of 4 pictures",
        "download: 3 of 4 pictures (1.0/s) and more",
        "download: , of 4 pictures (1.0/s)",
        f"download: {'9' * 5_000} of 4 pictures (1.0/s)",
        "download: 3 of 4 pictures (1.0.0/s)",
    ],
)
def test_other_lines_are_no_progress(line: str) -> None:
    assert Advanced.read(line) is None
