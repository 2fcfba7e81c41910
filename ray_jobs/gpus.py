"""GPUs for tasks and workers that run a model: each asks for one where Ray has any, and none falls back to cores."""

import logging
import socket
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from wukong.errors import ConfigError

MAX_FAILURES = 5
"""Times in a row that a task or a training may fail, or look in vain for a GPU, before it fails for good."""

_LOOK_SECONDS = 60.0
"""Between two looks at whether a GPU has come."""

log = logging.getLogger(__name__)


def count() -> int:
    """Return the number of GPUs that Ray has now."""
    return int(ray.cluster_resources().get("GPU", 0))


def most_of_a_machine() -> int:
    """Return the number of GPUs of the machine that has most of them."""
    return max((int(each["Resources"].get("GPU", 0)) for each in ray.nodes() if each["Alive"]), default=0)


def of_task(device: str = "cuda") -> str:
    """Return the device of a task or a worker that asked for a GPU, which has then computed something.

    Args:
        device: its name for torch.

    Raises:
        ConfigError: torch cannot use it.
    """
    import torch  # the images that crawl and filter have none

    try:
        torch.ones(1, device=device).add_(1).item()
    except (
        AssertionError,
        RuntimeError,
    ) as error:  # of a build without CUDA; of a driver, or of kernels for other GPUs
        raise ConfigError(
            f"Ray gave a task a GPU of {socket.gethostname()}, and torch {torch.__version__} finds none there that it "
            f"can use ({str(error).partition(chr(10))[0]}): install a driver and a build of torch that fit the GPU, or "
            "start Ray there with num_gpus=0, to work on cores"
        ) from error
    return device


def check() -> None:
    """Try a GPU of each machine that has any, before work that would say less clearly that it cannot be used.

    Raises:
        ConfigError: torch cannot use it.
    """
    machines = [machine["NodeID"] for machine in ray.nodes() if machine["Alive"] and machine["Resources"].get("GPU")]
    if not machines:
        return  # they are waited for
    tried = [
        _tried.options(scheduling_strategy=NodeAffinitySchedulingStrategy(machine, soft=False)).remote()
        for machine in machines
    ]
    done, late = ray.wait(tried, num_returns=len(tried), timeout=_LOOK_SECONDS)
    for each in late:  # its GPU is not free yet, or its machine is lost: the work itself waits
        ray.cancel(each, force=True)
    for each in done:
        try:
            ray.get(each)
        except ray.exceptions.RayError as error:
            if isinstance(error, ConfigError):
                raise
            log.warning("a GPU could not be tried: %s", error)  # the machine was lost meanwhile


@ray.remote(num_cpus=0, num_gpus=1)
def _tried() -> str:
    return of_task()


def first_done(waiting: Sequence[Any], *, on_gpus: bool) -> Any:
    """Wait for one of some tasks. Ray waits for GPUs for ever; this does for some minutes.

    Args:
        waiting: the tasks.
        on_gpus: whether each task needs a GPU.

    Raises:
        ConfigError: the cluster had no GPU for longer.
    """
    missing = 0
    while True:
        done, _ = ray.wait(waiting, num_returns=1, timeout=_LOOK_SECONDS)
        if done:
            return done[0]
        there = ray.cluster_resources()
        if not on_gpus or there.get("GPU", 0) >= 1:
            missing = 0
            continue
        missing += 1
        none = ConfigError(
            f"a task asks for a GPU, and none came for {missing * _LOOK_SECONDS:.0f} seconds: the "
            f"cluster has {there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs. Add machines with GPUs, or "
            "set gpus_per_worker: 0"
        )
        if missing > MAX_FAILURES:
            raise none
        log.warning("%s", none)
