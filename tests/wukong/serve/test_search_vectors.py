"""Vectors that are mapped: what is read is what was written, and pages are given back."""

from pathlib import Path

import numpy as np
import pytest
import torch

from wukong.errors import DataError
from wukong.serve import vectors
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


def test_pages_of_what_was_read_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16,384 vectors of 4 KiB are 64 MiB: without a limit all of them would be pages of the process."""
    with (tmp_path / "v").open("wb") as stream:
        stream.truncate(16_384 * 4_096)
    monkeypatch.setattr(vectors, "_RESIDENT", 1_024)
    stored, before, most = Vectors(tmp_path / "v", 16_384, 2_048), resident(), 0
    for start in range(0, 16_384, 128):
        stored[torch.arange(start, start + 128)]
        most = max(most, resident() - before)
    assert most < 16_384
