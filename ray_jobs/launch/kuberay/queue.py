"""What a suspended RayJob waits for, as Kueue says it, and how many workers it asks for meanwhile.

Kueue keeps a Workload for each RayJob of a queue. Its condition ``QuotaReserved`` says since when quota is lacking and
what of it. Kueue admits a RayJob whole or not at all: its partial admission is for ``batch/v1`` Jobs. So it is the
launcher that changes how many pods a suspended RayJob asks for. Kueue takes that over into the Workload, which stays
where it is in the queue (``updateWorkloadToMatchJob`` in ``pkg/controller/jobframework/reconciler.go``, 0.17).
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from infra.cluster_api import ClusterError
from ray_jobs.launch.kuberay.client import KubernetesApi, explain
from ray_jobs.launch.kuberay.manifest import QUEUE
from wukong.runtime.language import message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waiting:
    """The wait of a suspended RayJob.

    Attributes:
        text: what it waits for, for the log.
        since: when it began to wait for quota; None where it does not, or where that is not known.
    """

    text: str
    since: datetime | None = None


def look(api: KubernetesApi, job: Mapping[str, Any], first_seen: datetime) -> Waiting:
    """Read what a suspended RayJob waits for.

    Args:
        api: the Kubernetes API.
        job: the RayJob.
        first_seen: when it was first seen to be suspended; for where Kueue's objects cannot be read.
    """
    queue = job["metadata"].get("labels", {}).get(QUEUE)
    if not queue:
        return Waiting(message("it is suspended and in no queue: somebody has set its `suspend`, and may take it back"))
    try:
        workload = api.workload(job["metadata"]["uid"])
    except ClusterError as error:
        log.debug("Kueue's Workload of %s cannot be read: %s", job["metadata"]["name"], explain(error))
        return Waiting(message(f"it waits for quota in queue {queue} since {_shown(first_seen)}"), first_seen)
    if workload is None:
        return Waiting(
            message(
                f"Kueue has not taken it into queue {queue} yet: is Kueue installed, with its integration "
                "ray.io/rayjob, and is there the priority class that is asked for?"
            )
        )
    conditions = {each["type"]: each for each in workload.get("status", {}).get("conditions", [])}
    quota = conditions.get("QuotaReserved")
    if quota is not None and quota["status"] == "True":
        evicted = conditions.get("Evicted", {})
        if evicted.get("status") == "True":
            return Waiting(message(f"it gives its quota back to queue {queue}: {evicted.get('message', '')}"))
        return Waiting(message(f"it has quota of queue {queue} and is about to start"))
    since = _moment(quota["lastTransitionTime"] if quota else workload["metadata"]["creationTimestamp"])
    text = message(f"it waits for quota in queue {queue} since {_shown(since)}")
    if (place := _place(api, queue, workload["metadata"]["name"])) is not None:
        text += message(f", as number {place} of those that wait")
    return Waiting(f"{text}: {quota['message']}" if quota and quota.get("message") else text, since)


def workers_to_ask_for(most: int, least: int, waited: float, seconds: float) -> int:
    """How many workers a training asks for after a wait: all, half after so many seconds, half of that after as many.

    Args:
        most: the training's ``workers``.
        least: its ``min_workers``.
        waited: for how many seconds it has waited; below zero where Kueue's clock is ahead.
        seconds: how long it waits with each number.
    """
    halvings = min(max(int(waited // seconds), 0), most.bit_length())
    return max(most >> halvings, least)


def _place(api: KubernetesApi, queue: str, workload: str) -> int | None:
    """The workload's number among those that wait for the same quota, from 1; None where Kueue does not say it."""
    try:
        waiting = api.pending_workloads(queue)
    except ClusterError as error:
        log.debug("the order of queue %s cannot be read: %s", queue, explain(error))
        return None
    places = {each["metadata"]["name"]: int(each["positionInClusterQueue"]) for each in waiting}
    return places[workload] + 1 if workload in places else None


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _shown(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
