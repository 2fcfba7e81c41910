"""Where pairs wait for their shards while a filter repacks them: on this machine, or among its work files."""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_jobs import connection
from wukong.errors import DataError
from wukong.runtime import environment
from wukong.store import storage
from wukong.store.manifest import Stage, digest_of

_LOCK = ".lock"
"""After a folder's name: the file beside it that the folder's process has locked, with the address of its stage."""

log = logging.getLogger(__name__)


@contextmanager
def waiting_place(stage: Stage, room: int) -> Iterator[str]:
    """Give the prefix of the files in which a stage's pairs wait.

    On one machine with an embedded stack, that is a folder in the stack's home, if its disk has the room: pictures that
    wait there pass the object store once and not twice. The folder is deleted after the block. A killed process leaves
    it to the next one of its stage; a filter of another stage deletes it, and so does a takedown. Elsewhere the files
    are work files of the stage, and so are they while another process of the stage has the folder: no lock is waited
    for.

    Args:
        stage: whose pairs they are.
        room: bytes that the disk must have free.
    """
    home, among_work_files = environment.home(), stage.path("_work/buckets")
    if stage.uri.startswith("file://") or not connection.is_this_machine() or not home.is_dir():
        yield among_work_files
        return
    waiting = home / "waiting"
    waiting.mkdir(exist_ok=True)
    folder = waiting / digest_of(stage.uri)[:16]
    for other in _folders(waiting) - {folder}:
        _delete_left(other)
    if shutil.disk_usage(home).free < room:
        log.info("pairs wait in the object store: %s has no room for %s bytes", home, f"{room:,}")
        yield among_work_files
        return
    with _locked(folder) as is_ours:
        if not is_ours:
            log.info("pairs wait in the object store: another process has %s", folder)
            yield among_work_files
            return
        folder.with_suffix(_LOCK).write_text(stage.uri, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        try:
            yield storage.from_path(folder)
        finally:
            _delete(folder)


def delete_left(place: str) -> None:
    """Delete what killed filters of an experiment have left in the home of this machine's stack.

    Args:
        place: URI of the experiment.

    Raises:
        DataError: a filter of it that is alive has pairs there.
    """
    home = environment.find_home()
    for folder in _folders(home / "waiting") if home else ():
        lock = folder.with_suffix(_LOCK)
        made = lock.read_text(encoding="utf-8") if lock.exists() else ""
        if (not made or made.startswith(f"{place}/")) and not _delete_left(folder) and made:
            raise DataError(
                f"a filter that is stopped or at work has pairs of {made} in {folder}: end its process, then run the "
                "takedown again"
            )


def _folders(waiting: Path) -> set[Path]:
    """Return the folders that are there, or were before they were deleted by a process that was killed meanwhile."""
    there = waiting.iterdir() if waiting.is_dir() else ()
    return {each.with_suffix("") for each in there if each.is_dir() or each.suffix == _LOCK}


def _delete_left(folder: Path) -> bool:
    """Delete the folder of a process that was killed; return False where the process is alive."""
    with _locked(folder) as is_ours:
        if is_ours:
            if folder.is_dir():
                log.info("deleting %s, which a killed filter has left", folder)
            _delete(folder)
    return is_ours


def _delete(folder: Path) -> None:
    """Delete a folder whose lock this process has, and then the lock."""
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.with_suffix(_LOCK).unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a folder while the block lasts, and tell the block whether it is locked; nobody is waited for."""
    lock = folder.with_suffix(_LOCK)
    while True:
        with lock.open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            # Who had it may have deleted it since this process opened it.
            if lock.exists() and lock.stat().st_ino == os.fstat(stream.fileno()).st_ino:
                yield True
                return
