"""Several nodes: stages are spread over them, and one that is lost in a training costs time and nothing else."""

import time
from functools import partial

import kube
import nodes
import pytest
import runs
from session import Again, State, train_again

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.store import storage

AT_MOST = 120.0
"""Seconds from an operator's word that a node is lost to the first new checkpoint."""
BY_ITSELF = 300.0
"""The same from the loss of a head's node, when nobody says anything."""
AWAY = 180.0
"""Seconds for which the node of a store stays away after Kubernetes has noticed."""
STORE = "object-store-0"


def _work(services: runs.Services, made: Experiment, name: str) -> tuple[runs.Run, dict[str, set[str]]]:
    """Do all stages of an experiment; the run, and the nodes of each stage's Ray workers."""
    run = runs.start(services, made, name)
    seen: dict[str, set[str]] = {}

    def ended() -> str | None:
        for job in runs.ray_jobs(run):
            if cluster := job.get("status", {}).get("rayClusterName"):
                stage = job["metadata"]["labels"]["wukong/stage"]
                seen.setdefault(stage, set()).update(nodes.of_ray(cluster, "worker"))
        found = runs.state(services, run.identity)
        return found if found in runs.ENDED else None

    state = kube.until(f"the end of run {name}", ended, runs.A_RUN, 3)
    assert state == "SUCCEEDED", runs.why(run)
    return run, seen


def _forget(made: Experiment) -> None:
    """Delete what all stages of an experiment have made."""
    for entry in stages.TABLE:
        if entry.runs_as != "component":
            storage.delete(entry.place(made))


@pytest.mark.cluster(
    claim="On three nodes the two workers of pre-training and of fine-tuning are on two nodes each, and every digest "
    "is that of the same run with all workers on one node",
    how="one experiment with two workers of each training, done twice from the crawl on; the nodes of the Ray "
    "workers' pods; the digests of all manifests",
)
def test_three_nodes(services: runs.Services, search: None, found: list[str], stamp: str) -> None:
    ready = nodes.ready()
    if len(ready) < 3:
        pytest.skip(f"three nodes are needed, and the cluster has {', '.join(ready)}")
    one = nodes.expendable()[0]
    made = runs.experiment(f"nodes-{stamp}", "pretrain.workers=2", "finetune.workers=2")
    with nodes.reserved(one), nodes.ray_jobs(nodes.together_on(one)):
        alone, seen = _work(services, made, f"one-node-{stamp}")
    assert set().union(*seen.values()) == {one}, seen
    expected = runs.digests(made, alone)
    _forget(made)
    with nodes.ray_jobs(nodes.apart):
        spread, seen = _work(services, made, f"three-nodes-{stamp}")
    found += [f"{stage} on {', '.join(sorted(where))}" for stage, where in seen.items()]
    assert all(len(seen[stage]) == 2 for stage in stages.TRAININGS), seen
    digests = runs.digests(made, spread)
    found.append(f"{len(digests)} digests, as on one node")
    assert digests == expected


def _begin(services: runs.Services, kept: State, name: str, stamp: str) -> Again:
    """Train again what was trained undisturbed, until it has written checkpoints."""
    again = train_again(services, kept, f"{name}-{stamp}", stamp)
    runs.goes_on(services, again.made, again.run, 1200)
    return again


def _cluster_of(run: runs.Run) -> str:
    return str(runs.ray_jobs(run, "pretrain")[-1]["status"]["rayClusterName"])


def _end(services: runs.Services, again: Again, found: list[str]) -> None:
    """Wait for the end of the run: as undisturbed, and with nothing of the lost attempts left."""
    runs.succeed(services, again.run)
    found.append(f"the run took {time.time() - again.run.submitted:.0f} s")
    digests = runs.digests(again.made, again.run)
    found.append(f"pretrain {digests['pretrain'][:16]}, evaluate {digests['evaluate'][:16]}, as undisturbed")
    assert digests == again.expected
    kube.until("the end of its pods", partial(_nothing_waits, again.run), 300)


def _nothing_waits(run: runs.Run) -> bool:
    jobs = {job["metadata"]["name"] for job in runs.ray_jobs(run)}
    clusters = [c for c in kube.listed("rayclusters.ray.io") if c["metadata"]["labels"].get("wukong/run") == run.name]
    submitters = [
        pod
        for pod in kube.listed("pods", "batch.kubernetes.io/job-name")
        if pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] in jobs
        and pod["status"].get("phase") not in ("Succeeded", "Failed")
    ]
    return not clusters and not submitters


