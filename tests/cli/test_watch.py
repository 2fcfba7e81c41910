"""What ``wukong run`` shows of what its processes tell, one of which dies early."""

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.watch import Watch, curve, waiting
from wukong.commands.output import Console
from wukong.runtime import events

STAGE = """
import os, signal, sys
from wukong.runtime import events, progress

with events.stage(sys.argv[1]):
    with progress.track("download", 2_000, "pictures") as advance:
        advance(2_000)
    if sys.argv[2:]:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_other_processes_tell_what_they_do_and_one_that_dies_has_not_ended(tmp_path: Path) -> None:
    shown = io.StringIO()
    with (
        events.received(tmp_path / "events.jsonl") as reader,
        Watch(Console(file=shown, width=200), reader).shown(),
    ):
        for arguments in (["crawl"], ["filter", "dies"]):
            subprocess.run([sys.executable, "-c", STAGE, *arguments], check=False)
    lines = shown.getvalue().splitlines()
    assert lines[0].startswith("  download: 2,000 of 2,000 pictures (")
    assert lines[1].startswith("✓ crawl  ") and lines[1].endswith(" s")
    assert [line[:10] for line in lines[2:]] == ["  download"], "the stage that died has not ended by itself"


def test_without_a_terminal_a_stage_is_a_line_a_minute_and_one_at_the_end_of_each_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, shown = 0.0, io.StringIO()
    monkeypatch.setattr("cli.watch.time.monotonic", lambda: now)
    with events.received(tmp_path / "events") as reader:
        watch = Watch(Console(file=shown, width=200), reader)
        events.write(events.Begun(stage="crawl"))
        watch.catch_up()
        for done in range(2, 152, 2):
            now = float(done)
            events.write(events.Advanced(what="download", done=done, total=150, unit="pictures", rate=1.0))
            watch.catch_up()
    assert [line.partition(" of ")[0] for line in shown.getvalue().splitlines()] == [
        "  download: 60",
        "  download: 120",
        "  download: 150",
    ]


def test_a_terminal_shows_a_table_with_a_bar(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with events.received(tmp_path / "events") as reader:
        watch = Watch(console, reader)
        with events.stage("crawl"):
            pass
        events.write(events.Begun(stage="filter"))
        events.write(events.Advanced(what="rules", done=3, total=4_000, unit="parts", rate=1.0))
        watch.catch_up()
        events.write(events.Ended(stage="validate", state="failed", seconds=2.0))
    drawn = Console(file=io.StringIO(), width=100)
    drawn.print(watch)
    assert isinstance(drawn.file, io.StringIO)
    text = drawn.file.getvalue()
    assert "✓ crawl" in text and "filter" in text and "rules: 3/4,000 parts" in text
    watch.catch_up()
    drawn.print(watch)
    assert "✗ validate    2.0 s" in drawn.file.getvalue()


def test_what_a_training_measures_is_a_curve_with_the_best_so_far(tmp_path: Path) -> None:
    now = io.StringIO()
    with events.received(tmp_path / "events") as reader:
        watch = Watch(Console(file=now, width=200), reader)
        events.write(events.Begun(stage="pretrain"))
        for loss, recall in ((5.0, 0.1), (3.0, 0.3), (1.0, 0.2)):
            events.write(events.Measured(name="loss", value=loss))
            events.write(events.Measured(name="recall", value=recall, best=max(recall, 0.3)))
        events.write(events.Advanced(what="training", done=64, total=64, unit="pairs", rate=1.0))
        watch.catch_up()
        drawn = io.StringIO()
        Console(file=drawn, width=100).print(watch)
        events.write(events.Begun(stage="finetune"))
        watch.catch_up()
        Console(file=drawn, width=100).print(watch)
    assert now.getvalue().rstrip().endswith("(1.0/s); loss 1; recall 0.2, best so far 0.3")
    lines = [line.strip().split(maxsplit=1) for line in drawn.getvalue().splitlines()[1:3]]
    assert lines == [["█▅▁", "loss 1"], ["▁█▅", "recall 0.2, best so far 0.3"]]
    assert drawn.getvalue().count("loss") == 1, "another stage begins without"


@pytest.mark.parametrize(
    ("values", "drawn"),
    [([], ""), ([3.0], "▁"), ([1.0, 1.0], "▁▁"), (list(range(8)), "▁▂▃▄▅▆▇█"), ([float("nan"), 0.0, 7.0], "▁█")],
)
def test_a_curve_goes_from_the_lowest_block_to_the_highest(values: list[float], drawn: str) -> None:
    assert curve(values) == drawn


def test_of_a_long_training_the_last_points_are_drawn() -> None:
    assert curve([100.0, *[0.0] * 39, 1.0]) == "▁" * 39 + "█"


def test_a_chinese_reader_sees_the_same_events_in_chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGUAGE", "zh")
    lines, drawn = io.StringIO(), io.StringIO()
    with events.received(tmp_path / "events") as reader:
        watch = Watch(Console(file=lines, width=200), reader)
        events.write(events.Begun(stage="crawl"))
        events.write(events.Advanced(what="download", done=1_500, total=1_500, unit="pictures", rate=20.0))
        events.write(events.Ended(stage="crawl", state="succeeded", seconds=75.0))
        events.write(events.Begun(stage="pretrain"))
        events.write(events.Measured(name="loss", value=2.5, best=2.25))
        events.write(events.Advanced(what="training", done=5, total=10, unit="pairs", rate=1.0))
        watch.catch_up()
    Console(file=drawn, width=100).print(watch)
    assert lines.getvalue().splitlines() == ["  下载：图像 1,500/1,500（20.0/秒）", "✓ crawl  75.0 s"]
    assert "训练: 5/10 图文对" in drawn.getvalue() and "loss 2.5，目前最佳 2.25" in drawn.getvalue()


def test_what_is_waited_for_is_said_at_once_and_leaves_nothing_on_a_terminal() -> None:
    plain, terminal = io.StringIO(), io.StringIO()
    with waiting(Console(file=plain)) as tell:
        tell("Starting the services of the stack that do not run")
        assert plain.getvalue() == "Starting the services of the stack that do not run …\n"
    with waiting(Console(file=terminal, force_terminal=True, width=80)) as tell:
        assert terminal.getvalue() == "", "a progress bar of its own may be drawn before"
        tell("Starting the services")
        until = time.monotonic() + 20
        while "Starting the services …" not in terminal.getvalue() and time.monotonic() < until:
            time.sleep(0.05)
        assert "Starting the services …" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K"), "the line is erased"
