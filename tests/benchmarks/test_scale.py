"""The benchmark of all sizes: its fits, that it goes on where it was killed, and a small run of it."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("scale_bench", ROOT / "benchmarks" / "scale" / "bench.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        (lambda _: 300.0, "constant"),
        (lambda n: 0.2 * n, "n"),
        (lambda n: 3e-6 * n * math.log(n), "n log n"),
        (lambda n: 1e-9 * n**2, "n^2"),
    ],
)
def test_a_growth_is_found_in_figures_that_vary_a_little(bench: ModuleType, growth, expected: str) -> None:  # type: ignore[no-untyped-def]
    points = [(n, growth(n) * noise) for n, noise in ((1e6, 1.01), (1e7, 0.99), (1e8, 1.01))]
    found, factor = bench.fit(points)
    assert found == expected
    assert factor * bench.GROWTHS[found](1e9) == pytest.approx(growth(1e9), rel=0.05)


def test_a_piece_that_has_finished_is_not_run_again_and_one_that_failed_is(bench: ModuleType, tmp_path: Path) -> None:
    script, count = tmp_path / "made.py", tmp_path / "count"
    script.write_text(
        f"import sys, pathlib\nfile = pathlib.Path({str(count)!r})\n"
        "file.write_text(file.read_text() + 'x' if file.exists() else 'x')\n"
        'print(\'a table\')\nprint(\'{"stage": "s", "n": \' + sys.argv[1] + \', "seconds": 2}\')\n'
        "sys.exit(int(sys.argv[2]))\n"
    )
    first = bench.piece(tmp_path, script, ["7", "0"])
    assert first == bench.piece(tmp_path, script, ["7", "0"])
    assert (first["lines"], first["text"], first["status"]) == ([{"stage": "s", "n": 7, "seconds": 2}], ["a table"], 0)
    assert count.read_text() == "x"
    for _ in range(2):
        assert bench.piece(tmp_path, script, ["7", "3"])["status"] == 3
    assert count.read_text() == "xxx"


def test_a_stage_costs_what_lies_on_the_line_through_its_sizes(bench: ModuleType) -> None:
    fixed = {"stage": "crawl", "seconds": 0, "driver_mib": 300, "of_run": True}
    lines = [fixed | {"n": n, "core_seconds": 9 + 0.004 * n, "task_mib": 200 + n / 1e3} for n in (5_000, 20_000)]
    found = bench.stages_of(lines)["crawl"]
    assert found == {
        "start": pytest.approx(9),
        "core_seconds": pytest.approx(0.004),
        "driver_mib": 300,
        "task_mib": 220,
        "largest": 20_000,
    }


def test_memory_of_a_stage_is_that_of_its_largest_step_and_grows_as_between_the_two_largest_sizes(
    bench: ModuleType,
) -> None:
    runs = [
        {"stage": "filter", "n": n, "core_seconds": n, "driver_mib": 300, "task_mib": 200, "of_run": True}
        for n in (5_000, 20_000)
    ]
    measured = {10**6: (400, 390, 630), 10**7: (420, 430, 875), 10**8: (510, 610, 863)}
    rows = [
        {"stage": stage, "n": n, "driver_mib": driver, "task_mib": task if stage == "compare" else 100}
        for n, (count, compare, task) in measured.items()
        for stage, driver in (("count", count), ("compare", compare))
    ]
    found = bench.stages_of([*runs, *rows])["filter"]
    assert found["driver_mib_per_million"] == pytest.approx(2)  # 430 at 10 million, 610 at 100 million
    assert found["driver_mib"] == 410  # 410 + 2 * 10 = 430; above 300 and, with 2 more, the 400 at a million
    assert found["task_mib_per_million"] == 0
    assert found["task_mib"] == 875


def test_lines_of_every_script_get_the_words_of_the_table(bench: ModuleType) -> None:
    line = {"step": "load", "parts": 10, "seconds": 1, "peak_growth_mib": 3.5, "peak_of_workers_mib": 0.0}
    found = bench.in_common_words(line, 10_000, "manifests.py")
    assert [found[name] for name in ("stage", "n", "driver_mib", "task_mib", "of_run")] == [
        "load",
        10_000,
        3.5,
        0.0,
        False,
    ]
    rows, _ = bench.table([found, found | {"n": 20_000, "driver_mib": 7.0}])
    assert "| load | driver_mib | 3.5 at 10,000, 7 at 20,000 | n | 3.5e+05 |" in rows


@pytest.mark.long
def test_a_small_benchmark_runs_and_its_table_has_the_stages(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/scale/bench.py", "--small", "--only", "run", "--folder", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [line["stage"] for line in results["lines"]] == ["crawl", "filter", "validate", "copy"]
    crawl = results["lines"][0]
    assert crawl["n"] == 200
    assert 50 < crawl["driver_mib"] < 2_000
    assert crawl["predicted"] > 0
    assert "| crawl | seconds |" in done.stdout


@pytest.mark.long
def test_made_up_metadata_goes_through_the_stages_that_read_tables(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/scale/metadata.py", "--rows", "5000", "--work", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    told = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert [each["stage"] for each in told] == ["plan", "count", "rules", "compare", "assign", "validate"]
    assert all(each["rows"] == 5000 and each["tasks"] and each["opened"] for each in told)
