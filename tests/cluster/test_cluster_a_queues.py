"""Runs in Kueue's queues: they wait for quota, are suspended for what is more urgent, and borrow what lies unused.

The quotas of these tests count pods, so that they are of any size of cluster. Who else uses them is a Job whose pods
sleep. Without Kueue, and on a cluster without room for two workers, the tests are skipped.
"""

import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import kube
import pytest
import runs
import yaml
from session import State, epochs_for, experiment_of, forget_trained, train_again

from wukong.config.experiment import Experiment
from wukong.store import manifest, storage

COMPONENT = "k8s/components/kueue"
NAMES = {team: f"cluster-test-{team}" for team in "ab"}
"""Of the ClusterQueue and of the LocalQueue of each team; both are in one cohort."""
TRAINING = 3
"""Pods of a stage with one worker: its head, the worker and its submitter."""
SOON = 60.0
"""Seconds within which a run starts or is suspended once Kueue may do so; and a team's wait for its own quota."""
STATED = 60
"""Seconds after which a run asks for fewer workers."""
PRE_RUNNING, ACTIVE = 240, 300
"""Deadlines, in seconds, that a run outlasts by waiting."""
LOSS, EPOCHS = 1e-5, 10
"""How far the loss of an epoch may be from that of the run that kept its workers, and of how many epochs after the
change. Rounding differs from then on, and grows in a small model that learns a few pairs by heart.
"""


@pytest.fixture(scope="module")
def queues(installed: str) -> Iterator[None]:
    """The component's rights and priorities, and two teams with queues of their own."""
    if not kube.kubectl("get", "crd", "clusterqueues.kueue.x-k8s.io", "--ignore-not-found").strip():
        pytest.skip("Kueue is not installed")
    before = runs.launcher_settings()
    kube.kubectl("apply", "-f", f"{COMPONENT}/access.yaml", "-f", f"{COMPONENT}/priorities.yaml")
    kube.apply(_kueue("ResourceFlavor", "cluster-test"))
    for name in NAMES.values():
        queue = _kueue("LocalQueue", name, clusterQueue=name)
        queue["metadata"]["namespace"] = "wukong"
        kube.apply(queue)
    try:
        yield
    finally:
        runs.set_launcher(before)
        for name in NAMES.values():
            kube.kubectl("-n", "wukong", "delete", f"localqueue/{name}", "--ignore-not-found")
            kube.kubectl("delete", f"clusterqueue/{name}", "--ignore-not-found", "--wait=false")
        kube.kubectl("delete", "resourceflavor/cluster-test", "--ignore-not-found", "--wait=false")


@pytest.fixture
def others(queues: None) -> Iterator[None]:
    """Ends the Jobs that held quota."""
    yield
    kube.kubectl("-n", "wukong", "delete", "jobs", "-l", "wukong/test=queue", "--ignore-not-found")


def _kueue(kind: str, name: str, **spec: Any) -> kube.Object:
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _quotas(**pods: int) -> None:
    """Give each team so many pods; cores and memory are no limit."""
    enough = [{"name": kind, "nominalQuota": amount} for kind, amount in (("cpu", 1000), ("memory", "1000Gi"))]
    preemption = {"withinClusterQueue": "LowerPriority", "reclaimWithinCohort": "Any"}
    for team, name in NAMES.items():
        flavor = {
            "name": "cluster-test",
            "resources": [{"name": "pods", "nominalQuota": pods.get(team, 0)}, *enough],
        }
        spec = {"cohortName": "cluster-test", "namespaceSelector": {}, "preemption": preemption}
        groups = [{"coveredResources": ["pods", "cpu", "memory"], "flavors": [flavor]}]
        kube.apply(_kueue("ClusterQueue", name, **spec, resourceGroups=groups))


def _launcher(team: str = "a", **changed: Any) -> None:
    """Let the launcher use a team's queue, and other settings for pre-training."""
    value = yaml.safe_load(runs.launcher_settings())
    value["stages"]["pretrain"].pop("active_deadline_seconds", None)
    common = {"queue": NAMES[team], "priority": "wukong-normal", "fewer_workers_seconds": None}
    runs.set_launcher(yaml.safe_dump(value | common | changed))


