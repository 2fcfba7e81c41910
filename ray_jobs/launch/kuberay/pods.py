"""Write down which pods a RayJob has held, with their requests and images, while it is watched.

When a job has ended, KubeRay deletes its pods, and later nobody can read them. So a thread lists the pods of the Ray
cluster and the submitter's every few seconds. A pod counts from the time when it was scheduled, and until its
containers had ended, until it was seen to be gone, or until the job's end; how long Kubernetes then takes to end the
pods is not counted. A RayJob that is suspended and resumed has one Ray cluster after the other, and none in between.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from infra.cluster_api import ClusterError
from ray_jobs.launch.kuberay import room
from ray_jobs.launch.kuberay.client import KubernetesApi
from wukong.errors import StorageError
from wukong.runs import origin
from wukong.runs.run_costs import Holding, Sheet

_STORED_SECONDS = 60.0

log = logging.getLogger(__name__)


class PodsHeld:
    """The pods that one RayJob holds; a context manager for the time in which a launcher watches the RayJob.

    Where the block ends with an error, this process is being ended or the RayJob is gone: then nobody knows for how
    long the pods that were there are held, unless the next launcher sees them again.

    Args:
        api: the Kubernetes API.
        job: name of the RayJob.
        gpu: name of the resource that counts as a GPU.
        write: stores a sheet; called again with all that is known whenever that has changed.
        write_images: likewise, of references of the images that the pods have run.
    """

    def __init__(
        self,
        api: KubernetesApi,
        job: str,
        gpu: str,
        write: Callable[[Sheet], None],
        write_images: Callable[[Collection[str]], None],
    ) -> None:
        self._api, self._job, self._gpu, self._write, self._write_images = api, job, gpu, write, write_images
        self._cluster = ""
        self._earlier: set[str] = set()
        self._held: dict[str, Holding] = {}
        self._images: frozenset[str] = frozenset()
        self._stored, self._stored_at = self._held, time.monotonic()
        self._wake, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"pods of {job}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._wake.set()
        if error is None:
            self._thread.join(self._api.timing.drain)
            self._held = {key: one.model_copy(update={"ended": True}) for key, one in self._held.items()}
        if error is None or isinstance(error, Exception):  # a process that is being ended has no time for the store
            self._store()

    def follow(self, status: Mapping[str, Any]) -> None:
        """Take the name of the Ray cluster from a status of the RayJob."""
        if (cluster := status.get("rayClusterName", "")) != self._cluster:
            self._earlier.add(self._cluster)
            self._cluster = cluster
            self._wake.set()

    def _watch(self) -> None:
        while True:
            is_last = self._over.is_set()
            # The pods of a job that was suspended are looked at until they are gone: what they hold ends then.
            if self._cluster or not all(one.ended for one in self._held.values()):
                self._look()
            if is_last:
                return
            self._wake.wait(self._api.timing.pods)
            self._wake.clear()

    def _look(self) -> None:
        clusters = {self._cluster, *self._earlier} - {""}
        try:
            of_clusters = {cluster: self._api.pods_of_cluster(cluster) for cluster in clusters}
            pods = [*self._api.submitter_pods(self._job), *itertools.chain(*of_clusters.values())]
        except ClusterError as error:
            log.debug("pods of %s cannot be listed: %s", self._job, error)
            return
        self._earlier -= {cluster for cluster, there in of_clusters.items() if not there}
        self._note_images(pods)
        now = time.time()
        found = (holding(pod, room.requests_of(pod["spec"]), self._gpu, now) for pod in pods)
        there = {one.key: one for one in found if one is not None}
        ended = {key: one for key, one in self._held.items() if one.ended}
        gone = {key: one.model_copy(update={"until": now, "ended": True}) for key, one in self._held.items()}
        self._held = gone | there | ended
        changed = {key: one.ended for key, one in self._held.items()} != {
            key: one.ended for key, one in self._stored.items()
        }
        if changed or time.monotonic() - self._stored_at > _STORED_SECONDS:
            self._store()

    def _note_images(self, pods: Iterable[Any]) -> None:
        if (images := self._images | images_run_by(pods)) != self._images:
            try:
                self._write_images(images)
                self._images = images
            except StorageError as error:
                log.warning("which images %s runs is not written down: %s", self._job, error)

    def _store(self) -> None:
        if self._held == self._stored:
            return
        self._stored, self._stored_at = self._held, time.monotonic()
        try:
            self._write(Sheet(source="pods", held=tuple(self._held.values())))
        except StorageError as error:
            log.warning("what %s holds is not written down: %s", self._job, error)


def images_run_by(pods: Iterable[Mapping[str, Any]], container: str = "") -> frozenset[str]:
    """Return references of the images that containers of pods run or have run.

    Args:
        pods: as the API sends them.
        container: name of the containers; empty for all.
    """
    return frozenset(
        origin.reference(names[status["name"]], status["imageID"])
        for pod in pods
        for names in [{each["name"]: each["image"] for each in pod["spec"]["containers"]}]
        for status in pod["status"].get("containerStatuses", [])
        if status.get("imageID") and status["name"] in names and container in ("", status["name"])
    )


def holding(pod: Mapping[str, Any], asked: room.Resources, gpu: str, now: float) -> Holding | None:
    """Return what a pod holds; None if it has not been scheduled.

    Args:
        pod: as the API sends it.
        asked: what the scheduler keeps for it.
        gpu: name of the resource that counts as a GPU.
        now: the time, until which a pod holds that has not ended.
    """
    metadata, status = pod["metadata"], pod["status"]
    scheduled = {"type": "PodScheduled", "status": "True"}.items()
    bound = [each for each in status.get("conditions", []) if scheduled <= each.items()]
    if not bound:
        return None
    until, has_ended = now, status.get("phase") in ("Succeeded", "Failed")
    if has_ended:
        states = [each.get("state", {}).get("terminated") or {} for each in status.get("containerStatuses", [])]
        until = max((_seconds(each["finishedAt"]) for each in states if each.get("finishedAt")), default=now)
    return Holding(
        key=metadata["uid"],
        name=metadata["name"],
        cores=float(asked.get("cpu", 0)),
        memory=int(asked.get("memory", 0)),
        gpus=float(asked.get(gpu, 0)),
        # The API's schema lets a condition lack its time.
        began=_seconds(bound[0].get("lastTransitionTime") or metadata["creationTimestamp"]),
        until=until,
        ended=has_ended,
    )


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
