"""Which images pods have run, read from a Kubernetes API on loopback that answers as a cluster's does."""

from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import api_server
import pytest
from api_server import ApiServer
from played_ray_job import FAST, NEW, RUNNING, SUCCEEDED, leave_output, run

from ray_jobs.launch.kuberay import images_of_this_pod, keep_images, pipeline_run, run_job
from ray_jobs.launch.kuberay.manifest import images_of
from wukong.config.experiment import Experiment
from wukong.runs.run import Run
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
        return ("until", lambda: len(Run.of(experiment, "Nightly_7").images.get("filter", [])) == count)

    server.scripts = [[NEW, ("pods", first), RUNNING, noted(1), ("pods", moved), noted(2), ("pods", []), SUCCEEDED]]
    run(experiment)
    expected = [f"registry.example/ray:1@{digest}" for digest in DIGESTS[:2]]
    assert Run.of(experiment, "Nightly_7").images == {"filter": expected}, "a tag that was moved shows"


@pytest.mark.parametrize(
    ("component", "stage", "record"), [("crawl", "crawl", "crawl"), ("register", "evaluate", "champion")]
)
def test_the_components_key_may_write_what_is_noted_of_its_job(
    server: ApiServer, experiment: Experiment, component: str, stage: str, record: str
) -> None:
    pods = [running("head", {"ray": "registry.example/ray:1"}, {"ray": f"registry.example/ray@{DIGESTS[0]}"})]
    noted = ("until", lambda: record in Run.of(experiment, "first").images)
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


def _upgrade(server: ApiServer, version: str) -> None:
    """Have the cluster name the images of another version, as applying its manifests does."""
    data = server.config_maps["ray-job"]
    for name in ("settings.yaml", "template.yaml"):
        data[name] = data[name].replace("ray:0.2.0", f"ray:{version}")
    assert version in data["settings.yaml"] and version in data["template.yaml"]


def _images(job: dict[str, Any]) -> set[str]:
    submitter = job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]
    return {*images_of(job), submitter["image"]}


def test_a_run_ends_with_the_images_with_which_it_began(server: ApiServer, experiment: Experiment) -> None:
    keep_images(experiment, "before", "wukong")
    _upgrade(server, "0.3.0")
    keep_images(experiment, "after", "wukong")
    server.scripts = [[NEW, RUNNING, SUCCEEDED]] * 2
    run(experiment, name="before")
    run(experiment, name="after")
    old, new = server.jobs.values()
    assert (_images(old), _images(new)) == ({"localhost/wukong/ray:0.2.0"}, {"localhost/wukong/ray:0.3.0"})
    head = old["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "WUKONG_IMAGE", "value": "localhost/wukong/ray:0.2.0"} in head["env"]


def test_a_component_that_is_started_again_after_an_upgrade_finds_its_ray_job(
    server: ApiServer, experiment: Experiment
) -> None:
    """Without that a second RayJob trains beside the first, or waits for its GPUs."""
    done = [NEW, RUNNING, ("call", partial(leave_output, experiment, "before")), SUCCEEDED]
    server.scripts = [done, done]
    keep_images(experiment, "before", "wukong")
    run(experiment, name="before")
    _upgrade(server, "0.3.0")
    run(experiment, name="before")
    assert len(server.jobs) == 1


def test_a_run_that_begins_again_under_its_name_takes_the_images_of_then(
    server: ApiServer, experiment: Experiment
) -> None:
    keep_images(experiment, "same", "wukong")
    _upgrade(server, "0.3.0")
    keep_images(experiment, "same", "wukong")
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment, name="same")
    (job,) = server.jobs.values()
    assert _images(job) == {"localhost/wukong/ray:0.3.0"}


def test_a_pipeline_of_another_version_is_told_so(
    server: ApiServer, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    keep_images(experiment, "own", "wukong")
    assert not caplog.records
    server.config_maps["ray-job"]["version"] = "99.0"
    keep_images(experiment, "other", "wukong")
    assert "the RayJobs of this cluster have 99.0: upload its pipelines" in caplog.text


def test_a_cluster_that_says_nothing_leaves_it_to_the_stages(
    server: ApiServer, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    server.objects.clear()
    keep_images(experiment, "r", "wukong")
    assert "the images of the run are not written down" in caplog.text
