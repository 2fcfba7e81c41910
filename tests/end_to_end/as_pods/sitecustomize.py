"""Gives a process of a run the credentials that its pod has on a cluster, and no others.

Python imports the module of this name that it finds first, whenever it starts. What the process is says its command,
and of a worker of the stack's Ray the claim that its job has sent it. Components run in the process of ``command.py``.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

PODS = "WUKONG_TEST_PODS"
"""Names the file with the variables of each kind of pod, by ``component/FUNCTION`` and ``job/RECORD``."""

_CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
)


def _pod() -> str:
    match sys.orig_argv[1:]:
        case ["-m", "ray_jobs", stage, *_]:
            return f"job/{stage}"
    if os.environ.get("WUKONG_STACK_SERVICE") == "ray":
        claim = os.environ.get("WUKONG_ATTEMPT", "//").split("/")
        return f"job/{claim[-2]}"
    return ""


def give(credentials: Mapping[str, str]) -> None:
    """Give this process some credentials in place of those it has."""
    for name in _CREDENTIALS:
        os.environ.pop(name, None)
    os.environ.update(credentials)


if pod := _pod():
    give(json.loads(Path(os.environ[PODS]).read_text(encoding="utf-8"))[pod])
