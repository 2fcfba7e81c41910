"""While a takedown changes the outputs of an experiment, nobody makes or deletes one.

A takedown marks the experiment: ``takedowns/begun.json`` stands from before its plan until after its last write, also
while nobody goes on with a takedown that was killed. It holds the lease ``takedowns/_lease.json`` while it lives. Who
makes an output takes the output's lease and then looks for the mark; the takedown writes the mark and then looks for
leases. So of the two at least one sees the other.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Event

from wukong.errors import DataError
from wukong.store import lease, storage

FOLDER = "takedowns"
"""Where the mark, the plan and the records are stored, below the place of the takedown."""

PENDING = f"{FOLDER}/pending.json"
"""The plan of a takedown that has begun to change files."""

BEGUN = f"{FOLDER}/begun.json"
"""The mark."""

_PAUSE = 1.0

log = logging.getLogger(__name__)


@contextmanager
def begun(place: str) -> Iterator[None]:
    """Mark a place while the block lasts, after waiting for another takedown of it.

    The mark stays where the block ends and leaves a plan that is not carried out.

    Args:
        place: URI of an experiment, or of one output.
    """
    over, mark, folder = Event(), storage.join(place, BEGUN), storage.join(place, FOLDER)
    with lease.held(folder, over.is_set):
        storage.write_json(mark, {"when": datetime.now(UTC).isoformat(timespec="seconds")})
        try:
            yield
        finally:
            if not storage.exists(storage.join(place, PENDING)):
                over.set()  # from now on the lease is not renewed
                storage.delete(mark)
                storage.delete(storage.join(folder, lease.NAME))


def is_begun(place: str) -> bool:
    """Whether a takedown at a place was begun and has not ended."""
    return storage.exists(storage.join(place, BEGUN))


def wait_for_end(place: str) -> None:
    """Wait while a takedown at a place goes on. Only files are read, so that any key of a stage may.

    Raises:
        DataError: nobody goes on with a takedown that was begun.
    """
    folder, seen, quiet = storage.join(place, FOLDER), "", 0.0
    while is_begun(place):
        version = storage.version(storage.join(folder, lease.NAME)) or ""
        if quiet >= lease.SECONDS or lease.is_over(folder):
            if not is_begun(place):  # it has ended since the last look
                return
            raise DataError(
                f"a takedown at {place} was begun and has not ended: run `wukong takedown` again, which finishes it, "
                "and then run again"
            )
        if not seen:
            log.info("waiting for the takedown at %s", place)
        quiet = quiet + _PAUSE if version == seen else 0.0
        seen = version
        time.sleep(_PAUSE)
