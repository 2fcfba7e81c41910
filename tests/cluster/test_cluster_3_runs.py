"""Further runs of an experiment on a cluster: nothing is done twice, and a run that is ended ends at once."""

import re
import time
from collections.abc import Iterator

import kube
import pytest
import runs
from prometheus import Prometheus, shipped_alerts
from session import State, clone_of, experiment_of, undisturbed

from wukong.config.experiment import Experiment

EARLIER = ("crawl", "filter", "validate")
RETRAINED = ("pretrain", "finetune", "evaluate")


@pytest.mark.cluster(
    claim="A run with an empty `run` gets KFP's resource name, finds every stage and makes no RayJob",
    how="the first run's experiment again, by the API",
)
def test_an_empty_run(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    made = experiment_of(session_state)
    run = runs.complete(services, made, "", shown=f"Run of training ({stamp})")
    taken = time.time() - run.submitted
    assert all(record.reused for name, record in runs.records(made, run).items() if name in (*EARLIER, *RETRAINED))
    assert runs.ended(made, run)["state"] == "succeeded"
    jobs = [job["metadata"]["name"] for job in runs.ray_jobs(run)]
    found.append(f"{run.name}: {taken:.0f} s, RayJobs: {len(jobs)}")
    assert not jobs, jobs


@pytest.mark.cluster(
    claim="A clone with another `pretrain.epochs` trains anew; earlier stages are reused and make no RayJob",
    how="the first run's experiment with the parameter `epochs`",
)
def test_a_clone_with_other_epochs(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    # A clone of an earlier session has trained for as many epochs.
    epochs = session_state.values.get("epochs")
    session_state.save(clone=None, epochs=epochs and epochs + 1)
    run, epochs = undisturbed(services, session_state, stamp)
    made = clone_of(session_state, epochs)
    reused = {name: record.reused for name, record in runs.records(made, run).items()}
    assert {name: reused[name] for name in (*EARLIER, *RETRAINED)} == {
        **dict.fromkeys(EARLIER, True),
        **dict.fromkeys(RETRAINED, False),
    }
    before, after = session_state.values.get("digests") or {}, runs.digests(made, run)
    assert after["pretrain"] != before.get("pretrain")
    made_jobs = [job["metadata"]["labels"]["wukong/stage"] for job in runs.ray_jobs(run)]
    found.append(f"{epochs} epochs, {time.time() - run.submitted:.0f} s; RayJobs: {', '.join(made_jobs)}")
    assert made_jobs == list(RETRAINED)


@pytest.mark.cluster(
    claim="A repeated run of what is finished makes no RayJob at all", how="the clone once more, under another name"
)
def test_a_repeated_run(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    _, epochs = undisturbed(services, session_state, stamp)
    run = runs.complete(services, experiment_of(session_state), f"again-{stamp}", f"epochs={epochs}")
    jobs = [job["metadata"]["name"] for job in runs.ray_jobs(run)]
    found.append(f"{time.time() - run.submitted:.0f} s, RayJobs: {len(jobs)}")
    assert not jobs, jobs


@pytest.fixture(scope="module")
def long_run(first: runs.Run, services: runs.Services, session_state: State) -> Iterator[tuple[runs.Run, Experiment]]:
    """A run that trains for longer than anybody waits, and has written a checkpoint; terminated in the end."""
    epochs = 20_000 + int(time.time()) % 1000
    made = experiment_of(session_state, f"pretrain.epochs={epochs}")
    checkpoints = runs.NewCheckpoints(made)
    name = f"long-{time.strftime('%H%M%S')}"
    run = runs.start(services, experiment_of(session_state), name, f"epochs={epochs}")
    kube.until("a checkpoint", checkpoints.seen, 1200, 3)
    yield run, made
    # Its checkpoints would be taken for those of the next run.
    if runs.state(services, run.identity) not in runs.ENDED:
        services.client.terminate_run(run.identity)
        runs.finish(services, run)


@pytest.mark.cluster(
    claim="While a stage trains, a label of its RayJob says the share done and the time left, and Argo the share; one "
    "that has succeeded says done",
    how="`kubectl get rayjobs` with the label as a column; the component's node in the Workflow's status",
)
def test_progress_is_shown(long_run: tuple[runs.Run, Experiment], first: runs.Run, found: list[str]) -> None:
    run, _ = long_run

    def column() -> str | None:
        lines = kube.kubectl(
            *("-n", "wukong", "get", "rayjobs", "-L", "wukong/progress", "--no-headers"),
            *("-l", f"wukong/run={run.name},wukong/stage=pretrain,wukong/progress"),
        )
        return lines.split()[-1] if lines.strip() else None

    label = kube.until("the label, which the log's first line a minute later makes", column, 240)
    assert re.fullmatch(r"\d{1,2}pct-([0-9]+[dhms])+-left", label)
    later = kube.until("another label", lambda: now if (now := column()) != label else None, 240)
    assert int(label.partition("pct")[0]) <= int(later.partition("pct")[0])
    pod = runs.component_pod(run, "pretrain")
    assert pod is not None
    node = pod["metadata"]["annotations"]["workflows.argoproj.io/node-id"]

    def told() -> str | None:
        workflow = runs.workflow(run.identity) or {}
        progress = str(workflow["status"]["nodes"][node].get("progress"))
        return progress if progress.endswith("/100") else None

    found.append(f"{label}, then {later}; Argo: {kube.until('the progress of the node', told, 240)}")
    done = [job["metadata"]["labels"].get("wukong/progress") for job in runs.ray_jobs(first)]
    found.append(f"RayJobs of the first run that are still there and say done: {done.count('done')} of {len(done)}")
    assert set(done) <= {"done"}


@pytest.mark.cluster(
    claim="A component's pod that is deleted leaves its RayJob, and the next attempt of the component takes it over",
    how="the pod of pre-training's component deleted after a checkpoint; the RayJob's uid before and after",
)
def test_a_components_pod_is_deleted(
    long_run: tuple[runs.Run, Experiment], services: runs.Services, found: list[str]
) -> None:
    run, made = long_run
    (job,) = runs.ray_jobs(run, "pretrain")
    pod = runs.component_pod(run, "pretrain")
    assert pod is not None
    name = pod["metadata"]["name"]
    kube.kubectl("-n", "kubeflow", "delete", "pod", name, "--wait=false")
    began = time.monotonic()
    kube.until("the pod's end", lambda: kube.get("pod", name, "kubeflow") is None, 120, 1)

    def next_attempt() -> str | None:
        newer = runs.component_pod(run, "pretrain")
        if newer is None or newer["metadata"]["name"] == name or not runs.started(newer):
            return None
        log = kube.kubectl("-n", "kubeflow", "logs", newer["metadata"]["name"], "-c", "main")
        return next((line for line in log.splitlines() if "goes on with RayJob" in line), None)

    line = kube.until("the next attempt, which takes the RayJob over", next_attempt, 400, 3)
    assert job["metadata"]["name"] in line
    checkpoints = runs.NewCheckpoints(made)
    kube.until("newer checkpoints", lambda: len(checkpoints.seen()) >= 2, 300, 2)
    (after,) = runs.ray_jobs(run, "pretrain")
    assert after["metadata"]["uid"] == job["metadata"]["uid"]
    assert after["status"].get("rayClusterName") == job["status"]["rayClusterName"]
    found.append(
        f"taken over after {time.monotonic() - began:.0f} s, the same RayJob and Ray cluster, training went on"
    )


@pytest.mark.cluster(
    claim="A Prometheus of the Prometheus operator reads the metrics of a training on Ray, and evaluates every alert",
    how="the components `pod-monitors` and `alerts`; Prometheus's own API: targets, rules, and twice "
    "`ray_wukong_training_step`",
)
def test_prometheus_reads_a_training(
    long_run: tuple[runs.Run, Experiment], prometheus: Prometheus, found: list[str]
) -> None:
    step = 'max(ray_wukong_training_step{stage="pretrain"})'
    begun = kube.until("the training's step", lambda: prometheus.value(step), 300)
    later = kube.until("a later step", lambda: _above(prometheus.value(step), begun), 120)
    found.append(f"step {begun:.0f}, then {later:.0f}")
    loss = prometheus.value('ray_wukong_training_loss{stage="pretrain"}')
    assert loss is not None
    assert loss > 0
    everything = {"ray": {"up"}, "object-store": {"up"}}
    kube.until("the targets", lambda: prometheus.health() == everything, 120)
    kube.until("the alerts", lambda: "unknown" not in (prometheus.alerts() or {"none": "unknown"}).values(), 300)
    assert prometheus.alerts() == dict.fromkeys(shipped_alerts(), "ok")
    found.append(f"{len(shipped_alerts())} alerts are evaluated")


def _above(value: float | None, least: float) -> float | None:
    return value if value is not None and value > least else None


@pytest.mark.cluster(
    claim="Terminating a run deletes its RayJob within 10 seconds and records the run as killed, here and in MLflow",
    how="KFP's terminate while pre-training has written a checkpoint",
)
def test_terminating(long_run: tuple[runs.Run, Experiment], services: runs.Services, found: list[str]) -> None:
    run, made = long_run
    (job,) = runs.ray_jobs(run, "pretrain")
    name = job["metadata"]["name"]
    services.client.terminate_run(run.identity)
    asked = time.monotonic()
    kube.until(f"the end of RayJob {name}", lambda: kube.get("rayjob", name) is None, 120, 0.5)
    gone = time.monotonic() - asked
    found.append(f"RayJob gone after {gone:.1f} s")
    pods = f"ray.io/cluster={job['status']['rayClusterName']}"
    kube.until("the end of its pods", lambda: not kube.listed("pods", pods), 300, 2)
    found.append(f"its pods after {time.monotonic() - asked:.0f} s")
    runs.finish(services, run, 600)

    def recorded() -> dict[str, object] | None:
        try:
            return runs.ended(made, run)
        except Exception:  # noqa: BLE001 - not written yet
            return None

    record = kube.until("the record of the run's end", recorded, 180)
    states = runs.mlflow_states(services, made, run)
    found.append(f"run.json: {record['state']}, {record['error']}; MLflow: {states}")
    assert record["state"] != "succeeded"
    assert "terminated" in str(record["error"]) or record["state"] == "killed"
    assert "KILLED" in states.values()
    assert set(states.values()) <= {"KILLED", "FINISHED"}
    assert gone <= 10
