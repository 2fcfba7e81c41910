"""Whatever pod is lost while a model is trained, the run succeeds, with the weights of a run that lost none."""

import time
from collections.abc import Callable
from functools import partial

import kube
import pytest
import runs
from session import State, experiment_of, train_again

from wukong.store import manifest

LOST: dict[str, Callable[[runs.Run, str], tuple[str, str]]] = {
    "the component's pod": lambda run, _: ("kubeflow", _named(runs.component_pod(run, "pretrain"))),
    "a Ray worker": lambda _, cluster: ("wukong", _pod(f"ray.io/cluster={cluster},ray.io/node-type=worker")),
    "the Ray head": lambda _, cluster: ("wukong", _pod(f"ray.io/cluster={cluster},ray.io/node-type=head")),
    "the KubeRay operator": lambda *_: _anywhere("app.kubernetes.io/component=kuberay-operator"),
    "the object store": lambda *_: ("wukong", "object-store-0"),
    "MLflow": lambda *_: ("wukong", _pod("app.kubernetes.io/name=wukong,app.kubernetes.io/component=mlflow")),
}
"""What is lost, in this order: namespace and name of its pod, of a run and the name of its Ray cluster."""


def _named(pod: kube.Object | None) -> str:
    assert pod is not None, "the component has no pod"
    return str(pod["metadata"]["name"])


def _pod(selector: str) -> str:
    return _anywhere(selector, "wukong")[1]


def _anywhere(selector: str, namespace: str = "*") -> tuple[str, str]:
    pods = [pod for pod in kube.listed("pods", selector, namespace) if "deletionTimestamp" not in pod["metadata"]]
    assert pods, f"there is no pod {selector}"
    return pods[-1]["metadata"]["namespace"], pods[-1]["metadata"]["name"]


@pytest.mark.cluster(
    claim="A run whose component's pod, Ray worker, Ray head, KubeRay operator, object store and MLflow were deleted "
    "one after the other while it trained succeeds, with the digests of the undisturbed run",
    how="what the undisturbed run trained is deleted and trained again; each pod is deleted after new checkpoints were "
    "seen",
)
def test_what_is_lost_while_training(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    again = train_again(services, session_state, f"lost-{stamp}", stamp)
    run, made = again.run, again.made
    runs.goes_on(services, made, run, 1200)
    for what, pod_of in LOST.items():
        jobs = runs.ray_jobs(run, "pretrain")
        cluster = jobs[-1].get("status", {}).get("rayClusterName", "")
        namespace, name = pod_of(run, cluster)
        print(f"deleting {what}: {namespace}/{name}", flush=True)
        before = (kube.get("pod", name, namespace) or {})["metadata"]["uid"]
        # A lost node takes its pods at once; the component's pod is ended in order, as by a drain.
        hurry = [] if what == "the component's pod" else ["--grace-period=1"]
        kube.kubectl("-n", namespace, "delete", "pod", name, "--wait=false", *hurry)
        began = time.monotonic()
        kube.until("the pod's end", partial(_is_gone, name, namespace, before), 180, 1)
        runs.goes_on(services, made, run, 900)
        found.append(f"{what}: new checkpoints after {time.monotonic() - began:.0f} s")
        if what == "the component's pod":
            assert runs.ray_jobs(run, "pretrain")[-1]["metadata"]["uid"] == jobs[-1]["metadata"]["uid"], (
                "the RayJob went with the component's pod"
            )
    runs.succeed(services, run)
    jobs = [job["metadata"]["name"] for job in runs.ray_jobs(run, "pretrain")]
    found.append(f"{again.epochs} epochs, {time.time() - run.submitted:.0f} s; RayJobs of pretrain: {len(jobs)}")
    digests = runs.digests(made, run)
    assert digests == again.expected
    found.append(f"pretrain {digests['pretrain'][:16]}, evaluate {digests['evaluate'][:16]}, as undisturbed")


def _is_gone(name: str, namespace: str, uid: str) -> bool:
    found = kube.get("pod", name, namespace)
    return found is None or found["metadata"]["uid"] != uid


@pytest.mark.cluster(
    claim="A training whose features are stored in int8, if that is faster, is validated every four steps and ends "
    "with its best model",
    how="the first run's experiment with `features.dtype`, `store_features: auto` and `validation.keep: best`; the "
    "manifest of pre-training and MLflow's metrics",
)
def test_validation_while_training(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    made = experiment_of(
        session_state,
        "features.dtype=int8",
        "features.room_gib=1",
        "pretrain.store_features=auto",
        "pretrain.epochs=10",
        "pretrain.validation={every_steps: 4, keep: best}",
    )
    run = runs.complete(services, made, f"validated-{stamp}")
    trained = manifest.load(runs.records(made, run)["pretrain"].manifest)
    decided = trained.provenance["store_features"]
    found.append(f"store_features: {decided['store']}, {decided['why']}")
    best, at = trained.metrics["validation/best"], trained.metrics["validation/best_step"]
    found.append(f"best mean recall {best:.3f} at step {at:.0f}")
    told = runs.mlflow_metrics(services, made, run, "pretrain")
    assert told["pretrain/validation/retrieval/holdouts/mean_recall"] <= best
    evaluated = runs.mlflow_metrics(services, made, run, "evaluate")
    assert evaluated, "the evaluate stage has no metrics in MLflow"
