"""Loader processes whose shared memory is too small or becomes full: an error that says so, and never a wait.

The last tests have a small /dev/shm of their own, in a mount namespace.
"""

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from wukong.config.model import ImageEncoder
from wukong.data import views
from wukong.data.views import Encoded, Views
from wukong.errors import ConfigError, DataError, StorageError

MIB = 2**20
SIDE, MOST = 200, 20
BATCH = MOST * 3 * SIDE * SIDE
"""Bytes of a batch, 2.3 MiB; a process holds two, and the training two."""


class Usage(NamedTuple):
    """What ``shutil.disk_usage`` gives."""

    total: int
    used: int
    free: int


def orders(count: int) -> Iterator[list[Encoded]]:
    for number in range(count):
        yield [(bytes([number]), f"k{n}", 0, f"k{n}.jpg") for n in range(MOST)]


class Plain(Views):
    """Views of one colour, of which no image is decoded."""

    def __init__(self) -> None:
        super().__init__(ImageEncoder(image_size=SIDE), ())

    def __getitem__(self, encoded: Encoded) -> "Tensor | str":
        return torch.full((3, SIDE, SIDE), encoded[0][0], dtype=torch.uint8)


def stacked(shown: Sequence["Tensor | str"]) -> tuple[Tensor, str]:
    return torch.stack([view for view in shown if isinstance(view, Tensor)]), "joined"


@pytest.mark.parametrize(
    ("processes", "neighbours", "total", "free"),
    [(2, "", 64, 4 * BATCH / MIB), (1, "", 64, 3.9 * BATCH / MIB), (2, "3", 17.9 * BATCH / MIB, 40)],
)
def test_too_little_is_noticed_before_processes_are_started(
    monkeypatch: pytest.MonkeyPatch, processes: int, neighbours: str, total: float, free: float
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", neighbours)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(int(total * MIB), 0, int(free * MIB)))
    with pytest.raises(ConfigError) as caught:
        next(views.Loaders(Plain(), stacked, MOST, processes).batches(orders(9)))
    needed = (2 * processes + 2) * BATCH / MIB
    text = str(caught.value)
    assert f"/dev/shm has {total:,.0f} MiB, of which {free:,.0f} MiB are free. {processes} loader processes" in text
    assert f"{needed:,.0f} MiB are needed{' by each of 3 workers' if neighbours else ''}" in text
    assert "--shm-size" in text and "medium: Memory" in text and "loader_workers" in text
    # Without processes nothing is needed.
    assert next(views.Loaders(Plain(), stacked, MOST, 0).batches(orders(1)))[1] == "joined"


def test_a_full_disk_for_temporary_files_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
    with pytest.raises(
        StorageError, match=rf"temporary files of the loader processes in {tempfile.gettempdir()}.*TMPDIR"
    ):
        list(views.Loaders(Plain(), stacked, MOST, 1).batches(orders(1)))


def test_errors_of_orders_stay_as_they_are() -> None:
    def damaged() -> Iterator[list[Encoded]]:
        yield from orders(1)
        raise DataError("the shard is damaged")

    made = views.Loaders(Plain(), stacked, MOST, 0).batches(damaged())
    next(made)
    with pytest.raises(DataError, match=r"^the shard is damaged$"):
        next(made)


def reader(processes: int, fill_after: int) -> None:
    """Read batches, and fill the shared memory after some; print each, and the error. For a process of its own."""
    made = views.Loaders(Plain(), stacked, MOST, processes).batches(orders(12))
    kept = []  # what was freed would make room for others
    try:
        for number, (images, _) in enumerate(made):
            print("batch", int(images[0, 0, 0, 0]), flush=True)
            if 0 <= fill_after <= number:
                kept.append(images)
            if number == fill_after:
                with suppress(OSError), Path("/dev/shm/other").open("wb", buffering=0) as stream:
                    while True:
                        stream.write(bytes(4096))
    except ConfigError as error:
        print("error", error, flush=True)


def in_small_shared_memory(size: str, processes: int, fill_after: int) -> list[str]:
    """What ``reader`` prints where /dev/shm has a size."""
    asked = ["unshare", "--user", "--map-root-user", "--mount", "--"]
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    tried = [*asked, "sh", "-c", mount]
    if not shutil.which("unshare") or subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody have a /dev/shm of his own")
    here = Path(__file__)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[3])])}
    code = f"from {here.stem} import reader\nif __name__ == '__main__':\n    reader({processes}, {fill_after})\n"
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "read.py")
        script.write_text(code)
        command = [*asked, "sh", "-c", f'{mount} && exec "$0" "$1"', sys.executable, str(script)]
        found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return [line for line in found.stdout.splitlines() if line.startswith(("batch", "error"))]


@pytest.mark.long
def test_shared_memory_that_becomes_full_ends_the_run() -> None:
    lines = in_small_shared_memory("32m", 2, fill_after=2)
    assert lines[:3] == ["batch 0", "batch 1", "batch 2"]
    assert lines[-1].startswith("error /dev/shm has 32 MiB, of which ") and "2 loader processes hand over" in lines[-1]
    assert len(lines) <= 3 + 4 + 1, "what was made before comes, and no more"


@pytest.mark.long
def test_what_is_said_to_be_needed_is_enough() -> None:
    """Four batches are 9.2 MiB."""
    assert in_small_shared_memory("10m", 1, fill_after=99) == [f"batch {number}" for number in range(12)]
