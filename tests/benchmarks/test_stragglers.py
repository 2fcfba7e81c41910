"""Slow parts do not hold up a crawl, by the simulated clock of ``benchmarks/scale/stragglers.py``."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_slow_parts_cost_no_more_than_if_they_were_spread() -> None:
    command = [sys.executable, "benchmarks/scale/stragglers.py", "--parts-a-core", "250", "--driver", "20000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if re.match(r"\| \d", line)]
    assert [int(row[0]) for row in rows] == [2, 16, 64]
    for _, _, spread, in_order, *put_back, _ in rows:
        assert max(map(float, put_back)) <= 1.15 * float(spread)
        assert min(map(float, put_back)) >= 0.5 * float(spread), "the work itself takes that long"
        assert float(in_order) > max(map(float, put_back))
    held = re.search(r"20,000 parts, 40,000 files: (\d+) MiB", done.stdout)
    assert held is not None
    assert int(held[1]) < 60, "140 bytes a part, and the hosts that cost most"
