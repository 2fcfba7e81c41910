"""Follow the log of a RayJob, and keep its last lines for the error message."""

import contextlib
import logging
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.cluster_api import ClusterError
from ray_jobs.launch.kuberay.client import HEAD, KubernetesApi

_KEPT_LINES = 40
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""``ray job submit`` colours its lines wherever it writes, and KFP's page shows the codes as boxes."""

log = logging.getLogger(__name__)


@dataclass
class JobLog:
    """Writes a RayJob's log to standard output as it comes, from a thread of its own.

    Every line carries the kubelet's time stamp. After a dropped connection the log is asked for from the second of the
    last line on, and lines that are not later than the last one are left out. So no line is lost, and none comes twice.

    Attributes:
        api: the Kubernetes API.
        job: name of the RayJob.
        on_line: called with each line, from that thread.
        last_lines: the end of the log.
    """

    api: KubernetesApi
    job: str
    on_line: Callable[[str], object]
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))

    def __post_init__(self) -> None:
        self._job_ended = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"log of {self.job}", daemon=True)

    def __enter__(self) -> "JobLog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._job_ended.set()
        self._closed.set()

    def drain(self) -> None:
        """Wait for the rest of the log, ``Timing.drain`` seconds at most. Call it when the job has ended."""
        self._job_ended.set()
        self._thread.join(self.api.timing.drain)

    def _follow(self) -> None:
        """Follow the submitter's pods; KubeRay makes another pod when it submits the job again."""
        last: dict[str, str] = {}
        complete: set[str] = set()
        while True:
            is_last_round = self._job_ended.is_set()
            try:
                for pod in self.api.submitter_pods(self.job):
                    name, phase = pod["metadata"]["name"], pod["status"].get("phase")
                    if name in complete or phase == "Pending":
                        continue
                    seen = last.get(name)
                    for moment, coloured in self.api.follow_log(name, seen):
                        if self._closed.is_set():
                            return
                        if seen is None or _comparable(moment) > _comparable(seen):
                            last[name] = moment
                            line = _COLOURS.sub("", coloured)
                            self.last_lines.append(line)
                            self.on_line(line)
                            sys.stdout.write(line + "\n")
                            sys.stdout.flush()
                    if phase in ("Succeeded", "Failed"):
                        complete.add(name)
            except ClusterError as error:
                log.debug("log of %s: %s", self.job, error)
            if is_last_round:
                return
            self._job_ended.wait(min(1.0, self.api.timing.poll))


def end_of_head_log(api: KubernetesApi, status: Mapping[str, Any]) -> list[str]:
    """The last lines of the Ray head's log, for a job that ended before it had a log of its own.

    Args:
        api: the Kubernetes API.
        status: the RayJob's.
    """
    for pod in api.cluster_pods(status, HEAD)[-1:]:
        with contextlib.suppress(ClusterError):
            return api.read_log(pod["metadata"]["name"], _KEPT_LINES)[-_KEPT_LINES:]
    return []


def _comparable(moment: str) -> str:
    """An RFC 3339 time (UTC) with nine digits after the point: such texts sort as the times do."""
    whole, _, fraction = moment.rstrip("Z").partition(".")
    return f"{whole}.{fraction:0<9}"
