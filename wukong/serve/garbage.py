"""Garbage collection of programs that make many objects at their start and keep them."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """Keep what is made in the block: nothing is collected meanwhile, and later collections pass over it.

    Imports of torch and an index of 100,000 pictures are millions of objects, through which the collector looks many
    times while they are made: a third of a server's start.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries that count their objects at the end would report leaks
        if was_enabled:
            gc.enable()


def collect_kept() -> None:
    """Free what was kept and is not used any more, such as an index in whose place another one is."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
