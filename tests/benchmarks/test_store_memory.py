"""The benchmark of the object store runs with the manifest's arguments, as ``make bench NAME=store/memory`` does."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_a_round_is_measured_with_the_arguments_of_the_manifest() -> None:
    command = [sys.executable, "benchmarks/store/memory.py", "--limits", "600MiB", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *_, row = done.stdout.splitlines()
    limit, quarter, peak, *_ = (cell.strip() for cell in row.strip("|").split("|"))
    assert limit == "600MiB"
    assert 0 < float(quarter) <= float(peak) < 1500
