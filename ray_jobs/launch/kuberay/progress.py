"""Show how far a stage has come where operators look: on its RayJob, and in the file that Argo reads.

The job's log says it once a minute (``wukong.runtime.progress``). ``kubectl get rayjobs -L wukong/progress`` then shows
for instance ``42pct-8m-left``, ``queued`` while the job is suspended, and ``done`` when it has succeeded; an annotation
of the same name says what is counted. Argo puts ``42/100`` into the status of the pod's node and adds it to that of the
workflow, in which each other pod counts for 1: so the file has hundredths and not the units of the work.
"""

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.cluster_api import ClusterError
from ray_jobs.launch.kuberay.client import KubernetesApi, explain
from ray_jobs.launch.kuberay.status import is_suspended
from wukong.runtime.events import Advanced
from wukong.runtime.language import message

NAME = "wukong/progress"
"""Of the label and of the annotation."""

QUEUED = "queued"
"""The label's value while a job is suspended: it has no Ray cluster, and what it did last begins again somewhere."""

_FILE = "ARGO_PROGRESS_FILE"  # in every container of a pod of Argo, unless its controller asks for no progress
_BEFORE_MESSAGE = " | INFO | "  # in a line of the log (``wukong.runtime.logs``), after what Ray says of the worker
_REFUSALS = (401, 403)
_LONGEST = 1_000 * 86_400  # seconds; what takes longer by its first steps is not known yet

log = logging.getLogger(__name__)


class ShownProgress:
    """Shows the progress of one RayJob while the ``with`` block lasts, from a thread of its own.

    It writes what has changed, at most once in ``Timing.progress`` seconds. It begins after so many seconds, too: a
    component that takes a RayJob over reads the log from its beginning, and must not go back to what that says first.
    A write that fails does not fail the stage.

    Args:
        api: the Kubernetes API.
        job: name of the RayJob.
    """

    def __init__(self, api: KubernetesApi, job: str) -> None:
        self._api, self._job = api, job
        self._file = os.environ.get(_FILE)
        self._latest: Advanced | None = None
        self._is_queued = False
        self._labelled: Mapping[str, Mapping[str, str | None]] = {}
        self._filed = ""
        self._has_failed = self._is_refused = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"progress of {job}", daemon=True)

    def __enter__(self) -> "ShownProgress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def read(self, line: str) -> None:
        """Take a line of the job's log."""
        self._latest = Advanced.read(line.partition(_BEFORE_MESSAGE)[2]) or self._latest

    def follow(self, status: Mapping[str, Any]) -> None:
        """Take from a status of the RayJob whether it is suspended; what its log has said then counts no more."""
        was_queued, self._is_queued = self._is_queued, is_suspended(status)
        if was_queued and not self._is_queued:
            self._latest = None

    def end(self, *, succeeded: bool) -> None:
        """Say on the RayJob that it is done, or else how far it had come. Call it after the block."""
        self._thread.join()
        if succeeded:
            self._patch({"labels": {NAME: "done"}})
        elif self._latest is not None:
            self._patch({"labels": {NAME: f"{percent(self._latest)}pct"}})

    def _follow(self) -> None:
        while not self._over.wait(self._api.timing.progress):
            if self._is_queued:
                self._patch({"labels": {NAME: QUEUED}, "annotations": {NAME: None}})
            elif (latest := self._latest) is not None:
                counted = f"{latest.what}: {latest.done:,} of {latest.total:,} {latest.unit}"
                self._patch({"labels": {NAME: label(latest)}, "annotations": {NAME: counted}})
                self._write(f"{percent(latest)}/100\n")
            elif self._labelled:
                self._patch({"labels": {NAME: None}})  # it runs, and has not said how far it is

    def _patch(self, metadata: Mapping[str, Mapping[str, str | None]]) -> None:
        if self._is_refused or metadata == self._labelled:
            return
        try:
            self._api.patch_job(self._job, {"metadata": metadata})
        except ClusterError as error:
            self._is_refused = error.status in _REFUSALS
            if not self._has_failed and error.status != 404:  # a RayJob that is gone ends the stage, with a message
                log.warning("how far RayJob %s has come is not shown on it: %s", self._job, explain(error))
                self._has_failed = True
        else:
            self._labelled = metadata

    def _write(self, text: str) -> None:
        if self._file is None or text == self._filed:
            return
        try:
            Path(self._file).write_text(text, encoding="ascii")
            self._filed = text
        except OSError as error:
            log.warning("Argo is not told of the progress: %s", error)
            self._file = None


def label(advanced: Advanced) -> str:
    """The value of the label: the share that is done, and the time that is left while it is known."""
    seconds = advanced.seconds_left
    if seconds is None or seconds >= _LONGEST:
        return f"{percent(advanced)}pct"
    return f"{percent(advanced)}pct-{_duration(round(seconds))}-left"


def in_words(value: str) -> str:
    """What a value of the label says to people."""
    if value == QUEUED:
        return message("waits for its turn in the queue")
    share, _, left = value.removesuffix("-left").partition("pct")
    left = left.removeprefix("-")
    return message(f"{share} %, {left} left") if left else f"{share} %"


def percent(advanced: Advanced) -> int:
    """The share that is done in hundredths, rounded down: 100 is the end."""
    return min(100 * advanced.done // advanced.total, 100) if advanced.total else 100


def _duration(seconds: int) -> str:
    """A time as ``2d4h``, ``3h20m``, ``8m`` or ``45s``: no longer than people need, and without a space."""
    if seconds < 60:
        return f"{seconds}s"
    minutes, hours, days = seconds // 60, seconds // 3_600, seconds // 86_400
    if days:
        return f"{days}d{hours % 24}h"
    return f"{hours}h{minutes % 60}m" if hours else f"{minutes}m"
