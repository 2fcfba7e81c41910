"""What a RayJob's pods have held, read from a Kubernetes API on loopback that answers as a cluster's does."""

import time
from datetime import UTC, datetime
from typing import Any

import api_server
import pytest
from api_server import ApiServer
from played_ray_job import NEW, RUNNING, SUBMISSION, SUCCEEDED, change_settings, run

from ray_jobs.launch.kuberay import RayJobError, room
from ray_jobs.launch.kuberay.pods import holding
from wukong.config.experiment import Experiment
from wukong.runs import run_costs
from wukong.runs.run_costs import Holding, Sheet
from wukong.store import storage

GPU = "nvidia.com/gpu"


def pod(name: str, requests: dict[str, str], seconds: float | None, **status: Any) -> dict[str, Any]:
    """A pod of the Ray cluster that was scheduled so many seconds ago, or not yet."""
    made = api_server.pod(name, {"phase": "Running", **status}, {"ray.io/cluster": "job-q8z4d"})
    made["spec"]["containers"][0]["resources"] = {"requests": requests}
    scheduled = {"type": "PodScheduled", "status": "False" if seconds is None else "True"}
    made["status"]["conditions"] = [scheduled | {"lastTransitionTime": rfc3339(time.time() - (seconds or 0))}]
    return made


