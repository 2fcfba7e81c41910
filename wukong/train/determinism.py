"""Deterministic training: what torch is asked for, and an error that names the operation that has no such version."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wukong.errors import ConfigError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_NO_VERSION = re.compile(r"(\S+) does not have a deterministic implementation")


def ask(*, deterministic: bool) -> None:
    """Let this process's operations on tensors give equal bits for equal inputs, or an error; or let them be fast.

    With torch's ``warn_only`` an operation without a deterministic version would only warn, and attention on GPUs would
    take another version than its deterministic one. Call it before the first product on a GPU: cuBLAS reads its
    variable then.

    Args:
        deterministic: the setting of that name in ``Training``.
    """
    if deterministic:
        os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(mode=deterministic)


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply numbers of 32 bits exactly meanwhile, also where a training rounds them to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn torch's error about an operation without a deterministic version into one that says how to mend it.

    Args:
        name: name of the training's section of the experiment.

    Raises:
        ConfigError: an operation has no deterministic version, or cuBLAS is told to work without one.
    """
    try:
        yield
    except RuntimeError as error:
        if named := _NO_VERSION.search(str(error)):
            raise ConfigError(
                f"{name}.deterministic is true, and torch has no deterministic version of {named[1]} for this model on "
                f"this device: set {name}.deterministic to false, with which the weights of two equal trainings differ "
                "by rounding, or take a model that does without it"
            ) from error
        if _WORKSPACE in str(error):
            raise ConfigError(
                f"{name}.deterministic is true, and the environment variable {_WORKSPACE} is "
                f"{os.environ.get(_WORKSPACE)!r}, with which cuBLAS is not deterministic: unset it or set it to "
                f"':4096:8', or set {name}.deterministic to false"
            ) from error
        raise
