import resource
import time

import pytest
import torch

from wukong.train import system_metrics


def test_a_busy_process_is_measured() -> None:
    cpu = torch.device("cpu")
    system_metrics.read(cpu)
    began, used = time.monotonic(), time.process_time()
    while time.process_time() - used < 0.2:
        sum(range(1000))
    share = (time.process_time() - used) / (time.monotonic() - began)
    found = system_metrics.read(cpu)
    assert set(found) == {"cpu_percent", "memory_gib", "machine_cpu_percent", "machine_memory_percent"}
    assert found["cpu_percent"] == pytest.approx(100 * share, rel=0.5, abs=5)  # the system counts in steps of 10 ms
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    # The kernel counts pages of each thread apart and adds them up late, for each number at a moment of its own.
    assert 0 < found["memory_gib"] <= 1.01 * peak
    assert 0 < found["machine_memory_percent"] <= 100


class NVMLError_GpuIsLost(Exception):  # noqa: N801, N818 - as nvidia-ml-py calls it; it is no RuntimeError
    pass


def test_what_a_driver_does_not_tell_is_left_out_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU that is lost to NVML for a moment, or a MIG slice, for which it tells no utilization."""

    def lost(_device: torch.device) -> int:
        raise NVMLError_GpuIsLost("GPU is lost")

    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(system_metrics, "_said", set())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 4 * 2**30))
    monkeypatch.setattr(torch.cuda, "utilization", lost)
    for _ in range(3):
        found = system_metrics.read(gpu)
        assert (found["gpu_memory_gib"], found["gpu_memory_percent"]) == (3, 75) and "gpu_percent" not in found
        assert found["memory_gib"] > 0
    assert caplog.text.count("gpu percent cannot be measured here and is left out: NVMLError_GpuIsLost: GPU is") == 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lost)
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 40)
    found = system_metrics.read(gpu)
    assert found["gpu_percent"] == 40 and not {"gpu_memory_gib", "gpu_memory_percent"} & set(found)
