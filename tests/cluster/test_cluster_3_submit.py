"""``wukong submit --json`` on a cluster: its exit status and its JSON, of runs that end in different ways."""

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kube
import pytest
import runs
from session import State, experiment_of

from wukong import stages

ROOT = Path(__file__).parents[2]
REFUSED_SECONDS = 60.0
"""In which a config that is not valid is refused, on two busy cores."""


@dataclass
class Said:
    """What the command left: its exit status, its JSON, and what it wrote for people."""

    status: int
    value: dict[str, Any]
    people: str


class Command:
    """The command, which waits for the end of a run of the session's experiment."""

    def __init__(self, services: runs.Services, kept: State, folder: Path, name: str, *further: str) -> None:
        self._out, self._err = folder / f"{name}.json", folder / f"{name}.txt"
        self.name, self.submitted = name, time.time()
        words = ["submit", "training", "--wait", "--json", "--name", name, "--host", services.kfp]
        config = ["--config", str(runs.EXPERIMENT), "--set", f"name={kept.values['experiment']}"]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", *words, *config, *further], cwd=ROOT, stdout=out, stderr=err
            )

    def run(self) -> runs.Run:
        """The run, once it has begun."""

        def identity() -> str | None:
            found = re.search(r"#/runs/details/([\w-]+)", self._err.read_text(encoding="utf-8"))
            return found[1] if found else None

        return runs.Run(kube.until("the page of the run", identity, 120, 1), self.name, self.submitted)

    def end(self, seconds: float = runs.A_RUN) -> Said:
        """Wait for its end."""
        try:
            status = self._process.wait(seconds)
        finally:
            self._process.kill()
        people = self._err.read_text(encoding="utf-8")
        print(people, flush=True)
        return Said(status, json.loads(self._out.read_text(encoding="utf-8")), people)


def digests_of(pods: list[kube.Object], container: str = "") -> set[str]:
    """What containers of pods have run, as Kubernetes says it."""
    states = [status for pod in pods for status in pod["status"].get("containerStatuses", [])]
    found = [re.search(r"sha256:[0-9a-f]{64}", each["imageID"]) for each in states if container in ("", each["name"])]
    return {each[0] for each in found if each}


@pytest.mark.cluster(
    claim="`wukong submit --wait --json` of a run that succeeds ends with status 0; its JSON has every stage with its "
    "manifest, the report, the metrics, the gate's decision, the revision of the config, and the images that the pods "
    "ran; MLflow has revision and images as tags",
    how="the first run's experiment again, by the command; digests and images beside the records, the pods' statuses "
    "and `git rev-parse HEAD`",
)
def test_a_run_that_succeeds(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str, tmp_path: Path
) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True)
    command = Command(services, session_state, tmp_path, f"json-{stamp}")
    run = command.run()
    said = command.end()
    made, value = experiment_of(session_state), said.value
    assert (said.status, value["outcome"], value["id"]) == (0, "succeeded", run.identity)
    # The images may be of another revision than this checkout; then that is the only note.
    differs = value["image_revision"] != value["source"]["code"]
    assert len(value["notes"]) == differs and value["image_revision"], value["notes"]
    assert {entry["stage"]: entry["manifest"] for entry in value["stages"] if entry["manifest"]} == {
        name: record.manifest for name, record in runs.records(made, run).items() if record.manifest
    }
    assert {entry["stage"] for entry in value["stages"] if entry["seconds"] is not None} == set(stages.WHOLE_RUN)
    assert value["report"].endswith(f"/runs/{run.name}/report.html")
    assert "eval/retrieval/holdouts/mean_recall" in value["metrics"]
    assert value["gate"]["model"] == made.registry.model_name
    assert value["source"]["revision"] == head.stdout.strip()
    ran = digests_of(runs.component_pods(run), "main")
    assert ran == {image.partition("@")[2] for image in value["images"] if "@" in image}
    tags = runs.mlflow_tags(services, made, run)
    assert tags["wukong.source.revision"] == value["source"]["revision"]
    assert tags["wukong.images"].split() == value["images"]
    found.append(f"status 0 after {time.time() - run.submitted:.0f} s, {len(value['stages'])} stages")
    found.append(f"{value['source']['file']} at {value['source']['revision'][:12]}; {value['images'][0]}")


@pytest.mark.cluster(
    claim="`wukong submit --wait --json` of a run that is terminated ends with status 4; its JSON says so, and has the "
    "images of the stage that was under way",
    how="KFP's terminate after pre-training has written a checkpoint; the images beside the statuses of Ray's pods",
)
def test_a_run_that_is_terminated(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str, tmp_path: Path
) -> None:
    epochs = 30_000 + int(time.time()) % 1000
    made = experiment_of(session_state, f"pretrain.epochs={epochs}")
    checkpoints = runs.NewCheckpoints(made)
    command = Command(services, session_state, tmp_path, f"terminated-{stamp}", "--param", f"epochs={epochs}")
    run = command.run()
    kube.until("a checkpoint", checkpoints.seen, 1200, 3)
    (job,) = runs.ray_jobs(run, "pretrain")
    ran = digests_of(kube.listed("pods", f"ray.io/cluster={job['status']['rayClusterName']}"))
    assert ran
    asked = time.monotonic()
    services.client.terminate_run(run.identity)
    said = command.end(900)
    found.append(f"status {said.status} after {time.monotonic() - asked:.0f} s, state {said.value['state']}")
    assert (said.status, said.value["outcome"], said.value["id"]) == (4, "terminated", run.identity)
    assert "terminated" in said.value["error"]
    by_name = {entry["stage"]: entry for entry in said.value["stages"]}
    assert by_name["crawl"]["state"] == "succeeded" and by_name["crawl"]["reused"]
    assert {image.partition("@")[2] for image in by_name["pretrain"]["images"]} == ran
    assert said.value["report"] is None


@pytest.mark.cluster(
    claim="`wukong submit --wait --json` of a run that is refused ends with status 1: of a config that is not valid "
    "before anything is submitted, of one that the cluster refuses after the run's first task and without a RayJob",
    how="`pretrain.epochs=0`; `model.image.weights` that the bucket does not have",
)
def test_a_run_that_is_refused(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    said = Command(services, session_state, tmp_path, f"invalid-{stamp}", "--set", "pretrain.epochs=0").end(300)
    taken = time.monotonic() - began
    assert (said.status, said.value["outcome"], said.value["id"]) == (1, "refused", None)
    assert "pretrain.epochs" in said.value["error"] and "pretrain.epochs" in said.people
    assert taken < REFUSED_SECONDS
    missing = "model.image.weights=s3://wukong/none/model.safetensors"
    command = Command(services, session_state, tmp_path, f"refused-{stamp}", "--set", missing)
    run = command.run()
    said = command.end(900)
    found.append(f"{taken:.0f} s, and {time.time() - run.submitted:.0f} s by the run's first task")
    assert (said.status, said.value["outcome"], said.value["id"]) == (1, "refused", run.identity)
    assert said.value["stages"] == []
    assert not runs.ray_jobs(run)