def _hold(name: str, pods: int, team: str = "a", priority: str = "wukong-high") -> None:
    """Start a Job that holds the quota of so many pods."""
    container = {
        "name": "sleeps",
        "image": kube.data_image(),
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", "import time; time.sleep(7200)"],
        "resources": {"requests": {"cpu": "5m", "memory": "24Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
        "securityContext": kube.RESTRICTED,
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": kube.POD,
        "containers": [container],
    }
    labels = {"kueue.x-k8s.io/queue-name": NAMES[team], "kueue.x-k8s.io/priority-class": priority}
    metadata = {"name": name, "namespace": "wukong", "labels": {**labels, "wukong/test": "queue"}}
    spec = {"suspend": True, "parallelism": pods, "completions": pods, "template": {"spec": pod}}
    kube.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec})


def _let_go(name: str) -> None:
    kube.kubectl("-n", "wukong", "delete", "job", name)


def _is_admitted(job: str) -> bool:
    return (kube.get("job", job) or {}).get("spec", {}).get("suspend") is False


def _new(kept: State, *overrides: str) -> Experiment:
    """The first run's experiment with weights that no training began with: only the trainings are done anew."""
    return experiment_of(kept, f"seed={int(time.time())}", *overrides)


def _job(run: runs.Run) -> kube.Object:
    """The RayJob of pre-training."""
    return kube.until("the RayJob of pre-training", lambda: runs.ray_jobs(run, "pretrain"), 900, 1)[-1]


def _state(name: str) -> str:
    found = kube.get("rayjob", name)
    assert found is not None, f"RayJob {name} is gone"
    return str(found.get("status", {}).get("jobDeploymentStatus", ""))


def _suspended(run: runs.Run, seconds: float = SOON) -> float:
    """Wait until pre-training is suspended, and says so; how long that took."""
    name, began = _job(run)["metadata"]["name"], time.monotonic()
    kube.until(f"the suspension of {name}", lambda: _state(name) == "Suspended", seconds, 0.5)
    taken = time.monotonic() - began
    kube.until("the label", lambda: _label(name) == "queued", 60, 1)
    return taken


def _label(name: str) -> str | None:
    label: str | None = (kube.get("rayjob", name) or {})["metadata"]["labels"].get("wukong/progress")
    return label


def _started(name: str, seconds: float = SOON) -> float:
    """Wait until a RayJob is not suspended any more; how long that took."""
    began = time.monotonic()
    kube.until(f"the start of {name}", lambda: _state(name) in ("Initializing", "Running"), seconds, 0.5)
    return time.monotonic() - began


@pytest.mark.cluster(
    claim="A run for which the queue has no quota waits, says so on its RayJob and in the log, and starts within a "
    "minute when there is some; neither `active_deadline_seconds` nor `pre_running_deadline_seconds` counts the wait",
    how="a Job that holds a ClusterQueue's pods for longer than both deadlines; the times of the RayJob's statuses",
)
def test_a_run_waits_for_its_quota(
    first: runs.Run, services: runs.Services, session_state: State, others: None, found: list[str], stamp: str
) -> None:
    _quotas(a=TRAINING)
    _launcher(pre_running_deadline_seconds=PRE_RUNNING, active_deadline_seconds=ACTIVE)
    _hold("holds", TRAINING)
    kube.until("the Job's quota", lambda: _is_admitted("holds"), 60, 1)
    run = runs.start(services, _new(session_state), f"waits-{stamp}")
    job = _job(run)
    name, made_at = job["metadata"]["name"], runs.moment(job["metadata"]["creationTimestamp"])
    _suspended(run)
    runs.said(run, "pretrain", f"it waits for quota in queue {NAMES['a']} since")
    time.sleep(max(made_at + max(PRE_RUNNING, ACTIVE) + 20 - time.time(), 0))
    assert _state(name) == "Suspended"
    assert not kube.listed("pods", f"batch.kubernetes.io/job-name={name}")
    _let_go("holds")
    taken = _started(name)
    waited = time.time() - made_at
    assert _job(run)["metadata"]["uid"] == job["metadata"]["uid"]
    runs.succeed(services, run)
    found.append(f"waited {waited:.0f} s with deadlines of {PRE_RUNNING} and {ACTIVE} s, started after {taken:.1f} s")


