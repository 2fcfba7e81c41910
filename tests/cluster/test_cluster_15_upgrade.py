"""The platform gets another version, and the one before again, each time while a run trains.

The other version has the same content under another tag, which the program that ``WUKONG_IMAGES`` names gives it
(``images``), another setup job, servers that are started again, and a database of MLflow that must be migrated.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import images
import kube
import pytest
import runs
import yaml
from session import Again, State, train_again

SERVERS = ("statefulset/object-store", "statefulset/postgres", "deployment/mlflow")
ONE_SCHEMA_BACK = """
import os
from alembic import command
from mlflow.store.db import utils
address = os.environ["MLFLOW_BACKEND_STORE_URI"]
engine = utils.create_sqlalchemy_engine_with_retry(address)
print("schema", utils._get_schema_version(engine))
if "back" == "{what}":
    command.downgrade(utils._get_alembic_config(address), "-1")
    print("schema", utils._get_schema_version(engine))
"""
"""Prints the schema of MLflow's database, and makes it that of an earlier version if ``what`` is ``back``."""


@dataclass
class Installed:
    """The installation of the session, and the same as another version.

    Attributes:
        overlay: its folder.
        tag: of the other version's images.
        pipelines: folder of the other version's.
    """

    overlay: str
    tag: str
    pipelines: Path

    def image(self, name: str) -> str:
        return images.tagged(name).replace(":0.2.0", f":{self.tag}")

    def other_version(self) -> list[kube.Object]:
        """The objects of the other version."""
        text = kube.kubectl("kustomize", self.overlay)
        for name in images.NAMES:
            text = text.replace(images.tagged(name), self.image(name))
        objects: list[kube.Object] = list(yaml.safe_load_all(text))
        for one in objects:
            if one["kind"] == "Job":
                one["metadata"]["name"] += f"-{self.tag}".replace(".", "-")
            if one["metadata"]["name"] == "ray-job" and one["kind"] == "ConfigMap":
                one["data"]["version"] = self.tag
                settings = yaml.safe_load(one["data"]["settings.yaml"])
                one["data"]["settings.yaml"] = yaml.safe_dump({**settings, "a_setting_of_this_version": 1})
            if one["kind"] in ("StatefulSet", "Deployment"):
                one["spec"]["template"]["metadata"].setdefault("annotations", {})["wukong/test-version"] = self.tag
        return objects


@pytest.fixture
def installation(services: runs.Services, overlay: str, tmp_path: Path, stamp: str) -> Iterator[Installed]:
    """The installation, and what the other version needs; afterwards the cluster has the one that was there."""
    images.program()
    _apply_first(overlay)
    _wait_for_servers()
    made = Installed(overlay, f"0.2.0-next-{stamp}", tmp_path / "pipelines")
    for name in images.NAMES:
        images.do("name", images.tagged(name), made.image(name))
    images.compiled(made.pipelines, made.image("data"))
    try:
        yield made
    finally:
        _apply_first(overlay)
        _wait_for_servers()


def _apply_first(overlay: str) -> None:
    """Install the version that was there first, as docs/operating.md says."""
    kube.kubectl("-n", "wukong", "delete", "job", "-l", "app.kubernetes.io/component=setup", "--ignore-not-found")
    kube.kubectl("apply", "-k", overlay)


def _wait_for_servers() -> None:
    selector = "app.kubernetes.io/component=setup"
    newest = kube.listed("jobs", selector)[-1]["metadata"]["name"]
    kube.kubectl(*("-n", "wukong", "wait", "--for=condition=complete", "--timeout=900s", f"job/{newest}"), timeout=930)
    kube.rollout(*SERVERS, seconds=900)


def _schema(stamp: str, *, back: bool = False) -> list[str]:
    """The schema of MLflow's database, and after it that of an earlier version if it was made that."""
    deployment = kube.get("deployment", "mlflow")
    assert deployment is not None
    spec = deployment["spec"]["template"]["spec"]
    container = {**spec["initContainers"][0], "command": ["python", "-c"]}
    container["args"] = [ONE_SCHEMA_BACK.replace("{what}", "back" if back else "")]
    spec = {**spec, "initContainers": [], "containers": [container], "restartPolicy": "Never"}
    name = f"schema-{'back-' if back else ''}{stamp}"
    labels = {**deployment["spec"]["template"]["metadata"]["labels"], "wukong/test": "cluster"}
    metadata = {"name": name, "namespace": "wukong", "labels": labels}
    kube.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    return re.findall(r"(?m)^schema (\w+)$", kube.pod_output(name, "wukong"))


