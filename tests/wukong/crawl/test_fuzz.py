"""A few hundred mutated files of each format, by the fuzzer of ``benchmarks/crawl``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COUNT = 400


@pytest.mark.parametrize("kind", ["gif", "avif", "webp", "png", "jpeg", "bmp", "tiff"])
def test_every_mutated_file_gets_a_status(kind: str) -> None:
    command = [sys.executable, "benchmarks/crawl/fuzz.py", "--count", str(COUNT), "--seed", "7", "--formats", kind]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.removeprefix(kind))
    statuses = result["statuses"]
    assert sum(statuses.values()) == result["mutations"] == COUNT
    assert "no status" not in statuses
    assert kind == "tiff" or {"success", "corrupt", "not_image"} <= set(statuses), "it goes deep and it goes wrong"
    assert result["decoder_mib"] < 400
