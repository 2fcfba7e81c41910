"""``wukong logs`` on an excerpt of a real run's log, and on one that is being written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app

RECORDED = """\
11:28:57.220 - INFO - Running pipeline: \x1b[95m'wukong-training'\x1b[0m
----------------------------------------------------------------
11:29:17.867 - INFO - Executing task \x1b[96m'filter-pairs'\x1b[0m
11:29:17.867 - INFO - Streamed logs:

    [KFP Executor 2026-11-29 11:29:17,973 INFO]: Looking for component `filter_pairs` in --component_module_path `/x.py`
    [KFP Executor 2026-11-29 11:29:17,974 INFO]: Got executor_input:
    {
        "inputs": {}
    }
    [KFP Executor 2026-11-29 11:29:18,206 INFO]: Filter and split: makes the data for the run first
    11:29:21 | INFO | attempt 00001-cf749f70 at filter
    11:29:22 | ERROR | filter failed: no pair is left
    Traceback (most recent call last):
      File "job.py", line 3, in run
    ValueError: none
    [KFP Executor 2026-11-29 11:29:43,517 INFO]: Wrote executor output file to /y.json


11:29:43.904 - INFO - Task \x1b[96m'filter-pairs'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
11:29:43.905 - INFO - Task \x1b[96m'filter-pairs'\x1b[0m outputs:
    manifest: Artifact( name='manifest',
                        uri='/z')
11:29:43.908 - INFO - Executing task \x1b[96m'validate'\x1b[0m
    11:29:48 | INFO | attempt 00001-162e320c at validate
11:30:30.990 - INFO - Task \x1b[96m'validate'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
12:00:01 | INFO | crawl was finished already
"""
FILTER = """\
11:29:18 | INFO | Filter and split: makes the data for the run first
11:29:21 | INFO | attempt 00001-cf749f70 at filter
11:29:22 | ERROR | filter failed: no pair is left
Traceback (most recent call last):
  File "job.py", line 3, in run
ValueError: none
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with that log."""
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path))
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text(RECORDED, encoding="utf-8")
    return folder


def said(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["logs", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_stages_lines_are_shown_without_those_of_kfp(folder: Path) -> None:
    assert said("first", "filter") == FILTER
    assert said("first", "validate") == "11:29:48 | INFO | attempt 00001-162e320c at validate\n"
    assert said("first", "run") == "12:00:01 | INFO | crawl was finished already\n"


def test_all_stages_are_shown_under_their_names(folder: Path) -> None:
    lines = said().splitlines()
    assert [line for line in lines if not line.startswith(" ")] == ["filter:", "validate:", "run:"]
    assert [line[2:] for line in lines[1:7]] == FILTER.splitlines()


def test_the_whole_file_is_shown_as_it_is(folder: Path) -> None:
    assert said("first", "--all") == re.sub(r"\x1b\[\d+m", "", RECORDED)


def test_a_missing_run_or_stage_is_named(folder: Path) -> None:
    (folder.parent / "second").mkdir()
    for arguments, message in (
        (["second"], "no run 'second' has a log in .*; there are logs of: first"),
        (["first", "training"], "STAGE is 'training'; it must be one of: crawl, filter"),
        (["first", "crawl", "--all"], "leave out STAGE"),
    ):
        result = CliRunner().invoke(app, ["logs", *arguments])
        assert result.exit_code == 1
        with pytest.raises(type(result.exception), match=message):
            raise result.exception
    result = CliRunner().invoke(app, ["logs", "first", "crawl"])
    assert (result.exit_code, result.stdout) == (0, "") and "Nothing of crawl is in" in result.stderr


def test_a_run_at_work_is_followed_to_its_end(folder: Path) -> None:
    """The program that stands for the run begins to write once its log is read, and cuts lines in the middle."""
    program = (
        "import json, os, sys, time\n"
        "folder = sys.argv[1]\n"
        "open(f'{folder}/running.json', 'w').write(json.dumps({'pid': os.getpid()}))\n"
        "print('runs', flush=True)\n"
        "sys.stdin.readline()\n"
        "with open(f'{folder}/log.txt', 'a') as log:\n"
        "    for piece in ('12:00:02 | INFO | sea', 'rch\\n12:00:03 | INFO | ', 'end\\n'):\n"
        "        log.write(piece)\n"
        "        log.flush()\n"
        "        time.sleep(0.7)\n"
        "open(f'{folder}/running.json', 'w').close()\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stdin is not None
    assert run.stdout.readline() == "runs\n"
    command = [str(Path(sys.executable).with_name("wukong")), "logs", "first", "run", "--follow"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as shown:
        assert shown.stdout is not None
        assert "crawl was finished already" in shown.stdout.readline()
        run.stdin.write("\n")
        run.stdin.close()
        assert shown.stdout.read().splitlines()[-2:] == ["12:00:02 | INFO | search", "12:00:03 | INFO | end"]
    assert run.wait() == 0
