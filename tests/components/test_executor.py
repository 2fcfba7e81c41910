"""The command of a compiled component's container, and what its log begins with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from pipelines import compile as compiling


def test_the_log_of_a_component_has_its_own_lines_alone(tmp_path: Path) -> None:
    documents = yaml.safe_load_all((compiling.FOLDER / "training.yaml").read_text(encoding="utf-8"))
    container = next(iter(documents))["deploymentSpec"]["executors"]["exec-record-end"]["container"]
    output = tmp_path / "output.json"
    values = {"experiment": {"name": "悟空"}, "overrides": [], "run": "", "job": "training-x7k2p", "stages": []}
    status = {"state": "FAILED", "pipelineJobResourceName": "x", "pipelineTaskName": "y", "error": {}}
    given = {"inputs": {"parameterValues": values | {"status": status}}, "outputs": {"outputFile": str(output)}}
    arguments = [json.dumps(given) if argument == "{{$}}" else argument for argument in container["args"]]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*container["command"], *arguments],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        capture_output=True,
        text=True,
    )
    first, *_ = done.stdout.splitlines()
    assert "| ERROR | nothing to record, the run never had a valid experiment and name" in first
    assert "executor" not in done.stdout
    assert json.loads(output.read_text()) == {}
