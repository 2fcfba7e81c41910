"""A stage that is added as an entry of the table and a job is done once, then found finished before a job starts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ray_jobs
import wukong
from wukong.store import storage

ENTRY = """
    Entry(
        name="tally",
        title="Tally",
        hands_on="a number",
        parents=("filter",),
        key_parents=("filter",),
        version=1,
        from_experiment=lambda experiment: {"about": experiment.about},
        in_whole_run=False,
    ),
)
\"\"\"Every stage; a stage stands after all that it reads.\"\"\"
"""
JOB = """
from wukong.stages import places


def run(experiment, parents):
    stage = places.of("tally", experiment, parents)
    return stage.finished() or stage.made(lambda: stage.commit([], counts={"captions": 3}))
"""
DO_IT_TWICE = """
import json, sys

from ray_jobs.launch import launch
from wukong.config import documents
from wukong.runs import run_records
from wukong.stages import places

store = sys.argv[1]


def experiment(about):
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    return documents.parse({"name": "x", "storage": store, "about": about, "crawl": crawl})


settings, other = experiment("birds"), experiment("bees")
filtered = places.of("filter", settings, {"crawl": places.Stage(settings.root, "crawl", {}).commit([])}).commit([])
given = {"filter": filtered}
before = places.finished("tally", settings, given)
made = [launch("tally", settings, run, [f"{filtered.uri}/manifest.json"]) for run in ("first", "second")]
print(json.dumps({
    "before": before,
    "counts": made[0].counts,
    "config": made[0].config,
    "found": places.finished("tally", settings, given) == made[0] == made[1],
    "reused": [run_records.read(settings, run, "tally").reused for run in ("first", "second")],
    "of another experiment": places.finished("tally", other, given),
    "without its parent": places.finished("tally", settings, {}),
}))
"""


@pytest.mark.long
def test_a_stage_is_an_entry_and_a_job(tmp_path: Path) -> None:
    for package in (wukong, ray_jobs):
        folder = Path(package.__file__).parent
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("*.pyc"))
    table = tmp_path / "wukong" / "stages" / "__init__.py"
    end = ')\n"""Every stage; a stage stands after all that it reads."""\n'
    text = table.read_text(encoding="utf-8")
    assert text.count(end) == 1
    table.write_text(text.replace(end, ENTRY.removeprefix("\n")), encoding="utf-8")
    (tmp_path / "ray_jobs" / "tally.py").write_text(JOB)
    ended = subprocess.run(
        [sys.executable, "-c", DO_IT_TWICE, storage.from_path(tmp_path / "store")],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["before"] is None
    assert (told["counts"], told["config"]) == ({"captions": 3}, {"about": "birds"})
    assert told["found"]
    assert told["reused"] == [False, True], "the second run starts no job"
    assert told["of another experiment"] is told["without its parent"] is None
