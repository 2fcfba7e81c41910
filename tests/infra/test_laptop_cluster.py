"""What `make cluster` decides to do; kind itself is not run here."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infra import laptop_cluster
from infra.images import build
from wukong.errors import StackError
from wukong.stages.ray_job import Settings

IMAGES = [build.tag(image) for image in build.IMAGES]
DOCS = Path("docs/cluster.md").read_text(encoding="utf-8")


def commands(clusters: list[str], images: list[str]) -> list[str]:
    return [" ".join(step.command) for step in laptop_cluster.steps(clusters, images)]


def test_a_first_time_makes_everything_in_order() -> None:
    made = commands([], [])
    order = ["kind create cluster", "infra.images.build data ray mlflow", "kind load", "kuberay", "kubeflow/pipelines"]
    places = [next(number for number, command in enumerate(made) if part in command) for part in order]
    assert places == sorted(places)
    assert "apply -k k8s/overlays/kind" in made[-4]
    assert all(f"--kubeconfig={laptop_cluster.KUBECONFIG}" in command for command in made if "kubectl" in command)


def test_a_second_time_keeps_the_cluster_and_the_images() -> None:
    made = commands(["other", "wukong"], IMAGES)
    assert not [command for command in made if "create" in command or "infra.images.build" in command]
    assert made[0].startswith("kind export kubeconfig --name=wukong")
    (load,) = [command for command in made if "kind load" in command]
    assert load.endswith(" ".join(IMAGES))


def test_only_missing_images_are_built() -> None:
    (built,) = [command for command in commands(["wukong"], IMAGES[:2]) if "infra.images.build" in command]
    assert built.endswith("infra.images.build mlflow")


def test_the_versions_are_those_of_the_page() -> None:
    for folder in ("cluster-scoped-resources", "env/platform-agnostic"):
        assert laptop_cluster.KFP.format(folder=folder) in DOCS
    (version,) = re.findall(r"kuberay-operator --version (\S+)", DOCS)
    own = yaml.safe_load((Path(laptop_cluster.KUBERAY) / "kustomization.yaml").read_text(encoding="utf-8"))
    assert own["resources"][-1].endswith(f"/kuberay/ray-operator/config/default?ref=v{version}")
    assert f"--namespace {own['namespace']} " in DOCS, "the namespace that the network policies name"


def test_kfp_tries_again_what_was_ended_from_outside() -> None:
    made = commands([], [])
    patch = " ".join(laptop_cluster.WORKFLOW_DEFAULTS)
    (patched,) = [number for number, command in enumerate(made) if patch in command]
    assert "env/platform-agnostic" in made[patched - 1]
    assert f"kubectl {patch}" in DOCS
    # An apply by the manager that has applied KFP's manifests would take away the other keys.
    assert " patch configmap " in patch and "--type=merge" in patch
    defaults = yaml.safe_load(Path(patch.rpartition("=")[2]).read_text(encoding="utf-8"))
    assert list(defaults["data"]) == ["workflowDefaults"]
    spec = yaml.safe_load(defaults["data"]["workflowDefaults"])["spec"]
    retries = spec["templateDefaults"]["retryStrategy"]
    ended = [str(128 + number) for number in (signal.SIGKILL, signal.SIGTERM)]
    assert retries["retryPolicy"] == "Always"
    # The message of workflow/controller/operator.go of Argo 4.0 for a pod that failed while its containers run.
    lost = "lastRetry.message contains 'neither main nor wait container completed'"
    assert retries["expression"] == f"lastRetry.status == 'Error' || lastRetry.exitCode in {ended} || {lost}"
    of_jobs = Settings().lost_node_seconds
    assert {(each["key"], each["tolerationSeconds"]) for each in spec["tolerations"]} == {
        ("node.kubernetes.io/not-ready", of_jobs),
        ("node.kubernetes.io/unreachable", of_jobs),
    }


def test_missing_programs_are_named_with_where_to_get_them() -> None:
    laptop_cluster.check_programs(laptop_cluster.PROGRAMS)
    with pytest.raises(StackError, match=r"(?s)kind: https://kind\S+.*kubectl: https://kubernetes") as caught:
        laptop_cluster.check_programs(["docker", "git"])
    assert "docker:" not in str(caught.value)


def test_without_programs_nothing_is_begun(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.laptop_cluster", "up"],
        env={**os.environ, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "kind" in done.stderr and "Traceback" not in done.stderr


def test_a_step_that_may_fail_is_tried_again(tmp_path: Path) -> None:
    once = tmp_path / "once"
    fails_first = ("sh", "-c", f"test -e {once} || {{ touch {once}; exit 1; }}")
    laptop_cluster.run([laptop_cluster.Step("", fails_first, 2)])
    with pytest.raises(StackError, match="goes on with what is missing"):
        laptop_cluster.run([laptop_cluster.Step("", ("false",), 2)])
