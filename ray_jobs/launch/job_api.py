"""Run a stage through the job API of a Ray cluster, and wait for it: what KubeRay's submitter does, without Kubernetes.

Where: the address of Ray's dashboard, ``RAY_ADDRESS`` when it begins with ``http``. The driver runs on the head, with
the head's Python and the head's environment, so this process needs no Ray, and the head has the credentials.
"""

import json
import logging
import os
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wukong.cancel import end_on_signal
from wukong.errors import WukongError

_SECONDS = 30.0  # for one request

log = logging.getLogger(__name__)


class JobApiError(WukongError):
    """Ray's job API could not be reached or refused, or it ended a job that had not ended itself."""


@dataclass(frozen=True)
class Timing:
    """Seconds: ``poll`` between two looks at a job, ``patience`` for a head that cannot be reached."""

    poll: float = 1.0
    patience: float = 60.0


def run_job(
    arguments: Sequence[str], environment: Mapping[str, str], address: str, timing: Timing | None = None
) -> int:
    """Run ``python -m ray_jobs ARGUMENTS`` on a Ray cluster to its end; its log goes to standard output.

    Being cancelled (SIGTERM, an interrupt) stops the job.

    Args:
        arguments: of ``python -m ray_jobs``.
        environment: variables the job gets beside the head's own. They are visible in the dashboard: no credentials.
        address: of the dashboard, for instance ``http://127.0.0.1:8265``.
        timing: how long to wait for things.

    Returns:
        0 when the job succeeded, 1 when its command failed.

    Raises:
        JobApiError: the head cannot be reached or refuses, or the job was stopped or lost; the message is Ray's.
    """
    head = _Head(address.rstrip("/"), timing or Timing())
    # In the command and not in Ray's runtime environment: the driver gives its workers one, and two cannot be merged.
    told = ["env", *(f"{name}={value}" for name, value in environment.items())] if environment else []
    job = head.submit(shlex.join([*told, "python", "-m", "ray_jobs", *arguments]))
    log.info("Ray job %s at %s", job, address)

    def stop() -> None:
        log.warning("cancelled: stopping Ray job %s", job)
        head.stop(job)

    with end_on_signal(stop):
        status, message = head.follow(job)
    if status == "SUCCEEDED":
        return 0
    # Whatever ended a command that ran stands in the stage's record.
    if status == "FAILED" and "exit code" in message:
        return 1
    raise JobApiError(f"Ray job {job} at {address} ended as {status}: {message}")


class _Head:
    """What is asked of the job API."""

    def __init__(self, address: str, timing: Timing) -> None:
        self.address, self.timing = address, timing

    def submit(self, entrypoint: str) -> str:
        """Start a job; its identity."""
        return str(self._ask("POST", "", {"entrypoint": entrypoint}, patience=0)["submission_id"])

    def follow(self, job: str) -> tuple[str, str]:
        """Write a job's log as it comes; the status and message it ended with."""
        written = 0
        while True:
            found = self._ask("GET", job)
            text = self._ask("GET", f"{job}/logs")["logs"]
            ended = found["status"] in ("SUCCEEDED", "FAILED", "STOPPED")
            # Up to the end of a line: what is half written comes with the next look.
            until = len(text) if ended else text.rfind("\n") + 1
            if until > written:
                sys.stdout.write(text[written:until])
                sys.stdout.flush()
                written = until
            if ended:
                return found["status"], found.get("message") or ""
            time.sleep(self.timing.poll)

    def stop(self, job: str) -> None:
        """Stop a job; one that has ended already is fine."""
        try:
            self._ask("POST", f"{job}/stop", patience=0)
        except JobApiError as error:
            log.error("%s", error)

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, patience: float | None = None
    ) -> dict[str, Any]:
        """Ask the head, again while it cannot be reached."""
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get("RAY_AUTH_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/api/jobs/{path}", data, headers, method=method)  # noqa: S310
        until = time.monotonic() + (self.timing.patience if patience is None else patience)
        while True:
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as response:  # noqa: S310
                    answer: dict[str, Any] = json.load(response)
                    return answer
            except urllib.error.HTTPError as error:
                if error.code not in (502, 503, 504) or time.monotonic() > until:
                    said = error.read().decode(errors="replace").strip()[-1000:]
                    raise JobApiError(f"Ray's job API at {self.address} answers {error.code}: {said}") from error
            except (OSError, ValueError) as error:
                if time.monotonic() > until:
                    raise JobApiError(f"Ray's job API at {self.address} cannot be reached: {error}") from error
            time.sleep(self.timing.poll)
