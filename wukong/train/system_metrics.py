"""What a training worker uses of its machine, for MLflow's page of system metrics. The names do not change."""

import os
from functools import lru_cache

import psutil
import torch

_GIB = 2**30


def read(device: torch.device) -> dict[str, float]:
    """Measure this process and its machine.

    Args:
        device: on which this process trains.

    Returns:
        ``cpu_percent`` and ``machine_cpu_percent`` since the last call, 0 at the first: of this process, where 100 is
        one core, and of the whole machine, where 100 is all cores. ``memory_gib`` of this process, without its loader
        processes, and ``machine_memory_percent``. On a GPU ``gpu_memory_gib`` and ``gpu_memory_percent`` of all that
        use it, and ``gpu_percent``, the share of the last second in which it computed, if nvidia-ml-py is installed.
    """
    process = _process(os.getpid())
    found = {
        "cpu_percent": process.cpu_percent(),
        "memory_gib": process.memory_info().rss / _GIB,
        "machine_cpu_percent": psutil.cpu_percent(),
        "machine_memory_percent": psutil.virtual_memory().percent,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {"gpu_memory_gib": (total - free) / _GIB, "gpu_memory_percent": 100 * (total - free) / total}
        try:
            found["gpu_percent"] = float(torch.cuda.utilization(device))
        except ModuleNotFoundError:
            return found
    return found


@lru_cache(maxsize=1)
def _process(number: int) -> psutil.Process:
    """Return the process, the same object each time: it remembers when it was last asked."""
    return psutil.Process(number)