@pytest.mark.cluster(
    claim="A run whose worker's node is drained while it trains succeeds, with the digests of the undisturbed run",
    how="`kubectl drain` of the node of the Ray worker, which is another one than the head's; the time to the next "
    "checkpoints",
)
def test_a_node_is_drained(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    of_head, of_worker = nodes.expendable(2)[:2]
    with nodes.ray_jobs(nodes.put(head=of_head, workers=of_worker)):
        again = _begin(services, session_state, "drained", stamp)
        (node,) = nodes.of_ray(_cluster_of(again.run), "worker")
        assert node == of_worker
        try:
            nodes.drain(node)
            began = time.monotonic()
            runs.goes_on(services, again.made, again.run, 900)
            found.append(f"new checkpoints {time.monotonic() - began:.0f} s after the drain")
        finally:
            kube.kubectl("uncordon", node)
        _end(services, again, found)


@pytest.mark.cluster(
    claim="A run whose head and worker are lost with their node succeeds, with the digests of the undisturbed run; the "
    "first new checkpoint comes at most two minutes after the operator has said that the node is lost",
    how="a node killed while it trains; the taint `out-of-service` and `kubectl delete node` when Kubernetes has "
    "noticed; the time from the taint to the first new checkpoint",
)
def test_a_node_is_killed(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    nodes.program()
    (node,) = nodes.expendable()[:1]
    with nodes.ray_jobs(nodes.put(head=node, workers=node)):
        again = _begin(services, session_state, "killed", stamp)
        cluster = _cluster_of(again.run)
        assert {*nodes.of_ray(cluster, "head"), *nodes.of_ray(cluster, "worker")} == {node}
        lost = time.monotonic()
        try:
            nodes.kill(node)
            said = time.monotonic()
            nodes.give_up(node)
            runs.goes_on(services, again.made, again.run, 900, least=1)
            seconds = time.monotonic() - said
            found.append(f"noticed after {said - lost:.0f} s; a new checkpoint {seconds:.0f} s after the taint")
        finally:
            nodes.bring_back(node)
        _end(services, again, found)
    assert seconds <= AT_MOST


@pytest.mark.cluster(
    claim="When the node of a head is lost and nobody says so, the component makes another RayJob on other nodes, and "
    "training goes on within five minutes",
    how="the head's node killed while it trains, and left as it is; the component is on another one",
)
def test_a_head_is_lost_and_nobody_says_so(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    nodes.program()
    (node,) = nodes.expendable()[:1]
    with nodes.ray_jobs(nodes.put(head=node, workers=node)):
        again = _begin(services, session_state, "unsaid", stamp)
        component = runs.component_pod(again.run, "pretrain")
        assert component is not None
        if component["spec"]["nodeName"] == node:
            pytest.skip(f"the component is on {node} too, and would be lost with it")
        before = runs.ray_jobs(again.run, "pretrain")[-1]["metadata"]["uid"]
        lost = time.monotonic()
        try:
            nodes.kill(node)
            runs.goes_on(services, again.made, again.run, 900, least=1)
            seconds = time.monotonic() - lost
            found.append(f"a new checkpoint {seconds:.0f} s after the loss")
            assert runs.ray_jobs(again.run, "pretrain")[-1]["metadata"]["uid"] != before
        finally:
            nodes.bring_back(node)
        _end(services, again, found)
    assert seconds <= BY_ITSELF


@pytest.mark.cluster(
    claim="A run whose head and worker are on two sides of a network that is split for two minutes succeeds, with the "
    "digests of the undisturbed run",
    how="the network of the worker's node cut while it trains, and joined again",
)
def test_the_network_is_split(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    nodes.program()
    of_head, of_worker = nodes.expendable(2)[:2]
    with nodes.ray_jobs(nodes.put(head=of_head, workers=of_worker)):
        again = _begin(services, session_state, "split", stamp)
        (node,) = nodes.of_ray(_cluster_of(again.run), "worker")
        assert node == of_worker
        try:
            nodes.do("cut", node)
            time.sleep(AT_MOST)
        finally:
            nodes.do("join", node)
        kube.until(f"node {node}", partial(nodes.answers, node), 300, 2)
        # A worker that is alone may train on meanwhile, to the end: what it publishes counts.
        _end(services, again, found)
        found.append(f"RayJobs of pretrain: {len(runs.ray_jobs(again.run, 'pretrain'))}")


@pytest.mark.cluster(
    claim="A training whose object store is lost with its node waits for it, and goes on by itself once the machine is "
    "back with its disk: with the digests of the undisturbed run",
    how="the store's node killed while a training on another one writes checkpoints, and tainted `out-of-service`; the "
    "store's new pod waits for its volume; the node made again after three minutes, with what the volume holds",
)
def test_the_node_of_the_store_is_lost(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    nodes.program()
    lost, (other, *_) = nodes.only_of(STORE), nodes.expendable()
    with nodes.ray_jobs(nodes.put(head=other, workers=other)):
        again = _begin(services, session_state, "store", stamp)
        try:
            nodes.kill(lost)
            nodes.say_it_is_off(lost)
            time.sleep(AWAY)
            waiting = kube.get("pod", STORE) or {}
            said = [entry.get("message", "") for entry in waiting["status"].get("conditions", [])]
            assert waiting["status"]["phase"] == "Pending", waiting["status"]
            found.append(f"the store's pod waits: {' '.join(filter(None, said))}")
        finally:
            nodes.bring_back(lost)
        began = time.monotonic()
        runs.goes_on(services, again.made, again.run, 900, least=1)
        found.append(f"a new checkpoint {time.monotonic() - began:.0f} s after the node was back")
        assert len(runs.ray_jobs(again.run, "pretrain")) == 1, "the training has waited"
        _end(services, again, found)
