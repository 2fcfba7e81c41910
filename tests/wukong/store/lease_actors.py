"""Processes that make or delete one output, for ``test_lost_answers``; they are forked from one that imports this."""

import contextlib
import os
import time
from collections.abc import Mapping
from functools import partial
from multiprocessing.connection import Connection

import boto3  # noqa: F401 - imported once, before the processes are forked
import pyarrow.fs  # noqa: F401 - the same

from wukong.publish import unneeded
from wukong.store import fence, lease, storage
from wukong.store.manifest import Manifest, Stage

SECONDS = 0.8
_STEPS, _STEP_SECONDS = 12, 0.05
_TRACE = "asked/pretrain"


def stage_of(root: str) -> Stage:
    return Stage(root, "pretrain", {})


def make(variables: Mapping[str, str], root: str, name: str, said: Connection) -> None:
    """Make the output as the run of that name, in small steps; say ``works``, and ``has`` or ``fenced`` at the end."""
    _begin(variables, name)
    storage.write_bytes(storage.join(_runs_of(root), name, _TRACE), b"")
    fence.claim(root, name, "pretrain")
    stage = stage_of(root)

    def work() -> Manifest:
        _say(said, "works")
        for number in range(_STEPS):
            stage.commit_task("part", {"by": name, "number": number})
            time.sleep(_STEP_SECONDS)
        return stage.commit([], notes={"by": name})

    try:
        stage.made(work)
        _say(said, "has")
    except fence.FencedError:
        _say(said, "fenced")


def delete(variables: Mapping[str, str], root: str, name: str, said: Connection) -> None:
    """Delete the output as ``wukong gc`` does, unless a run but ``first`` began; say ``deletes``, and ``ended``."""
    _begin(variables, name)
    uri = stage_of(root).uri
    with lease.deleting(uri, lambda: True, lease.silent([uri]).get(uri, "")) as may:
        traces = storage.list_files(_runs_of(root), _TRACE)
        if may and not [uri for uri in traces if not uri.endswith(f"/first/{_TRACE}")]:
            _say(said, "deletes")
            with contextlib.suppress(fence.TakenOverError):
                unneeded._delete(uri)
    _say(said, "ended")


def _runs_of(root: str) -> str:
    return storage.join(root, "runs")


def _begin(variables: Mapping[str, str], name: str) -> None:
    """Be a process of a machine of its own, which others judge by its lease alone."""
    os.environ.update({fence.VARIABLE: "", **variables})
    lease._machine = lambda: name  # type: ignore[assignment]
    lease.held = partial(lease.held, seconds=SECONDS)
    lease.SECONDS = SECONDS


def _say(said: Connection, word: str) -> None:
    said.send_bytes(word.encode())
