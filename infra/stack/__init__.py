"""The embedded stack: an S3 server, MLflow, Ray and the demo corpus's search site, on this machine's loopback.

``up`` starts what is missing and reuses what runs; ``down`` stops everything, whatever was killed in between;
``status`` says what runs. All is kept below a home folder: data, logs, and ``stack.json`` with ports and credentials.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from infra.stack import processes, services
from infra.stack.ports import choose_ports
from infra.stack.sample import sample_site
from infra.stack.services import SERVICES, Service
from infra.stack.state import Stack, folder_id, load, locked
from wukong import environment
from wukong.errors import StackError

__all__ = ["Stack", "down", "found", "home", "load", "sample_site", "serves_another", "status", "up"]

log = logging.getLogger(__name__)


def home() -> Path:
    """The home folder for a stack to start: ``$WUKONG_HOME``, or ``.wukong`` here or in a folder above; absolute."""
    return environment.home()


def found() -> Path:
    """The home folder of a stack there is: like ``home``, or else where one was started last."""
    return environment.find_home() or environment.home()


def up(home: Path, catalogue: Path | None = None, ports: Mapping[str, int] | None = None) -> Stack:
    """Start the services that do not run, wait until all answer, and create the buckets.

    Data and credentials of an earlier stack in the same home are kept, and its ports too where they are still free.

    Args:
        home: where the stack keeps everything.
        catalogue: a catalogue of the demo corpus; with one, its search site is started too.
        ports: ports asked for, by name (``s3``, ``mlflow``, ``ray``, ``site``); free ones are found for the rest.

    Raises:
        StackError: a service cannot start or does not answer, a port asked for is in use, there is no disk space, or
            another process works on the same home. What this call had started is stopped again.
    """
    home = home.absolute()
    with locked(home, create=True):
        services.check_disk(home)
        before = Stack.load_or_new(home)
        wanted = [service for service in SERVICES if service.needed(catalogue or before.catalogue)]
        running = {service.name for service in wanted if service.runs(before)}
        if catalogue is not None and before.catalogue != catalogue.absolute():
            running.discard("site")
        for service in SERVICES:
            if service.name not in running:
                _stop(before, service)  # what is left of it: half of it may live on, or hang
        chosen = choose_ports(before, running, ports or {})
        if chosen != before.ports and running:
            # Ray and MLflow carry the addresses of the others in their environment.
            log.info("ports have changed, so that every service is started anew")
            _stop(before)
            running = set()
        stack = before.with_changes(ports=chosen, catalogue=catalogue or before.catalogue)
        stack.save()
        missing = [service for service in wanted if service.name not in running]
        try:
            services.start(stack, missing)
        except BaseException:  # also Ctrl-C: nothing half-started is left behind
            for service in missing:
                _stop(stack, service)
            raise
        environment.remember(home)
        return stack


def down(home: Path) -> int:
    """Stop every process of the stack and give their number; data, logs, ports and credentials stay.

    Processes are found by the mark in their environment, so that it does not matter who started them or what of the
    stack was killed.

    Raises:
        StackError: another process works on the same home, or a process cannot be stopped.
    """
    home = home.absolute()
    if not home.is_dir():
        return 0
    with locked(home):
        stopped = processes.stop(lambda: processes.find(folder_id(home), services.scratch(home)))
        services.remove_scratch(home)
        return stopped


def status(home: Path) -> list[tuple[str, bool, str]]:
    """Name, whether it runs and answers, and address of each service of the stack in a home."""
    home = home.absolute()
    with suppress(StackError):
        held = load(home)
        return [(service.title, service.runs(held), service.address(held)) for service in SERVICES]
    return [(service.title, False, "") for service in SERVICES]


def serves_another(home: Path, catalogue: Path) -> bool:
    """Whether the stack's search site runs and serves another catalogue than this one, maybe to another run."""
    with suppress(StackError):
        held = load(home.absolute())
        site = next(service for service in SERVICES if service.name == "site")
        return held.catalogue is not None and held.catalogue != catalogue.absolute() and site.runs(held)
    return False


def _stop(stack: Stack, service: Service | None = None) -> None:
    name = service.name if service else None
    processes.stop(lambda: processes.find(stack.identity, services.scratch(stack.home), name))
    if service is None or service.name == "ray":
        services.remove_scratch(stack.home)
