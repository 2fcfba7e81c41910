"""GPUs for tasks that run a model: each asks for one where Ray has any, and none falls back to cores."""

import logging
import socket
from collections.abc import Sequence
from typing import Any

import ray

from wukong.errors import ConfigError

_LOOK_SECONDS = 60.0
"""Between two looks at whether a GPU has come."""

log = logging.getLogger(__name__)


def count() -> int:
    """Return the number of GPUs that Ray has now."""
    return int(ray.cluster_resources().get("GPU", 0))


def of_task() -> str:
    """Return the device of a task that asked for a GPU.

    Raises:
        ConfigError: torch cannot use it.
    """
    import torch  # the images that crawl and filter have none

    if not torch.cuda.is_available():
        raise ConfigError(
            f"Ray gave a task a GPU of {socket.gethostname()}, and torch {torch.__version__} finds none there that it "
            "can use: install a driver and a build of torch that fit the GPU, or start Ray there with num_gpus=0, to "
            "work on cores"
        )
    return "cuda"


def first_done(waiting: Sequence[Any], most: int, *, on_gpus: bool) -> Any:
    """Wait for one of some tasks. Ray waits for GPUs for ever; this does for some minutes.

    Args:
        waiting: the tasks.
        most: minutes without a GPU, beside the first one.
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
        if missing > most:
            raise none
        log.warning("%s", none)
