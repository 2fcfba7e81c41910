"""A few hundred mutated files of each format, by the fuzzer of ``benchmarks/crawl``."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
COUNT = 400


def test_every_mutated_file_gets_a_status() -> None:
    command = [sys.executable, "benchmarks/crawl/fuzz.py", "--count", str(COUNT), "--seed", "7"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = {kind: json.loads(result) for kind, result in (line.split(" ", 1) for line in done.stdout.splitlines())}
    assert set(told) == {"gif", "avif", "webp", "png", "jpeg", "bmp", "tiff"}
    for kind, result in told.items():
        statuses = result["statuses"]
        assert sum(statuses.values()) == result["mutations"] == COUNT, kind
        assert "no status" not in statuses, kind
        assert kind == "tiff" or {"success", "corrupt", "not_image"} <= set(statuses), "it goes deep and it goes wrong"
        assert result["decoder_mib"] < 400, kind
