"""Run a stage's job as a process on this machine."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from wukong.runtime.cancel import ENDS_WITH, end_on_signal

_GRACE = 4.0  # seconds between SIGTERM and SIGKILL; when the driver dies, Ray ends the driver's tasks and actors


def run_job(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run ``python -m ray_jobs ARGUMENTS`` with this Python to its end; its output goes to ours.

    When this process gets SIGTERM or an interrupt, the job gets SIGTERM, and after four seconds SIGKILL. When this
    process is killed, the job notices and ends itself.

    Args:
        arguments: what follows ``python -m ray_jobs``.
        environment: all variables of the job.

    Returns:
        The job's exit status, or the negative number of the signal that killed it.
    """
    command = [sys.executable, "-m", "ray_jobs", *arguments]
    process = subprocess.Popen(  # noqa: S603
        command, env={**environment, ENDS_WITH: str(os.getpid())}, stdout=sys.stdout, stderr=sys.stderr
    )
    try:
        with end_on_signal(process.terminate):
            return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
