"""Run a function in several processes that form a gloo group, and return each process's result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from free_ports import free_port


def _enter(
    rank: int, workers: int, port: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    torch.save(function(rank, workers, *arguments), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def run(workers: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``function(rank, workers, *arguments)`` in each process; it must be importable and return tensors."""
    arguments = (workers, free_port(), str(folder), function, arguments)
    mp.start_processes(_enter, arguments, nprocs=workers, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(workers)]
