import json
import logging
from pathlib import Path

import pytest

from wukong.runtime import progress


def test_progress_is_a_line_for_people_and_an_event_for_programs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "events.jsonl"
    file.touch()
    monkeypatch.setenv("WUKONG_EVENTS", str(file))
    with caplog.at_level(logging.INFO), progress.track("downloading", total=12_000, unit="pictures") as advance:
        advance(3_000)
        advance(9_000)
    assert caplog.messages[-1].startswith("downloading: 12,000 of 12,000 pictures (")
    (event,) = (json.loads(line) for line in file.read_text().splitlines() if line)
    assert event.pop("rate") > 0
    assert event == {"kind": "advanced", "what": "downloading", "done": 12_000, "total": 12_000, "unit": "pictures"}


def test_lines_are_a_minute_apart_and_tell_the_time_that_is_left_and_events_are_more_frequent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "events").touch()
    monkeypatch.setenv("WUKONG_EVENTS", str(tmp_path / "events"))
    now = 0.0
    monkeypatch.setattr("wukong.runtime.progress.time.monotonic", lambda: now)
    with caplog.at_level(logging.INFO), progress.track("searching", total=1_500, unit="queries") as advance:
        for _ in range(150):  # a second each
            now += 1
            advance(10)
    assert caplog.messages == [
        "searching: 600 of 1,500 queries (10.0/s, 90 s left)",
        "searching: 1,200 of 1,500 queries (10.0/s, 30 s left)",
        "searching: 1,500 of 1,500 queries (10.0/s)",
    ]
    told = [json.loads(line)["done"] for line in (tmp_path / "events").read_text().splitlines() if line]
    assert told == [*range(20, 1_500, 20), 1_500]
