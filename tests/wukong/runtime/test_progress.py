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


def test_lines_are_apart_and_tell_the_time_that_is_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 1.0, 4.0, 4.5, 8.0])
    monkeypatch.setattr("wukong.runtime.progress.time.monotonic", lambda: next(now))
    with caplog.at_level(logging.INFO), progress.track("searching", total=40, unit="queries") as advance:
        for _ in range(3):
            advance(10)
    assert caplog.messages == [
        "searching: 20 of 40 queries (5.0/s, 4 s left)",
        "searching: 30 of 40 queries (3.8/s, 3 s left)",
    ]
