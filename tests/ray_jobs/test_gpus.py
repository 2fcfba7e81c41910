"""GPUs that torch cannot use: what is said, when, and that nothing goes on on cores."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import ray
import torch

from ray_jobs import gpus, training_worker
from wukong.config.training import Training
from wukong.errors import ConfigError


def raising(error: Exception) -> Callable[..., NoReturn]:
    def ones(*_: object, **__: object) -> NoReturn:
        raise error

    return ones


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError("Torch not compiled with CUDA enabled"), "(Torch not compiled with CUDA enabled): install"),
        (RuntimeError("Found no NVIDIA driver on your system."), "(Found no NVIDIA driver on your system.): install"),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with `X`"),
            "(CUDA error: no kernel image is available for execution on the device): install",
        ),
    ],
)
def test_why_a_gpu_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    monkeypatch.setattr(torch, "ones", raising(error))
    with pytest.raises(ConfigError) as caught:
        gpus.of_task()
    assert said in str(caught.value) and "start Ray there with num_gpus=0" in str(caught.value)


def test_a_worker_with_a_gpu_does_not_train_on_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own device is tried, not the first of the pod, on which every worker would take memory."""
    tried: list[str] = []
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cuda:1"))
    monkeypatch.setattr(gpus, "of_task", tried.append)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: tried.append(f"set {device}"))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(training_worker.determinism, "ask", lambda **_: None)
    assert training_worker._own_device(Training(gpus_per_worker=1)) == torch.device("cuda:1")
    assert tried == ["cuda:1", "set cuda:1"]


ON_RAY = """
import sys
import ray
from test_gpus import job

from ray_jobs import worker_group

ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
worker_group._Trainer = None  # nothing is started
try:
    worker_group.run(job(sys.argv[1]), sys.argv[1] + "/_ray")
except Exception as error:
    print(type(error).__mro__, str(error).replace(chr(10), " "))
"""


def job(uri: str) -> training_worker.Job:
    """A training with two workers, each with a GPU, that never begins."""
    from wukong.config.model import Model
    from wukong.train.corpus import Corpus

    corpus = Corpus("file:///filter", ("00000",), (96,), "digest")
    settings = Training(workers=2, gpus_per_worker=1)
    return training_worker.Job("pretrain", Model(), settings, 1, corpus, None, None, f"{uri}/_checkpoints", None)


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which the workers would use")
def test_a_training_on_gpus_that_are_none_ends_before_it_begins(tmp_path: Path) -> None:
    here = Path(__file__)
    path = os.pathsep.join([str(here.parents[2]), str(here.parent)])
    ran = subprocess.run(
        [sys.executable, "-c", ON_RAY, tmp_path.as_uri()],
        capture_output=True, text=True, check=False, cwd=here.parents[2], env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "ConfigError" in ran.stdout and "Ray gave a task a GPU of" in ran.stdout
