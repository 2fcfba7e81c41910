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
    assert 0 < found["memory_gib"] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert 0 < found["machine_memory_percent"] <= 100
