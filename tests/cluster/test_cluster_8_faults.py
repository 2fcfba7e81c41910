"""Run after run with a fault in each: all succeed, and nothing is left of what was lost.

``SEED`` draws the faults. A session that was ended goes on with the next run.
"""

import json
import os
import random
import re
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import kube
import nodes
import pytest
import runs
import table
from session import State, experiment_of

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.store import storage

RUNS = 12
EPOCHS = 40
FILE = table.FOLDER / "faults.json"
FAULTS = ("kill", "cut", "drain")
KINDS = ("rayjobs.ray.io", "rayclusters.ray.io", "jobs.batch", "secrets", "persistentvolumeclaims", "services", "pods")
CUT = 90.0
WITHIN = (5.0, 45.0)
"""Seconds after a stage's Ray cluster was named; the shortest stage lasts 41 to 58."""
TOO_LATE = "too late: no such pod"
"""What becomes of a fault whose stage has ended; its run does not count, and another one has it earlier."""


@dataclass(frozen=True)
class Fault:
    """What happens to a run.

    Attributes:
        what: a verb of ``FAULTS``.
        stage: while which stage.
        after: seconds since its Ray cluster was named.
        victim: whose node it happens to: ``head`` or ``worker``.
    """

    what: str
    stage: str
    after: float
    victim: str


