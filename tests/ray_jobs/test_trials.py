"""``wukong sweep`` as a user starts it: its trials are real jobs on a real Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from test_training_jobs import crawl as crawl  # noqa: PLC0414 - the fixture
from test_training_jobs import experiment

from ray_jobs import filter as filter_job
from wukong.runs import run_records
from wukong.runs.run_records import Record
from wukong.stages import places
from wukong.store import storage
from wukong.store.manifest import Manifest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.long
def test_trials_are_trained_once_and_compared(crawl: Manifest, tmp_path: Path, local_ray: None) -> None:
    base = experiment(tmp_path, {"workers": 1}, epochs=1, workers=1)
    filtered = filter_job.run(base, {"crawl": crawl})
    run_records.claim(base, "data")
    for made in (crawl, filtered):
        run_records.write(
            base, "data", Record(stage=made.stage, state="succeeded", manifest=f"{made.uri}/manifest.json")
        )
    (tmp_path / "base.yaml").write_text(json.dumps(base.model_dump(mode="json")), encoding="utf-8")
    file = tmp_path / "sweep.yaml"
    parameters = {"finetune.learning_rate": [0.001, 0.002]}
    value = {"name": "rates", "experiment": "base.yaml", "parameters": parameters}
    file.write_text(json.dumps(value), encoding="utf-8")  # which is YAML too
    variables = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "WUKONG_HOME": str(tmp_path / "home"),
    }
    variables.pop("MLFLOW_TRACKING_URI", None)

    def started() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "cli.main", "sweep", str(file)]
        return subprocess.run(command, env=variables, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    def trained(stage: str) -> list[str]:
        return sorted(storage.list_files(storage.join(base.root, stage), "/manifest.json"))

    ungated = started()
    assert ungated.returncode and "passed the gate" in ungated.stderr
    places.validation(base, filtered).commit([])

    first = started()
    log = (tmp_path / "home" / "sweeps" / "rates.log").read_text(encoding="utf-8")
    assert not first.returncode, f"{first.stdout}{first.stderr}{log}"
    assert first.stdout.count("finetune.learning_rate=0.00") == 2 and "Best: rates-" in first.stdout
    kept = {stage: trained(stage) for stage in ("features", "pretrain", "finetune", "evaluate")}
    # The features of the training pairs and those of the hold-outs; pre-training is the same for both.
    assert {stage: len(found) for stage, found in kept.items()} == {
        "features": 2, "pretrain": 1, "finetune": 2, "evaluate": 2,
    }  # fmt: skip

    again = started()
    assert not again.returncode and again.stdout.splitlines()[:2] == first.stdout.splitlines()[:2]
    assert {stage: trained(stage) for stage in kept} == kept
    assert (tmp_path / "home" / "sweeps" / "rates.log").read_text(encoding="utf-8") == log


@pytest.mark.slow
def test_a_trial_whose_process_ends_names_the_log(crawl: Manifest, tmp_path: Path, local_ray: None) -> None:
    from cli.sweep import _Workers
    from wukong.registry.sweep import Trial

    filtered = filter_job.run(experiment(tmp_path), {"crawl": crawl})
    with (tmp_path / "sweep.log").open("a", encoding="utf-8") as log:
        workers = _Workers(filtered, 1, log)
        try:
            worker = workers._worker(0)
            worker.process.kill()
            answer = worker(Trial(0, "rates-1", {}, experiment(tmp_path)))
        finally:
            workers.close()
    assert answer["error"] == (
        f"its process was killed by signal 9, {tmp_path / 'sweep.log'} may say why; start the sweep again"
    )