def _change(services: runs.Services, training: Again, change: Callable[[], None]) -> None:
    """Change the version while a run trains, and have its component start anew in the middle of that."""
    (job,) = runs.ray_jobs(training.run, "pretrain")
    pod = runs.component_pod(training.run, "pretrain")
    assert pod is not None
    change()
    runs.goes_on(services, training.made, training.run, 900, least=1)
    kube.kubectl("-n", "kubeflow", "delete", "pod", pod["metadata"]["name"], "--wait=false")
    _wait_for_servers()
    (after,) = runs.ray_jobs(training.run, "pretrain")
    assert after["metadata"]["uid"] == job["metadata"]["uid"], "the component did not find its RayJob again"


def _images_of(run: runs.Run) -> dict[str, set[str]]:
    """The images of a run's RayJobs, by stage."""
    found: dict[str, set[str]] = {}
    for job in runs.ray_jobs(run):
        cluster = job["spec"]["rayClusterSpec"]
        pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
        used = {container["image"] for pod in pods for container in pod["spec"]["containers"]}
        found.setdefault(job["metadata"]["labels"]["wukong/stage"], set()).update(used)
    return found


@pytest.mark.cluster(
    claim="While a run trains, the platform gets another version: images, setup job, settings of RayJobs, servers, and "
    "a schema to which MLflow's database is migrated. The run ends with the images with which it began and the digests "
    "of the undisturbed run; so does a run of the other version while the first one comes back",
    how="the overlay with other tags of the same images, started servers and a setting that the first version does not "
    "know; the database set back by one schema before; the component's pod deleted after each change; what the "
    "undisturbed run trained is deleted and trained again both times",
)
def test_another_version_and_back_while_runs_train(
    first: runs.Run,
    services: runs.Services,
    session_state: State,
    installation: Installed,
    found: list[str],
    stamp: str,
) -> None:
    newest = _schema(stamp)
    again = train_again(services, session_state, f"upgraded-{stamp}", stamp)
    runs.goes_on(services, again.made, again.run, 1200)
    kube.kubectl("-n", "wukong", "scale", "deployment/mlflow", "--replicas=0")
    selector = "app.kubernetes.io/name=wukong,app.kubernetes.io/component=mlflow"
    kube.kubectl("-n", "wukong", "delete", "pod", "-l", selector, "--grace-period=1")
    before = _schema(stamp, back=True)
    assert before[0] == newest[0] != before[1], "the database was not set back"
    began = time.monotonic()
    _change(services, again, lambda: kube.apply(*installation.other_version()))
    assert _schema(f"{stamp}-after") == newest
    found.append(f"schema {before[1]} to {newest[0]}; the change took {time.monotonic() - began:.0f} s")
    runs.succeed(services, again.run)
    assert runs.digests(again.made, again.run) == again.expected
    used = _images_of(again.run)
    assert set().union(*used.values()) == {images.tagged("ray")}, used
    assert {"pretrain", "finetune", "evaluate"} <= set(used)
    found.append(f"{len(used)} stages with {images.tagged('ray')}, digests as undisturbed")
    later = train_again(
        services, session_state, f"back-{stamp}", stamp, pipeline=str(installation.pipelines / "training")
    )
    runs.goes_on(services, later.made, later.run, 1200)
    began = time.monotonic()
    _change(services, later, lambda: _apply_first(installation.overlay))
    found.append(f"back: {time.monotonic() - began:.0f} s")
    assert yaml.safe_load(runs.launcher_settings())["image"] == images.tagged("ray")
    runs.succeed(services, later.run)
    assert runs.digests(later.made, later.run) == later.expected
    used = _images_of(later.run)
    assert set().union(*used.values()) == {installation.image("ray")}, used
    assert {"pretrain", "finetune", "evaluate"} <= set(used)
    found.append(f"{len(used)} stages with {installation.image('ray')}, digests as undisturbed")
    for each in (again, later):
        assert set(runs.mlflow_states(services, each.made, each.run).values()) == {"FINISHED"}
