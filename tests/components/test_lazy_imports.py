"""What starts with every component's pod stays small."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wukong.config import documents, stored
from wukong.store import storage
from wukong.store.manifest import Stage

HEAVY = ("torch", "ray", "polars", "pandas", "mlflow", "kubernetes", "great_expectations", "jieba", "cv2", "PIL", "kfp")
TO_THE_RAYJOB = """
import sys
from ray_jobs.launch import kuberay

def run_job(*given, **named):
    print(" ".join(sys.modules))
    sys.exit()

kuberay.run_job = run_job
from components.stage import run_stage
run_stage("filter", sys.argv[1], "first", [sys.argv[2]], "unused")
"""


def heavy(script: str, *arguments: str, **variables: str) -> list[str]:
    """What is loaded at the end of a program that prints the names of its modules last."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | variables)
    loaded = done.stdout.splitlines()[-1].split()
    return [name for name in HEAVY if name in loaded]


def test_a_component_begins_without_what_only_jobs_need() -> None:
    assert heavy("import sys, components.stage, components.run_ends; print(' '.join(sys.modules))") == []


@pytest.mark.long
def test_a_component_comes_to_its_rayjob_with_nothing_that_is_large(tmp_path: Path, mlflow_address: str) -> None:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    given = {"name": "lazy-imports", "storage": storage.from_path(tmp_path), "crawl": crawl}
    experiment = documents.parse(given)
    stage = Stage(experiment.root, "crawl", {"made": "up"})
    storage.write_json(stage.path("part.json"), {})
    parent = tmp_path / "manifest.json"
    parent.write_text(stage.commit([stage.describe("part.json")]).model_dump_json(), encoding="utf-8")
    uri = stored.store(experiment)
    variables = {"MLFLOW_TRACKING_URI": mlflow_address, "WUKONG_CLUSTER": "wukong"}
    assert heavy(TO_THE_RAYJOB, uri, str(parent), **variables) == []