@pytest.mark.cluster(
    claim="A training that a higher priority suspends in its middle goes on from its last checkpoint when the quota is "
    "back, as the same RayJob and component, and ends with the digests of the undisturbed run",
    how="what the undisturbed run trained is deleted and trained again; a Job of a higher priority takes the queue's "
    "quota after new checkpoints were seen",
)
def test_a_training_is_preempted(
    first: runs.Run, services: runs.Services, session_state: State, others: None, found: list[str], stamp: str
) -> None:
    _quotas(a=TRAINING)
    _launcher()
    again = train_again(services, session_state, f"preempted-{stamp}", stamp)
    run, made = again.run, again.made
    runs.goes_on(services, made, run, 1200)
    job, pod = _job(run), runs.component_pod(run, "pretrain")
    assert pod is not None
    name, cluster = job["metadata"]["name"], job["status"]["rayClusterName"]
    _hold("urgent", TRAINING)
    found.append(f"suspended after {_suspended(run, 120):.0f} s")
    kube.until("the end of its pods", lambda: not kube.listed("pods", f"ray.io/cluster={cluster}"), 120, 1)
    kube.until("the Job's quota", lambda: _is_admitted("urgent"), 60, 1)
    runs.said(run, "pretrain", "it waits for quota in queue")
    time.sleep(30)
    _let_go("urgent")
    found.append(f"started again after {_started(name):.1f} s")
    began = time.monotonic()
    runs.goes_on(services, made, run, 900)
    found.append(f"two newer checkpoints {time.monotonic() - began:.0f} s later")
    after, same = _job(run), runs.component_pod(run, "pretrain")
    assert after["metadata"]["uid"] == job["metadata"]["uid"]
    assert after["status"]["rayClusterName"] != cluster
    assert same is not None
    assert same["metadata"]["uid"] == pod["metadata"]["uid"]
    runs.succeed(services, run)
    digests = runs.digests(made, run)
    assert digests == again.expected
    found.append(f"pretrain {digests['pretrain'][:16]}, evaluate {digests['evaluate'][:16]}, as undisturbed")


def _losses(made: Experiment, run: runs.Run) -> list[float]:
    trained = manifest.load(runs.records(made, run)["pretrain"].manifest)
    history = storage.read_json(storage.join(trained.uri, "history.json"))["history"]
    return [float(epoch["loss"]) for epoch in history]


@pytest.mark.cluster(
    claim="A training with `min_workers` that is suspended and gets no quota for two workers within the stated time "
    "asks for one, in its place in the queue, and goes on; the losses are those of the run with two up to the change, "
    "and in the ten epochs after it within 0.00001",
    how="`fewer_workers_seconds` of 60; the same experiment trained twice, the second time with a Job of a higher "
    "priority that leaves the quota of three pods; `history.json` of both",
)
def test_a_suspended_training_goes_on_with_fewer_workers(
    first: runs.Run, services: runs.Services, session_state: State, others: None, found: list[str], stamp: str
) -> None:
    cores = sum(_cores(node["status"]["allocatable"]["cpu"]) for node in kube.listed("nodes", namespace="*"))
    if cores < 4:
        pytest.skip(f"two workers need four cores with what else runs, and the cluster has {cores:g}")
    _quotas(a=TRAINING + 1)
    _launcher(fewer_workers_seconds=STATED)
    epochs = epochs_for(experiment_of(session_state), first, 150)
    made = _new(session_state, f"pretrain.epochs={epochs}", "pretrain.workers=2", "pretrain.min_workers=1")
    whole = runs.complete(services, made, f"two-{stamp}")
    expected = _losses(made, whole)
    forget_trained(made, whole)
    run = runs.start(services, made, f"fewer-{stamp}")
    runs.goes_on(services, made, run, 1200)
    job = _job(run)
    name = job["metadata"]["name"]
    _hold("urgent", 1)
    _suspended(run, 120)
    began = time.monotonic()
    started = _started(name, STATED + 180)
    after = kube.get("rayjob", name)
    assert after is not None
    assert after["metadata"]["uid"] == job["metadata"]["uid"]
    assert [group["replicas"] for group in after["spec"]["rayClusterSpec"]["workerGroupSpecs"]] == [1]
    found.append(f"asked for one worker and started {started:.0f} s after the suspension, stated {STATED} s")
    assert started >= STATED - 30, "it asked for fewer before the stated time"
    runs.goes_on(services, made, run, 900)
    found.append(f"two newer checkpoints {time.monotonic() - began:.0f} s after the suspension")
    runs.succeed(services, run)
    losses = _losses(made, run)
    differences = [abs(one - other) for one, other in zip(losses, expected, strict=True)]
    same = next((number for number, each in enumerate(differences) if each), epochs)
    near = max(differences[same : same + EPOCHS], default=0.0)
    found.append(f"{epochs} epochs, of them {same} with the same loss, the next {EPOCHS} within {near:.1g}")
    found.append(f"later by {max(differences):.1g} at most, the last by {differences[-1]:.1g}")
    assert same > 0
    assert near < LOSS


