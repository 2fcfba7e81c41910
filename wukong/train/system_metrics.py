"""What a training worker uses of its machine, for MLflow's page of system metrics. The names do not change."""

import logging
import os
from functools import lru_cache

import psutil
import torch

_GIB = 2**30

log = logging.getLogger(__name__)


def read(device: torch.device) -> dict[str, float]:
    """Measure this process and its machine.

    What cannot be measured is left out, and the log says so once: no training ends because a driver does not answer.

    Args:
        device: device on which this process trains.

    Returns:
        ``cpu_percent`` and ``machine_cpu_percent`` since the last call, 0 at the first: of this process, where 100 is
        one core, and of the whole machine, where 100 is all cores. ``memory_gib`` of this process, without its loader
        processes, and ``machine_memory_percent``. On a GPU ``gpu_memory_gib`` and ``gpu_memory_percent`` of all that
        use it, and ``gpu_percent``, the share of the last second in which it computed, if nvidia-ml-py is installed.
    """
    metrics: dict[str, float] = {}
    on_gpu = (_gpu_memory, _gpu_percent) if device.type == "cuda" else ()
    for measure in (_of_process, _of_machine, *on_gpu):
        try:
            metrics |= measure(device)
        except Exception as error:  # noqa: BLE001 - psutil, torch, NVML and AMD SMI each raise errors of their own
            _say_once(measure.__name__.strip("_"), f"{type(error).__name__}: {error}")
    return metrics


def _of_process(_device: torch.device) -> dict[str, float]:
    process = _process(os.getpid())
    return {"cpu_percent": process.cpu_percent(), "memory_gib": process.memory_info().rss / _GIB}


def _of_machine(_device: torch.device) -> dict[str, float]:
    return {
        "machine_cpu_percent": psutil.cpu_percent(),
        "machine_memory_percent": psutil.virtual_memory().percent,
    }


def _gpu_memory(device: torch.device) -> dict[str, float]:
    free, total = torch.cuda.mem_get_info(device)
    return {"gpu_memory_gib": (total - free) / _GIB, "gpu_memory_percent": 100 * (total - free) / total}


def _gpu_percent(device: torch.device) -> dict[str, float]:
    return {"gpu_percent": float(torch.cuda.utilization(device))}


_said: set[str] = set()


def _say_once(what: str, why: str) -> None:
    if what not in _said:
        _said.add(what)
        log.warning("system metrics: %s cannot be measured here and is left out: %s", what.replace("_", " "), why)


@lru_cache(maxsize=1)
def _process(number: int) -> psutil.Process:
    """Return the process, the same object each time: it remembers when it was last asked."""
    return psutil.Process(number)
