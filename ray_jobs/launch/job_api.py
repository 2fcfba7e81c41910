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

import websocket
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from wukong.errors import WukongError
from wukong.runtime.cancel import end_on_signal

_REQUEST_SECONDS = 30.0
_LONGEST_LINE = 1 << 16
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

log = logging.getLogger(__name__)


class JobApiError(WukongError):
    """Ray's job API could not be reached or refused a request, or Ray ended a job whose command had not ended."""


@dataclass(frozen=True)
class Timing:
    """Seconds the launcher waits.

    Attributes:
        poll: pause between two attempts to reach the head, and before the first attempt to follow the log again.
        patience: longest wait for a head that cannot be reached.
        silence: time without a new line, after which the job's status is asked for.
    """

    poll: float = 1.0
    patience: float = 60.0
    silence: float = _REQUEST_SECONDS


def run_job(
    arguments: Sequence[str], environment: Mapping[str, str], address: str, timing: Timing | None = None
) -> int:
    """Run ``python -m ray_jobs ARGUMENTS`` on a Ray cluster to its end; its log goes to standard output.

    When this process gets SIGTERM or an interrupt, the job is stopped.

    Args:
        arguments: what follows ``python -m ray_jobs``.
        environment: variables for the job, in addition to the head's. The dashboard shows them: no credentials.
        address: the dashboard's, for instance ``http://127.0.0.1:8265``. Where the cluster asks for a token, it is
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
        """Write a job's log to standard output as it comes, and return the status and message the job ended with.

        Ray sends each line once, as long as the connection lasts. After a dropped one it begins with the first line
        again, which is passed over; so the pauses before that grow.
        """
        output, pause, last = _Output(), self.timing.poll, False
        while True:
            complete = self._tail(job, output)
            answer = self._ask("GET", job)
            if answer["status"] in _ENDED:
                if complete or last:
                    output.end()
                    return answer["status"], answer.get("message") or ""
                last = True
            time.sleep(pause)
            pause = min(2 * pause, _REQUEST_SECONDS)

    def _tail(self, job: str, output: "_Output") -> bool:
        """Write a job's log until Ray closes the connection, which it does at the end of the log; else return False."""
        output.begin()
        address = f"ws{self.address.removeprefix('http')}/api/jobs/{job}/logs/tail"
        header = [f"{name}: {value}" for name, value in _identity().items()]
        has_ended = False
        try:
            connection = websocket.create_connection(address, timeout=_REQUEST_SECONDS, header=header)
            try:
                connection.settimeout(self.timing.silence)
                while True:
                    try:
                        text = connection.recv()
                    except websocket.WebSocketTimeoutException:  # a job that says nothing, or a head that is gone
                        if has_ended:
                            return False
                        has_ended = self._ask("GET", job)["status"] in _ENDED
                        continue
                    if not text:
                        return True
                    output.write(text if isinstance(text, str) else text.decode(errors="replace"))
            finally:
                connection.shutdown()  # type: ignore[no-untyped-call]  # the package types only a part
        except (websocket.WebSocketException, OSError) as error:
            output.broken(job, error)
            return False

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
        headers = {"Content-Type": "application/json", **_identity()}
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


class _Output:
    """Writes a log to standard output in whole lines; what an earlier connection has brought is passed over."""

    def __init__(self) -> None:
        self._brought = 0  # characters, by all connections
        self._at = 0  # of the present connection
        self._rest = ""
        self._reason = ""

    def begin(self) -> None:
        """Take what comes now as the log from its first line on."""
        self._at = 0

    def write(self, text: str) -> None:
        """Take the next piece of the log, and write its lines that are complete, or too long to wait for their end."""
        old = max(self._brought - self._at, 0)
        self._at += len(text)
        self._brought = max(self._brought, self._at)
        self._rest += text[old:]
        until = len(self._rest) if len(self._rest) > _LONGEST_LINE else self._rest.rfind("\n") + 1
        sys.stdout.write(self._rest[:until])
        sys.stdout.flush()
        self._rest = self._rest[until:]

    def end(self) -> None:
        """Write a last line without an end."""
        sys.stdout.write(self._rest)
        sys.stdout.flush()

    def broken(self, job: str, error: Exception) -> None:
        """Say once for each reason that the log is not followed for a while."""
        reason = str(error).partition(" -+-+- ")[0]
        if reason != self._reason:
            log.warning("the log of Ray job %s cannot be followed now, and is asked for again: %s", job, reason)
            self._reason = reason


def _identity() -> dict[str, str]:
    token = os.environ.get("RAY_AUTH_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _answer_to(request: urllib.request.Request) -> dict[str, Any]:
    with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
        return answer


def _is_temporary(error: BaseException) -> bool:
    """Whether a request may succeed later. An answer that is no JSON comes from a proxy whose head is away."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (502, 503, 504)
    return isinstance(error, (OSError, ValueError))
