"""Vectors in files: what is read is what was written, and memory does not grow with it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from wukong.errors import DataError
from wukong.serve.vectors import Vectors


def resident() -> int:
    """KiB of pages of files that this process has."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1])


def test_rows_and_slices_are_those_of_the_file(tmp_path: Path) -> None:
    halves = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float16)
    (tmp_path / "v").write_bytes(halves.tobytes())
    stored = Vectors(tmp_path / "v", 100, 8)
    rows = torch.tensor([99, 0, 7, 7])
    assert np.array_equal(stored[rows].numpy(), halves[rows.numpy()].astype(np.float32))
    assert np.array_equal(stored[90:200].numpy(), halves[90:].astype(np.float32))
    assert np.array_equal(stored.read().numpy(), halves.astype(np.float32))
    assert np.array_equal(stored.halves(np.array([3, 1])), halves[[3, 1]])
    with pytest.raises(DataError, match="has 1600 bytes and not 1616: delete the index"):
        Vectors(tmp_path / "v", 101, 8)
    (tmp_path / "none").touch()
    assert Vectors(tmp_path / "none", 0, 8).read().shape == (0, 8)


def test_a_file_that_is_cut_short_later_is_named(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(bytes(1_600))
    stored = Vectors(tmp_path / "v", 100, 8)
    os.truncate(tmp_path / "v", 800)
    for rows in (slice(40, 60), torch.tensor([3, 99])):
        with pytest.raises(DataError, match="v is cut short: delete the index"):
            stored[rows]


def test_what_was_read_is_no_memory_of_the_process(tmp_path: Path) -> None:
    """16,384 vectors of 4 KiB are 64 MiB: of a mapping all of them would be pages of the process."""
    with (tmp_path / "v").open("wb") as stream:
        stream.truncate(16_384 * 4_096)
    stored, before, most = Vectors(tmp_path / "v", 16_384, 2_048), resident(), 0
    for start in range(0, 16_384, 128):
        stored[torch.arange(start, start + 128)]
        most = max(most, resident() - before)
    assert most < 4_096
