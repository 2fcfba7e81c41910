"""Fencing: of the attempts at one stage of one run only the newest writes.

A driver on a node that the cluster has lost may still be alive: it holds credentials, and goes on writing beside the
driver that was started in its place. So each driver claims an attempt before its work, and what makes output valid (a
task's marker, a manifest, a record, a checkpoint) is written only by a process whose claim is the newest.

A claim is a file under ``runs/RUN/attempts/STAGE/``, whose name orders it: a number one above those that are there, and
a random part that decides between two claims of the same moment.

``publish`` looks at the claims, and then writes only if the file is still as it was before that look (``If-Match``,
``If-None-Match``; on a file system a link or a lock). So what a newer attempt has written is never replaced by an older
one, however long the older one was held up between its look and its write. Before the newer attempt has written the
file, the older one may still write it in that moment; the newer one then replaces it. With a store that has no
conditional writes, the log says so once, and an older attempt can also replace a file in that moment. Large files are
written without a condition: an attempt's checkpoints have a folder of their own, and the attempts at a stage write the
same bytes to the same places, except a model that is trained on GPUs.

Runs that share a stage's output do not fence each other.
"""

import logging
import os
import uuid
from functools import lru_cache
from typing import Any

from wukong import storage
from wukong.conditional_store import ChangedError, UnconditionalError
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


def publish(uri: str, value: Any) -> None:
    """Write JSON that makes output valid, unless a newer attempt has begun; see above.

    Args:
        uri: of the file.
        value: a JSON value.

    Raises:
        FencedError: a newer attempt has begun.
        StorageError: the file cannot be written.
    """
    claimed, data = os.environ.get(VARIABLE), storage.json_bytes(value)
    if not claimed or not _is_conditional(claimed):
        check()
        storage.write_bytes(uri, data)
        return
    while True:
        seen = storage.version(uri)
        check()
        try:
            storage.write_if(uri, data, seen)
        except ChangedError:
            continue  # by whom, the next check finds out
        return


@lru_cache(maxsize=8)
def _is_conditional(claimed: str) -> bool:
    """Return whether the store of a claim heeds conditions: asked to make the claim anew, it must refuse."""
    if claimed.startswith("file://"):
        return True
    why = "it ignores If-None-Match"
    try:
        storage.write_if(claimed, storage.read_bytes(claimed), None)
    except ChangedError:
        return True
    except UnconditionalError as error:
        why = str(error)
    log.warning(
        "the object store has no conditional writes (%s): an older attempt that is held up for long between its look "
        "at the newer claims and its write could replace a manifest",
        why,
    )
    return False


def _name(uri: str) -> str:
    return uri.rpartition("/")[2].removesuffix(".json")
