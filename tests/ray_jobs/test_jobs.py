"""The job's entry point: what it records, whatever ended the stage."""

import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
import timm
from safetensors.torch import save_file

from ray_jobs.launch import JobError, launch
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import DataError
from wukong.runs import run_records
from wukong.store import storage

pytestmark = pytest.mark.slow


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    crawl = {"queries": storage.from_path(tmp_path / "none.txt"), "endpoint": "http://site.invalid/search"}
    return documents.parse({"name": "x", "storage": storage.from_path(tmp_path), "crawl": crawl})


def test_the_error_of_a_stage_is_the_error_of_its_launch(experiment: Experiment) -> None:
    with pytest.raises(JobError, match=r"none\.txt") as caught:
        launch("crawl", experiment, "first", [], filed_as="second-crawl")
    assert "Traceback" not in str(caught.value), "a user's mistake needs no traceback"
    record = run_records.read(experiment, "first", "second-crawl")
    assert record is not None
    assert (record.state, record.error) == ("failed", str(caught.value))
    assert run_records.read(experiment, "first", "crawl") is None, "it is another record"


@pytest.mark.long
def test_weights_of_another_tower_end_the_first_job_before_its_work(
    experiment: Experiment, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    other = {name: value.contiguous() for name, value in timm.create_model("test_vit2").state_dict().items()}
    save_file(other, tmp_path / "tower.safetensors")
    image = {"name": "test_vit", "weights": storage.from_path(tmp_path / "tower.safetensors")}
    changed = documents.parse({**experiment.model_dump(), "model": {"image": image}})
    with pytest.raises(JobError, match=r"model\.image\.weights: .*tower\.safetensors does not fit"):
        launch("crawl", changed, "first", [])


def test_an_unfinished_parent_is_named(experiment: Experiment, tmp_path: Path) -> None:
    uri = storage.join(experiment.root, "experiment.json")
    storage.write_json(uri, experiment.model_dump(mode="json"))
    missing = storage.from_path(tmp_path / "crawl" / "manifest.json")
    command = [sys.executable, "-m", "ray_jobs", "filter", "--experiment", uri, "--run", "r", "--parent", missing]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    record = run_records.read(experiment, "r", "filter")
    assert record is not None
    assert "the stage has not finished" in record.error


_SEVERAL_ERRORS = """
import time
from ray_jobs.connection import connect
from ray_jobs.exchange import run_all

def fail(number):
    time.sleep(number)
    raise ValueError(f"group {number} is damaged")

connect()
try:
    run_all(fail, [(0,), (1,)])
except ValueError as error:
    print(error)
time.sleep(3)
"""


@pytest.mark.long
def test_errors_that_follow_the_first_one_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ended = subprocess.run([sys.executable, "-c", _SEVERAL_ERRORS], capture_output=True, text=True, check=True)
    assert "group 0 is damaged" in ended.stdout
    assert "group 1 is damaged" not in ended.stdout + ended.stderr


def test_a_job_that_is_killed_says_so(experiment: Experiment) -> None:
    def kill() -> None:
        while True:
            for child in psutil.Process().children():
                with suppress(psutil.Error):  # one that has just ended has no command line
                    if "ray_jobs" in child.cmdline():
                        child.kill()
                        return
            time.sleep(0.01)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(JobError, match=r"crawl job was killed by SIGKILL .* run again, and it goes on"):
        launch("crawl", experiment, "first", [])
    record = run_records.read(experiment, "first", "crawl")
    assert record is not None
    assert (record.state, "SIGKILL" in record.error) == ("failed", True)


@pytest.mark.usefixtures("local_ray")
def test_our_error_is_found_inside_what_ray_wraps_around_it() -> None:
    import ray

    from ray_jobs.__main__ import _explained_cause

    @ray.remote
    def fails() -> None:
        raise DataError("part 7 is truncated")

    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(fails.remote())
    assert str(_explained_cause(caught.value)) == "part 7 is truncated"