def rfc3339(moment: float) -> str:
    """A time as Kubernetes writes it, in whole seconds."""
    return datetime.fromtimestamp(int(moment), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seen(experiment: Experiment, name: str = "Nightly_7") -> dict[str, Holding]:
    """Return what was written down, by the pod's name; fails where a pod stands twice."""
    folder = f"{experiment.root}/runs/{name}/held/filter"
    sheets = [Sheet.model_validate(storage.read_json(uri)) for uri in storage.list_files(folder, ".json")]
    assert all(sheet.source == "pods" for sheet in sheets)
    held = [one for sheet in sheets for one in sheet.held]
    assert len({one.key for one in held}) == len(held)
    return {one.name: one for one in held}


def until_seen(experiment: Experiment, *names: str) -> tuple[str, Any]:
    """A step of a script: wait until pods of these names have been written down."""
    return ("until", lambda: {*names} <= seen(experiment).keys())


def test_pods_are_held_from_their_scheduling_to_the_jobs_end(server: ApiServer, experiment: Experiment) -> None:
    size = {"cpu": "1500m", "memory": "3Gi", GPU: "2"}
    pods = [pod("head", {"cpu": "500m", "memory": "512Mi"}, 7200), pod("worker", size, 3600), pod("late", size, None)]
    server.scripts = [[NEW, ("pods", pods), RUNNING, until_seen(experiment, "head", "worker"), SUCCEEDED]]
    before = time.time()
    run(experiment)
    held = seen(experiment)
    assert held.keys() == {"head", "worker"}, "what is not scheduled holds nothing"
    assert all(one.ended and before <= one.until <= time.time() for one in held.values())
    assert (held["worker"].cores, held["worker"].memory, held["worker"].gpus) == (1.5, 3 * 2**30, 2.0)
    (cost,) = run_costs.of_run(experiment, "Nightly_7")
    assert (cost.stage, cost.source, cost.written) == ("filter", "pods", None)
    assert cost.held is not None and cost.held.ended
    assert cost.held.core_hours == pytest.approx(2 * 0.5 + 1.5, rel=0.01)
    assert cost.held.gib_hours == pytest.approx(2 * 0.5 + 3, rel=0.01)
    assert cost.held.gpu_hours == pytest.approx(2, rel=0.01)
    assert cost.held.idle is None, "no job has said what it used"


def test_another_resource_may_be_the_gpu(server: ApiServer, experiment: Experiment) -> None:
    change_settings(server, gpu={"resource": "amd.com/gpu"})
    pods = [pod("worker", {"amd.com/gpu": "4", GPU: "1"}, 10)]
    server.scripts = [[NEW, ("pods", pods), RUNNING, until_seen(experiment, "worker"), SUCCEEDED]]
    run(experiment)
    assert seen(experiment)["worker"].gpus == 4.0


def test_a_worker_that_is_lost_and_replaced_counts_until_it_is_gone(server: ApiServer, experiment: Experiment) -> None:
    one = {"cpu": "1"}
    first, second = [pod("first", one, 100)], [pod("second", one, 0)]
    steps = [NEW, ("pods", first), RUNNING, until_seen(experiment, "first"), ("pods", second)]
    server.scripts = [[*steps, until_seen(experiment, "second"), ("sleep", 1.2), SUCCEEDED]]
    run(experiment)
    held = seen(experiment)
    assert held["first"].ended and 100 <= held["first"].until - held["first"].began < 130
    assert held["second"].until - held["first"].until > 1


def test_a_pod_that_has_ended_holds_nothing_while_its_object_stays(server: ApiServer, experiment: Experiment) -> None:
    ended = {"exitCode": 0, "finishedAt": rfc3339(time.time() - 60)}
    statuses = [{"name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 0}]
    statuses[0]["state"] = {"terminated": ended}
    done = pod("done", {"cpu": "1"}, 100, phase="Succeeded", containerStatuses=statuses)
    server.scripts = [[NEW, ("pods", [done]), RUNNING, until_seen(experiment, "done"), ("sleep", 0.2), SUCCEEDED]]
    run(experiment)
    assert seen(experiment)["done"].until - seen(experiment)["done"].began == pytest.approx(40, abs=1)


def test_all_rayjobs_of_a_stage_count_and_an_api_that_is_away_loses_none(
    server: ApiServer, experiment: Experiment
) -> None:
    lost, again = [pod("lost", {"cpu": "1"}, 3600)], [pod("again", {"cpu": "1"}, 1800)]

    def away() -> None:
        server.unavailable = 3

    failing = [NEW, ("pods", lost), RUNNING, until_seen(experiment, "lost"), ("call", away), ("sleep", 0.3), SUBMISSION]
    server.scripts = [failing, [NEW, ("pods", again), RUNNING, until_seen(experiment, "again"), SUCCEEDED]]
    run(experiment)
    (cost,) = run_costs.of_run(experiment, "Nightly_7")
    assert cost.held is not None and cost.held.ended
    assert cost.held.core_hours == pytest.approx(1.5, rel=0.01)


def test_a_rayjob_that_is_deleted_was_held_at_least_until_it_was_last_seen(
    server: ApiServer, experiment: Experiment
) -> None:
    pods = [pod("worker", {"cpu": "1"}, 3600)]
    server.scripts = [[NEW, ("pods", pods), RUNNING, until_seen(experiment, "worker"), ("delete",)]]
    with pytest.raises(RayJobError, match="was deleted"):
        run(experiment)
    (cost,) = run_costs.of_run(experiment, "Nightly_7")
    assert cost.held is not None and not cost.held.ended
    assert cost.held.core_hours == pytest.approx(1.0, rel=0.01)


def test_pods_that_may_not_be_listed_are_not_known(server: ApiServer, experiment: Experiment) -> None:
    server.rules["wukong"] = [rule for rule in server.rules["wukong"] if rule["resources"] != ["pods"]]
    server.scripts = [[NEW, ("pods", [pod("worker", {"cpu": "1"}, 60)]), RUNNING, ("sleep", 0.3), SUCCEEDED]]
    run(experiment)
    assert run_costs.of_run(experiment, "Nightly_7") == []


def container(cpu: str | None, *, always: bool = False) -> dict[str, Any]:
    asked = {"resources": {"requests": {"cpu": cpu}}} if cpu else {}
    return {"name": "c", **asked, **({"restartPolicy": "Always"} if always else {})}


@pytest.mark.parametrize(
    ("init", "containers", "overhead", "expected"),
    [
        ([], ["500m", "1", None], None, 1.5),
        ([("3", False), ("2", False)], ["1"], None, 3.0),  # one init container after the other
        ([("3", False), ("2", True)], ["2"], None, 4.0),  # a sidecar beside the container
        ([("1", True), ("3", False)], ["1"], None, 4.0),  # an init container beside the sidecar before it
        ([], ["1"], "250m", 1.25),
    ],
)
def test_what_the_scheduler_keeps_for_a_pod(
    init: list[tuple[str, bool]], containers: list[str | None], overhead: str | None, expected: float
) -> None:
    # kubernetes.io/docs/concepts/workloads/pods/sidecar-containers, "Resource sharing within containers"
    spec = {
        "initContainers": [container(cpu, always=always) for cpu, always in init],
        "containers": [container(cpu) for cpu in containers],
        **({"overhead": {"cpu": overhead}} if overhead else {}),
    }
    asked = room.requests_of(spec)
    assert float(asked["cpu"]) == expected
    assert GPU not in asked


def test_a_pod_on_no_node_holds_nothing() -> None:
    assert holding(api_server.pod("waiting", {"phase": "Pending"}), {}, GPU, 0.0) is None