def _cores(quantity: str) -> Decimal:
    return Decimal(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


@pytest.mark.cluster(
    claim="Two teams in a cohort use each other's unused quota, and a run of team B starts within a minute while team "
    "A fills both quotas and its queue; what team A had borrowed is suspended, and goes on afterwards",
    how="five Jobs of two pods in team A's queue, a quota of three pods each; a run in team B's; the ClusterQueues' "
    "status",
)
def test_two_teams_borrow(
    first: runs.Run, services: runs.Services, session_state: State, others: None, found: list[str], stamp: str
) -> None:
    _quotas(a=3, b=TRAINING)
    names = [f"team-a-{number}" for number in range(5)]
    for name in names:
        _hold(name, 2, priority="wukong-normal")

    def admitted() -> list[str]:
        return [name for name in names if _is_admitted(name)]

    kube.until("three Jobs with quota", lambda: len(admitted()) == 3, 60, 1)
    found.append(f"team A holds {_used('a')} pods of its 3, {_used('a', 'borrowed')} of them borrowed")
    assert (_used("a"), _used("a", "borrowed")) == (6, 3)
    _launcher("b")
    run = runs.start(services, _new(session_state), f"team-b-{stamp}")
    job = _job(run)
    _started(job["metadata"]["name"])
    status = (kube.get("rayjob", job["metadata"]["name"]) or {})["status"]
    waited = runs.moment(status["startTime"]) - runs.moment(job["metadata"]["creationTimestamp"])
    left = admitted()
    found.append(f"team B's run started {waited:.0f} s after it was made; {len(left)} of team A's Jobs kept their pods")
    assert waited <= SOON
    assert len(left) == 1, "only what was borrowed is taken"
    runs.succeed(services, run)
    kube.until("what team A borrows again", lambda: len(admitted()) == 3, 120, 1)


def _used(team: str, what: str = "total") -> int:
    """How many pods a team holds or borrows."""
    (flavor,) = (kube.get("clusterqueue", NAMES[team]) or {})["status"]["flavorsUsage"]
    return next(int(each[what]) for each in flavor["resources"] if each["name"] == "pods")


@pytest.mark.cluster(
    claim="Terminating a run that waits in the queue deletes its RayJob and Kueue's Workload within 10 seconds, and "
    "the run ends",
    how="KFP's terminate while a Job holds the queue's quota",
)
def test_a_run_in_the_queue_is_terminated(
    first: runs.Run, services: runs.Services, session_state: State, others: None, found: list[str], stamp: str
) -> None:
    _quotas(a=TRAINING)
    _launcher()
    _hold("holds", TRAINING)
    made = _new(session_state)
    run = runs.start(services, made, f"ended-{stamp}")
    job = _job(run)
    name, workloads = job["metadata"]["name"], f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"
    _suspended(run)
    assert kube.listed("workloads.kueue.x-k8s.io", workloads)
    services.client.terminate_run(run.identity)
    asked = time.monotonic()
    kube.until(f"the end of RayJob {name}", lambda: kube.get("rayjob", name) is None, 120, 0.5)
    gone = time.monotonic() - asked
    kube.until("the end of its Workload", lambda: not kube.listed("workloads.kueue.x-k8s.io", workloads), 60, 0.5)
    both = time.monotonic() - asked
    found.append(f"RayJob gone after {gone:.1f} s, its Workload after {both:.1f} s")
    assert runs.finish(services, run, 600) != "SUCCEEDED"
    assert both <= 10
