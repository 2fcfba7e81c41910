"""Which images pods have run, read from a Kubernetes API on loopback that answers as a cluster's does."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import api_server
import pytest
from api_server import ApiServer
from played_ray_job import FAST, NEW, RUNNING, SUCCEEDED, run

from ray_jobs.launch.kuberay import images_of_this_pod, pipeline_run, run_job
from wukong.config.experiment import Experiment
from wukong.runs import origin
from wukong.stages.access import S3_KEYS, key_of_component
from wukong.store import storage

DIGESTS = [f"sha256:{digit * 64}" for digit in "abc"]


def running(name: str, images: dict[str, str], identities: dict[str, str]) -> dict[str, Any]:
    """A pod of the Ray cluster, with the image of each container and the ID that its status has."""
    states = [
        {"name": each, "image": "x", "imageID": identity, "ready": True, "restartCount": 0}
        for each, identity in identities.items()
    ]
    made = api_server.pod(name, {"phase": "Running", "containerStatuses": states}, {"ray.io/cluster": "job-q8z4d"})
    made["spec"]["containers"] = [{"name": each, "image": image} for each, image in images.items()]
    return made


def test_a_stage_says_which_images_its_pods_have_run(server: ApiServer, experiment: Experiment) -> None:
    image = {"ray": "registry.example/ray:1"}
    first = [
        running("head", image, {"ray": ""}),
        running("worker", image, {"ray": f"registry.example/ray@{DIGESTS[0]}"}),
    ]
    moved = [running("later", image, {"ray": f"registry.example/ray@{DIGESTS[1]}"})]

    def noted(count: int) -> tuple[str, Any]:
        return ("until", lambda: len(origin.images_of(experiment, "Nightly_7").get("filter", [])) == count)

    server.scripts = [[NEW, ("pods", first), RUNNING, noted(1), ("pods", moved), noted(2), ("pods", []), SUCCEEDED]]
    run(experiment)
    expected = [f"registry.example/ray:1@{digest}" for digest in DIGESTS[:2]]
    assert origin.images_of(experiment, "Nightly_7") == {"filter": expected}, "a tag that was moved shows"


@pytest.mark.parametrize(
    ("component", "stage", "record"), [("crawl", "crawl", "crawl"), ("register", "evaluate", "champion")]
)
def test_the_components_key_may_write_what_is_noted_of_its_job(
    server: ApiServer, experiment: Experiment, component: str, stage: str, record: str
) -> None:
    pods = [running("head", {"ray": "registry.example/ray:1"}, {"ray": f"registry.example/ray@{DIGESTS[0]}"})]
    noted = ("until", lambda: record in origin.images_of(experiment, "first"))
    server.scripts = [[NEW, ("pods", pods), RUNNING, noted, SUCCEEDED]]
    run_job(stage, experiment, "first", [stage], {}, "wukong", FAST, record_name=record)
    written = [uri.removeprefix(f"{experiment.storage}/") for uri in storage.list_files(f"{experiment.root}/runs")]
    assert {place.split("/")[3] for place in written} == {"images"}
    may = S3_KEYS[key_of_component(component)].writes
    assert [place for place in written if not any(fnmatchcase(place, pattern) for pattern in may)] == []


def test_outputs_of_a_job_name_its_image(server: ApiServer, experiment: Experiment) -> None:
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    (job,) = server.jobs.values()
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "WUKONG_IMAGE", "value": head["image"]} in head["env"]


@pytest.fixture
def in_a_pod(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process counts as a component's; Kubeflow's Role ``pipeline-runner`` lets it read pods."""
    server.rules["kubeflow"].append({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]})
    (tmp_path / "namespace").write_text("kubeflow\n")
    monkeypatch.setattr(pipeline_run, "NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("KFP_POD_NAME", "component-1")
    images = {"main": "registry.example/data:1", "wait": "quay.example/argoexec:3"}
    server.pods = [running("component-1", images, dict(zip(images, DIGESTS, strict=False)))]


@pytest.mark.usefixtures("in_a_pod")
def test_a_component_knows_the_image_of_its_own_container() -> None:
    assert images_of_this_pod() == {f"registry.example/data:1@{DIGESTS[0]}"}


@pytest.mark.usefixtures("in_a_pod")
def test_a_component_that_may_not_look_says_so(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    server.rules["kubeflow"].pop()
    assert images_of_this_pod() == frozenset()
    assert "the image of this pod is not written down" in caplog.text


def test_outside_of_a_pod_there_is_none(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    assert images_of_this_pod() == frozenset()
    assert not server.requests