def draw(seed: int) -> list[Fault]:
    """The faults of all runs, the same for the same seed; each stage, fault and victim comes as often as the others."""
    chosen = random.Random(seed)
    decks = [[*each] * (RUNS // len(each)) for each in (FAULTS, stages.JOBS, ("head", "worker"))]
    for deck in decks:
        chosen.shuffle(deck)
    return [
        Fault(what, stage, round(chosen.uniform(*WITHIN), 1), victim)
        for what, stage, victim in zip(*decks, strict=True)
    ]


def _strike(run: runs.Run, fault: Fault, services: runs.Services) -> str:
    """Let the fault happen, and mend the node afterwards; what became of it, for the table."""

    def cluster() -> str | None:
        jobs = runs.ray_jobs(run, fault.stage)
        if runs.state(services, run.identity) in runs.ENDED:
            return "none"
        return jobs[-1].get("status", {}).get("rayClusterName") if jobs else None

    name = kube.until(f"the Ray cluster of {fault.stage}", cluster, runs.A_RUN, 2)
    time.sleep(fault.after)
    found = nodes.of_ray(name, fault.victim)
    if not found:
        return TOO_LATE
    node = found[0]
    if node not in nodes.expendable():
        return f"left out: {node} holds a server"
    if fault.what == "drain":
        try:
            nodes.drain(node)
        except kube.KubectlError:  # a head that works keeps its node
            return f"drain of {node} did not end in time"
        finally:
            kube.kubectl("uncordon", node)
    elif fault.what == "cut":
        nodes.do("cut", node)
        time.sleep(CUT)
        nodes.do("join", node)
        kube.until(f"node {node}", lambda: nodes.answers(node), 300, 2)
    else:
        nodes.kill(node)
        nodes.give_up(node)
        nodes.bring_back(node)
    return f"{fault.what} of {node}"


def _left(services: runs.Services, made: Experiment) -> dict[str, int]:
    """What is there between two runs and should not be, by kind."""
    ended = ("Complete", "Failed")
    states = [job.get("status", {}).get("jobDeploymentStatus") for job in kube.listed("rayjobs.ray.io")]
    pods = [pod for pod in kube.listed("pods") if pod["status"].get("phase") in ("Pending", "Running")]
    of_runs = [pod for pod in pods if pod["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "ray"]
    tokens = [
        secret
        for secret in kube.listed("secrets")
        if "RayCluster" in {owner["kind"] for owner in secret["metadata"].get("ownerReferences", [])}
    ]
    trained = storage.list_files(storage.join(made.root, "pretrain"), "checkpoint.json")
    attempts = {uri.rpartition("/checkpoint_")[0] for uri in trained}
    owned = storage.list_files(storage.join(made.root, "pretrain"), "/manifest.json")
    models = tuple(uri.rpartition("/")[0] for uri in owned)
    return {
        "RayJobs that go on": sum(state not in ended for state in states),
        "Ray clusters": len(kube.listed("rayclusters.ray.io")),
        "pods of Ray": len(of_runs),
        "tokens": len(tokens),
        "claims": len(kube.listed("persistentvolumeclaims")),
        "MLflow runs left RUNNING": _running(services, made),
        "checkpoints of no finished training": sum(not attempt.startswith(models) for attempt in attempts),
    }


def _running(services: runs.Services, made: Experiment) -> int:
    known = services.ask_mlflow(f"experiments/get-by-name?experiment_name={made.name}")["experiment"]["experiment_id"]
    asked = {"experiment_ids": [known], "filter": "attributes.status = 'RUNNING'", "max_results": 100}
    return len(services.ask_mlflow("runs/search", asked).get("runs", []))


def _in_etcd() -> dict[str, int]:
    """Objects of each kind, as the API server counts them."""
    text = kube.kubectl("get", "--raw", "/metrics")
    counts = re.findall(
        r'^apiserver_(?:resource|storage)_objects\{.*?resource="([^"]+)".*?\} (\S+)$', text, re.MULTILINE
    )
    wanted = {kind.partition(".")[0] for kind in KINDS}
    return {name: int(float(value)) for name, value in counts if name.partition(".")[0] in wanted}


def _memory() -> dict[str, int]:
    """MiB of each server's working set, as the kubelets say it."""
    used = {}
    for name in nodes.ready():
        summary = json.loads(kube.kubectl("get", "--raw", f"/api/v1/nodes/{name}/proxy/stats/summary"))
        for pod in summary.get("pods", []):
            of = pod["podRef"]
            if of["namespace"] in ("wukong", "kubeflow", "kuberay-system") and "memory" in pod:
                used[f"{of['namespace']}/{of['name']}"] = pod["memory"].get("workingSetBytes", 0) // 2**20
    return used


def _lose(services: runs.Services, session_state: State, made: Experiment, kept: dict[str, Any]) -> None:
    """Start the runs that are left, one after the other, with a fault in each."""
    for number, fault in list(enumerate(draw(kept["seed"])))[len(kept["runs"]) :]:
        name = f"fault-{kept['seed']}-{number + 1}"
        row = _run_with(fault, name, services, made)
        while row["happened"] == TOO_LATE and row["state"] == "SUCCEEDED":  # the stage was quicker than those before
            row = _run_with(replace(fault, after=row["after"] / 2), name, services, made)
        kept["runs"].append(row | {"etcd": _in_etcd(), "memory": _memory()})
        session_state.save(faults=kept)
        FILE.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def _run_with(fault: Fault, name: str, services: runs.Services, made: Experiment) -> dict[str, Any]:
    """Make one run with a fault; what became of both, and what is left."""
    began = f"{name}-{time.strftime('%H%M%S')}"
    run = runs.start(services, made, began, f"epochs={EPOCHS}", pipeline="recurring")
    happened = _strike(run, fault, services)
    state = runs.finish(services, run)
    kube.until("the end of its pods", lambda: not kube.listed("rayclusters.ray.io"), 300)
    row = {**asdict(fault), "run": run.name, "happened": happened, "state": state}
    row |= {"seconds": round(time.time() - run.submitted), "left": _left(services, made)}
    print(json.dumps(row), flush=True)
    return row


@pytest.mark.cluster(
    claim="Twelve recurring runs with a fault each, drawn by a seed, succeed, and nothing of them is left: no pods, "
    "RayJobs, Ray clusters, Secrets and claims, no MLflow run that is RUNNING, no checkpoint without its model",
    how="runs of the recurring pipeline, one after the other; a node killed, drained or cut while a stage works; what "
    "is there before and after each; objects that the API server counts and memory of the servers in "
    "`build/cluster-test/faults.json`",
)
def test_twelve_faults(first: runs.Run, services: runs.Services, session_state: State, found: list[str]) -> None:
    nodes.program()
    lost = nodes.expendable(2)
    made = experiment_of(session_state)
    kept: dict[str, Any] = session_state.values.get("faults") or {
        "seed": int(os.environ.get("SEED", "35")),
        "before": _left(services, made),
        "runs": [],
    }
    with ExitStack() as held:
        for node in set(nodes.ready()) - set(lost):
            held.enter_context(nodes.reserved(node))
        _lose(services, session_state, made, kept)
    rows = kept["runs"]
    found.append(f"seed {kept['seed']}: {len(rows)} runs, {sum(row['seconds'] for row in rows) / 3600:.1f} hours")
    found += [f"{row['stage']}: {row['happened']}, {row['state']} after {row['seconds']} s" for row in rows]
    assert all(row["happened"].startswith(row["what"]) for row in rows), "a fault did not happen"
    assert [row["state"] for row in rows] == ["SUCCEEDED"] * RUNS
    leaks = {kind: count for kind, count in rows[-1]["left"].items() if count > kept["before"][kind]}
    assert not leaks, leaks
    server = {pod: [row["memory"].get(pod) for row in rows] for pod in rows[-1]["memory"]}
    grown = {pod: used for pod, used in server.items() if None not in used and used[-1] > 1.5 * max(used[1], 100)}
    found.append(f"{len(server)} servers, grown by more than half: {grown or 'none'}")
    assert not grown
