"""Run a stage's job through the job API of a Ray cluster: what KubeRay's submitter does, without Kubernetes.

The driver runs on the head, with the head's Python and the head's environment. So this process needs no Ray, and no
credentials but the cluster's token.
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

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from wukong.cancel import end_on_signal
from wukong.errors import WukongError

_REQUEST_SECONDS = 30.0

log = logging.getLogger(__name__)


class JobApiError(WukongError):
    """Ray's job API could not be reached or refused a request, or Ray ended a job whose command had not ended."""


@dataclass(frozen=True)
class Timing:
    """Seconds the launcher waits.

    Attributes:
        poll: between two reads of a job's status, and between two attempts to reach the head.
        patience: for a head that cannot be reached.
    """

    poll: float = 1.0
    patience: float = 60.0


def run_job(
    arguments: Sequence[str], environment: Mapping[str, str], address: str, timing: Timing | None = None
) -> int:
    """Run ``python -m ray_jobs ARGUMENTS`` on a Ray cluster to its end; its log goes to standard output.

    When this process gets SIGTERM or an interrupt, the job is stopped.

    Args:
        arguments: of ``python -m ray_jobs``.
        environment: variables for the job, in addition to the head's. The dashboard shows them: no credentials.
        address: of the dashboard, for instance ``http://127.0.0.1:8265``. Where the cluster asks for a token, it is
            ``RAY_AUTH_TOKEN``.
        timing: how long to wait.

    Returns:
        0 when the job succeeded, 1 when its command failed.

    Raises:
        JobApiError: the head cannot be reached or refuses, or the job was stopped or lost; the message is Ray's.
    """
    head = _Head(address.rstrip("/"), timing or Timing())
    # In the command and not in Ray's runtime environment: the driver sets one for its workers, and Ray merges none.
    variables = ["env", *(f"{name}={value}" for name, value in environment.items())] if environment else []
    job = head.submit(shlex.join([*variables, "python", "-m", "ray_jobs", *arguments]))
    log.info("Ray job %s at %s", job, address)

    def stop() -> None:
        log.warning("cancelled: stopping Ray job %s", job)
        head.stop(job)

    with end_on_signal(stop):
        status, message = head.follow(job)
    if status == "SUCCEEDED":
        return 0
    # The command ran and failed: the stage's record says why.
    if status == "FAILED" and "exit code" in message:
        return 1
    raise JobApiError(f"Ray job {job} at {address} ended as {status}: {message}")


class _Head:
    """The job API of one Ray head."""

    def __init__(self, address: str, timing: Timing) -> None:
        self.address, self.timing = address, timing

    def submit(self, entrypoint: str) -> str:
        """Start a job and return its identity. It is asked for once: a repeated request could start a second job."""
        return str(self._ask("POST", "", {"entrypoint": entrypoint}, patience=0)["submission_id"])

    def follow(self, job: str) -> tuple[str, str]:
        """Write a job's log to standard output as it comes, and return the status and message the job ended with."""
        written = 0
        while True:
            found = self._ask("GET", job)
            text = self._ask("GET", f"{job}/logs")["logs"]
            ended = found["status"] in ("SUCCEEDED", "FAILED", "STOPPED")
            # Up to the last complete line; the rest is written when its line is complete, or when the job has ended.
            until = len(text) if ended else text.rfind("\n") + 1
            if until > written:
                sys.stdout.write(text[written:until])
                sys.stdout.flush()
                written = until
            if ended:
                return found["status"], found.get("message") or ""
            time.sleep(self.timing.poll)

    def stop(self, job: str) -> None:
        """Stop a job. A failure is only logged: this process is being ended."""
        try:
            self._ask("POST", f"{job}/stop", patience=0)
        except JobApiError as error:
            log.error("%s", error)

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, patience: float | None = None
    ) -> dict[str, Any]:
        """Make a request, again for ``patience`` (or ``Timing.patience``) seconds while the head cannot be reached."""
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get("RAY_AUTH_TOKEN"):
            headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/api/jobs/{path}", data, headers, method=method)  # noqa: S310
        attempts = Retrying(
            retry=retry_if_exception(_is_temporary),
            wait=wait_fixed(self.timing.poll),
            stop=stop_after_delay(self.timing.patience if patience is None else patience),
            reraise=True,
        )
        try:
            return attempts(_answer_to, request)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace").strip()[-1000:]
            raise JobApiError(f"Ray's job API at {self.address} answers {error.code}: {said}") from error
        except (OSError, ValueError) as error:
            raise JobApiError(f"Ray's job API at {self.address} cannot be reached: {error}") from error


def _answer_to(request: urllib.request.Request) -> dict[str, Any]:
    with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
        return answer


def _is_temporary(error: BaseException) -> bool:
    """Whether a request may succeed later. An answer that is no JSON comes from a proxy whose head is away."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (502, 503, 504)
    return isinstance(error, (OSError, ValueError))
