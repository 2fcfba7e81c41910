"""Checkpoints of torch: their tensors are read, and nothing that they ask for is run."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from wukong.errors import DataError, StorageError
from wukong.model import weights


class Runs:
    """Asks whoever unpickles it to make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_asks_for_code_is_refused_and_the_code_does_not_run(zipped: bool, tmp_path: Path) -> None:
    file, trap = tmp_path / "x.ckpt", tmp_path / "made"
    state = {"state_dict": {"a": torch.ones(2)}, "meta": Runs(trap)}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"x\.ckpt .*asks for more than tensors and plain values"):
        weights.read_checkpoint(file.as_uri())
    assert not trap.exists()
    torch.load(file, weights_only=False)
    assert trap.exists(), "the trap would not have sprung"


def test_a_plain_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(Runs(tmp_path / "made")))
    with pytest.raises(DataError, match=r"x\.ckpt"):
        weights.read_checkpoint((tmp_path / "x.ckpt").as_uri())
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("below", [True, False])
def test_the_tensors_of_a_checkpoint_are_read(below: bool, tmp_path: Path) -> None:
    state = {"a": torch.arange(6).view(2, 3), "b": torch.tensor(0.5, dtype=torch.float16)}
    torch.save({"state_dict": state, "meta": {"epoch": 1, "words": ["x"]}} if below else state, tmp_path / "x")
    found = weights.read_checkpoint((tmp_path / "x").as_uri())
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"a": 1.0}},
        {"state_dict": {}},
        [torch.ones(1)],
        {"epoch": 3, "model": {"a": torch.ones(1)}},
    ],
)
def test_a_file_without_a_dict_of_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x")
    with pytest.raises(DataError, match="holds no dict of tensors"):
        weights.read_checkpoint((tmp_path / "x").as_uri())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False])
def test_changed_bytes_raise_no_error_but_ours(zipped: bool, tmp_path: Path) -> None:
    state = {"a": torch.ones(3), "b": torch.zeros(2, 2).half()}
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    whole, numbers = (tmp_path / "x").read_bytes(), np.random.default_rng(0)
    refused = 0
    for place in numbers.integers(0, min(len(whole), 700), 150):
        (tmp_path / "x").write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            weights.read_checkpoint((tmp_path / "x").as_uri())
        except DataError:
            refused += 1
    assert refused > 20


def test_a_damaged_file_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(3)}}, tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "x").write_bytes(whole[:length])
        with pytest.raises(DataError, match="damaged"):
            weights.read_checkpoint((tmp_path / "x").as_uri())
    with pytest.raises(StorageError):
        weights.read_checkpoint((tmp_path / "y").as_uri())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.complex64]
)
def test_one_number_that_is_not_finite_is_found(dtype: torch.dtype, bad: float) -> None:
    good = {"weight": torch.ones(3, 5).to(dtype), "empty": torch.ones(0).to(dtype)}
    assert weights.misfits(good, good) == ""
    altered = torch.ones(3, 5)
    altered[1, 2] = bad
    assert weights.misfits(good, good | {"weight": altered.to(dtype)}) == "not all numbers are finite in weight"
