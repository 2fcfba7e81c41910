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
conditional writes, the log says so once, and an older attempt can also replace a file in that moment. Files whose bytes
may differ from one attempt to the next are written in the same way: a trained model, features, a crawl's pictures.
Other large files are written without a condition: the attempts at a stage write the same bytes to the same places. An
attempt's checkpoints have a folder of their own.

Runs that share a stage's output do not fence each other by their claims: a lease lets one of them work at a time
(``wukong.store.lease``). Who takes the lease of a process that seems dead ends that process's attempt by ``end``.
"""

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, Any

from wukong.errors import WukongError
from wukong.store import storage
from wukong.store.conditional_store import ChangedError, UnconditionalError

_ENDED = ".taken-over"
"""After an attempt's name: the attempt was ended. The name comes after the attempt's own, and before the next one's."""

_NO_VERSION = "0" * 32
"""What no content has as its version."""

VARIABLE = "WUKONG_ATTEMPT"
"""Environment variable: URI of the claim of this job, for its workers. Without it nothing is fenced."""

log = logging.getLogger(__name__)


class FencedError(WukongError):
    """A newer attempt at the stage has begun, so this one writes no more."""


class TakenOverError(FencedError):
    """Another run has taken over what this attempt was making, so this one writes no more."""


def claim(root: str, run: str, stage: str) -> str:
    """Claim the next attempt at a stage of a run for this process and its workers; return the attempt's name.

    Args:
        root: the experiment's prefix.
        run: name of the run.
        stage: name of the stage.
    """
    folder = folder_of(root, run, stage)
    newest = max((_name(uri) for uri in storage.list_files(folder, ".json")), default="0")
    name = f"{int(newest.split('-')[0]) + 1:05d}-{uuid.uuid4().hex[:8]}"
    uri = storage.join(folder, f"{name}.json")
    storage.write_json(uri, {"host": os.uname().nodename, "process": os.getpid()})
    os.environ[VARIABLE] = uri
    log.info("attempt %s at %s", name, stage)
    return name


def folder_of(root: str, run: str, stage: str) -> str:
    """The prefix of the claims at a stage of a run; for the arguments see ``claim``."""
    return storage.join(root, "runs", run, "attempts", stage)


def claimed() -> str:
    """URI of the claim that this process works for; empty where there is none."""
    return os.environ.get(VARIABLE, "")


def end(attempt: str, why: str) -> None:
    """End an attempt of another run, which may still be alive: it and its workers write no more.

    Later attempts of that run are not affected.

    Args:
        attempt: URI of its claim.
        why: who does that, for the message of that attempt.
    """
    storage.write_json(f"{attempt.removesuffix('.json')}{_ENDED}.json", {"by": why})


def is_over(root: str, run: str, stage: str, process: int) -> bool:
    """Whether a process of this machine has claimed an attempt that commits nothing any more.

    Args:
        root: for this and the next two arguments see ``claim``.
        run: name of the run.
        stage: name of the stage.
        process: its number.
    """
    claims = storage.list_files(folder_of(root, run, stage), ".json")
    own = {"host": os.uname().nodename, "process": process}
    claimed_by_it = [uri for uri in claims if not uri.endswith(f"{_ENDED}.json") and storage.read_json(uri) == own]
    return bool(claimed_by_it) and max(map(_name, claims)) > max(map(_name, claimed_by_it))


def attempt() -> str:
    """The name of the attempt that this process works for; empty where none was claimed."""
    return _name(claimed())


def check() -> None:
    """Check that this process's attempt is the newest; call it before a write that makes output valid.

    Raises:
        FencedError: a newer attempt has begun.
        TakenOverError: another run has taken over the work, because this process seemed dead.
    """
    if not (own := claimed()):
        return
    folder = own.rpartition("/")[0]
    newest = max((_name(uri) for uri in storage.list_files(folder, ".json")), default="")
    if newest == f"{_name(own)}{_ENDED}":
        by = storage.read_json(storage.join(folder, f"{newest}.json"))["by"]
        raise TakenOverError(
            f"attempt {_name(own)} writes no more: {by} took its work over, because its lease was not renewed "
            f"({folder}). Run again: what is complete is used"
        )
    if newest > _name(own):
        raise FencedError(
            f"attempt {_name(own)} writes no more: attempt {newest} has begun in its place ({folder}). Where the "
            "first one's node or head was thought lost, nothing is to be done"
        )


def publish(uri: str, value: Any) -> None:
    """Write JSON that makes output valid, unless a newer attempt has begun; see ``publish_bytes``.

    Args:
        uri: URI of the file.
        value: a JSON value.
    """
    publish_bytes(uri, storage.json_bytes(value))


@contextmanager
def output(uri: str) -> Iterator[IO[bytes]]:
    """Open a file for writing whose bytes may be others in another attempt; for the errors see ``publish_bytes``.

    The file appears only if the block ends without an error.
    """
    if not claimed() or not is_conditional(claimed()):
        check()
        with storage.open_output(uri) as stream:
            yield stream
        return
    with storage.spooled(uri) as spool:
        yield spool
        publish_bytes(uri, spool)


def publish_bytes(uri: str, data: bytes | IO[bytes]) -> None:
    """Write a whole file, unless a newer attempt has begun; see above.

    Args:
        uri: URI of the file.
        data: its content, or a stream of it that can be read again from its start. An object store takes 5 GiB at most.

    Raises:
        FencedError: a newer attempt has begun.
        StorageError: the file cannot be written.
    """
    own = claimed()
    if not own or not is_conditional(own):
        check()
        storage.write_bytes(uri, data if isinstance(data, bytes) else data.read())
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
def is_conditional(uri: str) -> bool:
    """Return whether the store of a file heeds conditions, as the file is written again as it is; if not, log why.

    Args:
        uri: URI of a file that is there, mostly a claim.
    """
    if why := why_unconditional(uri):
        log.warning(
            "the object store has no conditional writes (%s): an older attempt that is held up for long between its "
            "look at the newer claims and its write could replace a manifest, and runs that make the same output at "
            "once all work",
            why,
        )
    return not why


def why_unconditional(uri: str) -> str:
    """Return which condition the store of a file does not heed; empty if it heeds all.

    Asked to make the file anew it must refuse, asked to replace another version too, and the present one it must let
    replace. A bucket that keeps versions may heed none of it, where the same store's other buckets do.

    Args:
        uri: URI of a file that is there; it stays as it is.
    """
    if uri.startswith("file://"):
        return ""
    stored = storage.read_version(uri)
    if stored is None:
        return ""
    data, seen = stored
    for expected, name in ((None, "If-None-Match"), (f'"{_NO_VERSION}"', "If-Match")):
        try:
            storage.write_if(uri, data, expected)
        except ChangedError:
            continue
        except UnconditionalError as error:
            return str(error)
        return f"it ignores {name}"
    try:
        storage.write_if(uri, data, seen)
    except ChangedError:
        return ""  # somebody else writes it
    except UnconditionalError as error:
        return str(error)
    return ""


def _name(uri: str) -> str:
    return uri.rpartition("/")[2].removesuffix(".json")
