"""Where pairs wait for their shards while a filter repacks them: on this machine, or among its work files."""

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_jobs import connection
from wukong.runtime import environment
from wukong.store import storage
from wukong.store.manifest import Stage

_LOCK = "lock"

log = logging.getLogger(__name__)


@contextmanager
def waiting_place(stage: Stage, room: int) -> Iterator[str]:
    """Give the prefix of the files in which a stage's pairs wait.

    On one machine with an embedded stack, that is a folder in the stack's home, if its disk has the room: pictures that
    wait there pass the object store once and not twice. The folder is deleted after the block. A killed process leaves
    it to the next one of its stage, or a filter of another stage deletes it. Elsewhere the files are work files of the
    stage.

    Args:
        stage: whose pairs they are.
        room: bytes that the disk must have free.
    """
    home, among_work_files = environment.home(), stage.path("_work/buckets")
    if stage.uri.startswith("file://") or not connection.is_this_machine() or not home.is_dir():
        yield among_work_files
        return
    waiting = home / "waiting"
    folder = waiting / stage.key
    waiting.mkdir(exist_ok=True)
    with _locked(waiting):
        _delete_left(waiting, folder)
        enough = shutil.disk_usage(home).free >= room
        if enough:
            folder.mkdir(exist_ok=True)
            held = (folder / _LOCK).open("w")
            fcntl.flock(held, fcntl.LOCK_EX)
    if not enough:
        log.info("pairs wait in the object store: %s has no room for %s bytes", home, f"{room:,}")
        yield among_work_files
        return
    try:
        yield storage.from_path(folder)
    finally:
        with _locked(waiting), held:
            shutil.rmtree(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _delete_left(waiting: Path, but: Path) -> None:
    """Delete the folders of processes that were killed."""
    for folder in waiting.iterdir():
        if folder.is_dir() and folder != but and not _is_held(folder):
            log.info("deleting %s, which a killed filter has left", folder)
            shutil.rmtree(folder)


def _is_held(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
