"""A dry run and the homes of a machine: nothing is left behind, and other homes are named."""

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from infra.stack import state
from wukong.runtime import environment

ROOT = Path(__file__).parents[2]
WUKONG = Path(sys.executable).with_name("wukong")


def wukong(tmp_path: Path, home: Path, *arguments: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    variables = {"WUKONG_HOME": str(home), "XDG_STATE_HOME": str(tmp_path / "state"), "COLUMNS": "200"}
    done = subprocess.run(
        [WUKONG, *arguments], cwd=ROOT, env=kept | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_a_dry_run_in_a_new_place_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    other = tmp_path / "other" / ".wukong"
    other.mkdir(parents=True)
    (other / environment.FILE).write_text("{}")
    state.remember(other)
    home = tmp_path / "new" / ".wukong"
    said = wukong(tmp_path, home, "run", "--dry-run", "--corpus-size", "300")
    assert "Nothing was run (--dry-run), and no service was left running." in said
    assert f"note: {home} is a new home, with a stack of its own, and sees no run of {other}" in said
    assert not home.exists()
    caches = {"jieba.cache", f"torchinductor_{getpass.getuser()}"}  # of libraries, for the next process
    assert {path.name for path in (tmp_path / "tmp").iterdir()} <= caches
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path / "tmp") in str(p.info["cmdline"])]
    assert environment.homes() == [other], "what is gone is not remembered"


def test_the_status_names_all_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    here, other = (tmp_path / name / ".wukong" for name in ("here", "other"))
    for home in (here, other):
        home.mkdir(parents=True)
        (home / environment.FILE).write_text("{}")
        state.remember(home)
    said = wukong(tmp_path, here, "status")
    assert f"Home  {here}\n" in said
    assert f"Other home  {other} (stopped); WUKONG_HOME={other} uses it\n" in said
    listed = json.loads(wukong(tmp_path, here, "status", "--json"))
    assert listed["home"] == str(here) and listed["others"] == [{"home": str(other), "running": False}]
