"""The run of Kubeflow Pipelines that this component belongs to: whether it goes on without this pod.

A component's pod gets the same SIGTERM when a person terminates the run and when the pod alone goes: its node is
drained, it is evicted, somebody deletes it. In the first case the RayJob must go. In the second the next attempt of the
component takes it over, and days of training with it. The pod's own deletion time stamp does not tell them apart for
certain: a node that shuts down may signal its pods without one. So the run decides. It is a Workflow of Argo in the
pod's namespace. Argo names it only in its own containers of the pod; a component's container has ``ARGO_NODE_ID``, the
Workflow's name, a hyphen and a number. Kubeflow Pipelines terminates it by ``spec.activeDeadlineSeconds: 0``, Argo's
own tools by ``spec.shutdown``. Kubeflow's Role ``pipeline-runner`` may read it. Where it cannot be read, the RayJob
stays, and the run's exit handler deletes it (``end_run``).

A component that gets SIGTERM has a second at most: Argo signals the whole process group, KFP's launcher ends at once,
and the container ends with it. So the Workflow is watched from the beginning, and the RayJob of a terminated run is
deleted before Argo's signal comes.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from infra.cluster_api import Cluster, ClusterError

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_NODE = "ARGO_NODE_ID"
_ENDED = ("Succeeded", "Failed", "Error")
_WORKFLOW = ("argoproj.io/v1alpha1", "Workflow")
_RETRY_SECONDS = 2.0
_WATCH_SECONDS = 300
_HURRY = (1.0, 2.0)  # seconds to connect and to answer, when this process is being ended

log = logging.getLogger(__name__)


class PipelineRun:
    """The Workflow of this pod's pipeline run.

    Args:
        name: the Workflow's.
        namespace: this pod's and the Workflow's.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self._cluster, self._name, self._namespace = Cluster(), name, namespace
        self._is_ending = threading.Event()

    def goes_on(self) -> bool:
        """Whether the run goes on without this pod; True where that cannot be found out, which the log then says."""
        if self._is_ending.is_set():
            return False
        try:
            workflow = self._cluster.read(*_WORKFLOW, self._name, self._namespace, _HURRY)
        except ClusterError as error:
            if error.status == 404:
                return False
            log.warning("the pipeline run %s cannot be read, so it counts as going on: %s", self._name, error)
            return True
        return not is_ending(workflow)

    def was_terminated(self) -> bool:
        """Whether somebody has ended the run before its end; False where that cannot be found out, as the log says."""
        try:
            workflow = self._cluster.read(*_WORKFLOW, self._name, self._namespace)
        except ClusterError as error:
            log.warning("the pipeline run %s cannot be read, so it counts as not terminated: %s", self._name, error)
            return False
        spec = workflow.get("spec") or {}
        return bool(spec.get("shutdown")) or spec.get("activeDeadlineSeconds") == 0

    def end_when_terminated(self, ended: threading.Event) -> None:
        """Send this process SIGTERM when the run is terminated, from a thread, until ``ended`` is set."""
        threading.Thread(target=self._watch, args=(ended,), name="pipeline run", daemon=True).start()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                for kind, workflow in self._cluster.watch(*_WORKFLOW, self._name, self._namespace, _WATCH_SECONDS):
                    if ended.is_set():
                        return
                    if kind == "DELETED" or is_ending(workflow):
                        log.warning("the pipeline run %s is being ended", self._name)
                        self._is_ending.set()
                        os.kill(os.getpid(), signal.SIGTERM)
                        return
            except (ClusterError, ValueError) as error:
                if getattr(error, "status", None) in (401, 403, 404, 405):
                    log.warning("the pipeline run %s cannot be watched: %s", self._name, error)
                    return
                log.debug("the watch of the pipeline run %s was dropped: %s", self._name, error)
            ended.wait(_RETRY_SECONDS)


def of_this_pod() -> PipelineRun | None:
    """The pipeline run that this pod belongs to; None outside one, for instance on a laptop."""
    name = os.environ.get(_NODE, "").rpartition("-")[0]
    if not name or not NAMESPACE_FILE.exists():
        return None
    return PipelineRun(name, NAMESPACE_FILE.read_text(encoding="utf-8").strip())


def is_ending(workflow: Mapping[str, Any]) -> bool:
    """Whether a Workflow has ended, is being terminated or deleted, or has passed its deadline."""
    spec, status = workflow.get("spec") or {}, workflow.get("status") or {}
    if workflow.get("metadata", {}).get("deletionTimestamp") or spec.get("shutdown") or status.get("phase") in _ENDED:
        return True
    seconds, began = spec.get("activeDeadlineSeconds"), status.get("startedAt")
    if seconds is None:
        return False
    return seconds <= 0 or bool(began and datetime.fromisoformat(began).timestamp() + seconds <= time.time())
