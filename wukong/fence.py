"""Fencing: of the attempts at one stage of one run only the newest writes.

A driver on a node that the cluster has lost may still be alive: it holds credentials, and goes on writing beside the
driver that was started in its place. So each driver claims an attempt before its work, and what makes output valid (a
task's marker, a manifest, a record, a checkpoint) is written only by a process whose claim is the newest.

A claim is a file under ``runs/RUN/attempts/STAGE/``, whose name orders it: a number one above those that are there, and
a random part that decides between two claims of the same moment. So no conditional write is needed, which pyarrow's S3
does not have. Between the look at the claims and the write there is a moment in which a newer claim goes unseen. What
is written in it does no harm: attempts at a stage write the same bytes to the same places, except checkpoints, and each
attempt has its own folder for those.

Runs that share a stage's output do not fence each other.
"""

import logging
import os
import uuid

from wukong import storage
from wukong.errors import WukongError

VARIABLE = "WUKONG_ATTEMPT"
"""Environment variable: URI of the claim of this job, for its workers. Without it nothing is fenced."""

log = logging.getLogger(__name__)


class FencedError(WukongError):
    """A newer attempt at the stage has begun, so this one writes no more."""


def claim(root: str, run: str, stage: str) -> str:
    """Claim the next attempt at a stage of a run for this process and its workers; return the attempt's name.

    Args:
        root: the experiment's prefix.
        run: name of the run.
        stage: name of the stage.
    """
    folder = storage.join(root, "runs", run, "attempts", stage)
    newest = max((_name(uri) for uri in storage.list_files(folder, ".json")), default="0")
    name = f"{int(newest.split('-')[0]) + 1:05d}-{uuid.uuid4().hex[:8]}"
    uri = storage.join(folder, f"{name}.json")
    storage.write_json(uri, {"host": os.uname().nodename})
    os.environ[VARIABLE] = uri
    log.info("attempt %s at %s", name, stage)
    return name


def attempt() -> str:
    """The name of the attempt that this process works for; empty where none was claimed."""
    return _name(os.environ.get(VARIABLE, ""))


def check() -> None:
    """Check that this process's attempt is the newest; call it before a write that makes output valid.

    Raises:
        FencedError: a newer attempt has begun.
    """
    if not (claimed := os.environ.get(VARIABLE)):
        return
    folder = claimed.rpartition("/")[0]
    newest = max((_name(uri) for uri in storage.list_files(folder, ".json")), default="")
    if newest > _name(claimed):
        raise FencedError(
            f"attempt {_name(claimed)} writes no more: attempt {newest} has begun in its place ({folder}). Where the "
            "first one's node or head was thought lost, nothing is to be done"
        )


def _name(uri: str) -> str:
    return uri.rpartition("/")[2].removesuffix(".json")
