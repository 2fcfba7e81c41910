"""What a deterministic training asks of torch, and what its errors say."""

import os
from collections.abc import Iterator

import pytest
import torch

from wukong.errors import ConfigError
from wukong.train import determinism

# As torch 2.8 says it on a GPU.
CUBLAS = (
    "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
    "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses CuBLAS "
    "and you have CUDA >= 10.2. To enable deterministic behavior in this case, you must set an environment variable "
    "before running your PyTorch application: CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8. For "
    "more information, go to https://docs.nvidia.com/cuda/cublas/index.html#results-reproducibility"
)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(mode=False)


def test_an_operation_without_a_deterministic_version_is_an_error_and_no_warning() -> None:
    determinism.ask(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8", "without it each product on a GPU is such an operation"
    with (
        pytest.raises(ConfigError, match=r"finetune.deterministic is true, .* version of put_ .*: set finetune.determ"),
        determinism.explained("finetune"),
    ):
        torch.zeros(2).put_(torch.tensor([1]), torch.ones(1))
    determinism.ask(deterministic=False)
    with determinism.explained("finetune"):
        torch.zeros(2).put_(torch.tensor([1]), torch.ones(1))


def test_a_variable_that_makes_products_on_gpus_differ_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    determinism.ask(deterministic=True)
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG is ':0:0'.*unset it"), determinism.explained("x"):
        raise RuntimeError(CUBLAS)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^out of memory$"), determinism.explained("pretrain"):
        raise RuntimeError("out of memory")
