"""The embedded stack: an S3 server, MLflow, Ray and the demo corpus's search site, on this machine's loopback.

``up`` starts the services that do not run; ``down`` stops all services, also after a crash; ``status`` lists them. A
home folder contains the data, the logs, and ``stack.json`` with ports and credentials.
"""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from infra.stack import processes, services, state
from infra.stack.ports import choose_ports
from infra.stack.sample import sample_site
from infra.stack.services import LOOKED_AT, SERVICES, STORES
from infra.stack.state import Stack, folder_id, load, locked
from wukong.errors import StackError
from wukong.runtime import environment

__all__ = ["LOOKED_AT", "STORES", "Stack", "down", "found", "load", "sample_site", "serves_another", "status", "up"]

log = logging.getLogger(__name__)


def found() -> Path:
    """Return the home folder of an existing stack, or else the one in which a stack would be started."""
    return environment.find_home() or environment.home()


def up(
    home: Path,
    catalogue: Path | None = None,
    ports: Mapping[str, int] | None = None,
    only: Collection[str] | None = None,
    remember: bool = True,
) -> Stack:
    """Start the services that do not run, wait until all answer, and create the buckets.

    Data and credentials of an earlier stack in the same home are kept, and its ports too if they are still free.

    Args:
        home: the stack's home folder.
        catalogue: a catalogue of the demo corpus; if given, its search site is started too.
        ports: requested ports by name (``s3``, ``mlflow``, ``ray``, ``site``); the others get free ports.
        only: names of services, for instance ``STORES``; the others are left as they are. None for all.
        remember: let programs find this stack from any folder.

    Raises:
        StackError: a service cannot start or does not answer, a requested port is in use, there is no disk space, or
            another process uses the same home. Services that this call started are stopped again.
    """
    home = home.absolute()
    with locked(home, create=True):
        services.check_disk(home)
        before = Stack.load_or_new(home)
        needed = [service for service in SERVICES if service.needed(catalogue or before.catalogue)]
        running = {service.name for service in needed if service.runs(before)}
        wanted = [service for service in needed if only is None or service.name in only]
        if catalogue is not None and before.catalogue != catalogue.absolute():
            running.discard("site")
        asked = {service.name for service in SERVICES if only is None or service.name in only}
        _stop(before, asked - running)  # some of their processes may still run, or hang
        chosen = choose_ports(before, running, ports or {})
        if chosen != before.ports and running:
            # Ray and MLflow have the addresses of the other services in their environment.
            log.info("ports have changed, so all services are restarted")
            _stop(before, None)
            running = set()
        stack = before.with_changes(ports=chosen, catalogue=catalogue or before.catalogue)
        stack.save()
        missing = [service for service in wanted if service.name not in running]
        try:
            services.start(stack, missing)
        except BaseException:  # also Ctrl-C: do not leave services that are partly started
            _stop(stack, {service.name for service in missing})
            raise
        if remember:
            state.remember(home)
        return stack


def down(home: Path) -> int:
    """Stop all processes of the stack; data, logs, ports and credentials are kept.

    Processes are found by a variable in their environment, so they are found whoever started them and also if other
    parts of the stack were killed.

    Returns:
        The number of processes.

    Raises:
        StackError: another process uses the same home, or a process cannot be stopped.
    """
    home = home.absolute()
    if not home.is_dir():
        return 0
    with locked(home):
        stopped = processes.stop(lambda: processes.find(folder_id(home), services.scratch(home)))
        services.remove_scratch(home)
        return stopped


def status(home: Path) -> list[tuple[str, bool, str]]:
    """Return, for each service of the stack in a home, its title, whether it runs and answers, and its address."""
    home = home.absolute()
    with suppress(StackError):
        held = load(home)
        return [(service.title, service.runs(held), service.address(held)) for service in SERVICES]
    return [(service.title, False, "") for service in SERVICES]


def serves_another(home: Path, catalogue: Path) -> bool:
    """Return whether the stack's search site runs and serves another catalogue than this one."""
    with suppress(StackError):
        stack = load(home.absolute())
        site = next(service for service in SERVICES if service.name == "site")
        return stack.catalogue is not None and stack.catalogue != catalogue.absolute() and site.runs(stack)
    return False


def _stop(stack: Stack, names: Collection[str] | None) -> None:
    """Stop the services of these names; None for all."""
    processes.stop(lambda: processes.find(stack.identity, services.scratch(stack.home), names))
    if names is None or "ray" in names:
        services.remove_scratch(stack.home)
