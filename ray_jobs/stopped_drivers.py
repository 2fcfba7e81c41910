"""Drivers on this machine that a person has stopped (Ctrl-Z), and that keep cores of the Ray that others need.

Ray gives a driver's cores back when its process has ended, not when it is stopped. A stopped driver that another run
has taken over, or a later attempt of its own, commits nothing any more (``wukong.store.fence``): it is killed. Any
other may go on, and is named in the log, because a job that gets no cores says nothing else.
"""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psutil

from wukong.config import stored
from wukong.errors import WukongError
from wukong.store import fence

_LOOK_SECONDS = 15.0

log = logging.getLogger(__name__)


class _Driver(NamedTuple):
    process: psutil.Process
    experiment: str
    run: str
    stage: str


@contextmanager
def watched() -> Iterator[None]:
    """Look for them every 15 seconds while the job in the block lasts, if its Ray is others' too (``RAY_ADDRESS``)."""
    over = threading.Event()
    if address := os.environ.get("RAY_ADDRESS"):
        threading.Thread(target=_watch, args=(address, over), name="stopped-drivers", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(address: str, over: threading.Event) -> None:
    told: set[psutil.Process] = set()
    while not over.is_set():
        for driver in _found(address):
            try:
                _end_or_tell(driver, told)
            except (WukongError, psutil.Error) as error:
                log.debug("what process %d does is not known: %s", driver.process.pid, error)
        over.wait(_LOOK_SECONDS)


def _end_or_tell(driver: _Driver, told: set[psutil.Process]) -> None:
    process = driver.process
    if fence.is_over(stored.load(driver.experiment).root, driver.run, driver.stage, process.pid):
        process.kill()  # psutil compares its time of birth first
        log.warning(
            "process %d, the %s of run %s, was stopped, and its work was taken over: it is killed, so that Ray gives "
            "its cores back",
            process.pid,
            driver.stage,
            driver.run,
        )
    elif process not in told:
        told.add(process)
        log.warning(
            "process %d, the %s of run %s, is stopped and keeps cores of this Ray. Where no step is made, let it go on "
            "(`fg`, or `kill -CONT %d`), or end it (`kill -KILL %d`): run again, it goes on after what is complete",
            process.pid,
            driver.stage,
            driver.run,
            process.pid,
            process.pid,
        )


def _found(address: str) -> Iterator[_Driver]:
    """The stopped drivers of this user that use the Ray at an address."""
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_STOPPED or (line := process.cmdline())[1:3] != ["-m", "ray_jobs"]:
                continue
            if process.environ().get("RAY_ADDRESS") != address:
                continue
        except psutil.Error:
            continue  # of another user, or it has ended
        options = dict(zip(line[4::2], line[5::2], strict=False))  # as ``ray_jobs.launch`` writes them
        yield _Driver(process, options["--experiment"], options["--run"], options.get("--filed-as", line[3]))
