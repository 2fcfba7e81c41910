"""Measure every stage at growing sizes, fit how it grows, and store the rates that `wukong plan` uses.

    python benchmarks/scale/bench.py --rows 1000000 10000000 --pictures 5000 20000 --trained 1000 4000 --folder FOLDER
    python benchmarks/scale/bench.py --small                      at most two minutes, as in CI

Each script beside this one that ``pieces`` names is run as a process, with each of the sizes. It prints lines of JSON,
such as {"stage": "crawl", "n": 20000, "seconds": 31.5, "driver_mib": 292, "task_mib": 300, "requests": 120, "opened":
40}; other lines are kept as they are. What has finished is a file in the folder, named after the script and the digest
of its arguments, so a benchmark that was killed goes on. It may run in the background: ``setsid nohup make bench
NAME=scale ARGS=... &``.

``results.json`` in the folder gets all lines and the fits. ``--rates FILE`` writes the rates of the stages that
``run.py`` has measured at two sizes: into the home of a stack (``.wukong/rates.json``) for this machine, or over the
packaged ones.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
ROWS_OF_A_PART = 1_000
MEASURED = ("seconds", "core_seconds", "driver_mib", "task_mib", "requests", "opened")
BILLION = 10**9
GROWTHS: Mapping[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "log n": lambda n: math.log(n + 1),
    "n": lambda n: n,
    "n log n": lambda n: n * math.log(n + 1),
    "n^2": lambda n: n**2,
}
WORDS = {
    "stage": ("step", "stage"),
    "n": ("rows", "n"),
    "driver_mib": ("peak_MiB", "peak_growth_mib", "driver_mib"),
    "task_mib": ("peak_of_workers_mib", "task_mib"),
}
"""Names in the table, and those that scripts print."""
STEPS = {"crawl": ("plan",), "filter": ("count", "rules", "compare", "assign")}
"""The steps of a stage that ``metadata.py`` measures one by one."""
Line = dict[str, Any]


def fit(points: Sequence[tuple[float, float]]) -> tuple[str, float]:
    """Return the growth that fits points best, and its factor: least squares on logarithms.

    Args:
        points: sizes and what was measured there, both above 0; of at least two sizes.
    """
    best: tuple[float, str, float] | None = None
    for name, growth in GROWTHS.items():
        logs = [math.log(value) - math.log(growth(n)) for n, value in points]
        mean = sum(logs) / len(logs)
        error = sum((entry - mean) ** 2 for entry in logs)
        if best is None or error < best[0] - 1e-12:
            best = error, name, math.exp(mean)
    assert best is not None
    return best[1], best[2]


def piece(folder: Path, script: Path, arguments: list[str]) -> Line:
    """Run a script, unless its result is in the folder; return its lines, the other text, seconds and status."""
    digest = hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:12]
    file = folder / f"{script.stem}-{digest}.json"
    if file.exists():
        known: Line = json.loads(file.read_text(encoding="utf-8"))
        return known
    print(f"{datetime.now(UTC):%H:%M:%S} {script.name} {' '.join(arguments)}", file=sys.stderr, flush=True)
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], stdout=subprocess.PIPE, text=True, check=False, env=environment
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found: Line = {
        "script": script.name,
        "arguments": arguments,
        "seconds": round(time.monotonic() - began, 1),
        "status": done.returncode,
        "lines": [line for line in lines if "stage" in line or "step" in line],
        "text": [line for line in done.stdout.splitlines() if not line.startswith("{")],
    }
    if done.returncode == 0:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
        part.replace(file)
    return found


def pieces(options: argparse.Namespace) -> list[tuple[Path, list[str], int]]:
    """Return the scripts to run with their arguments and size, small sizes first, if they are there."""
    rows, pictures = sorted(options.rows), sorted(options.pictures)
    folder = str(options.folder / "run")
    wanted = {
        "manifests": [(["--parts", str(max(size // ROWS_OF_A_PART, 1))], size) for size in rows],
        "metadata": [(["--rows", str(size), "--work", str(options.folder / "metadata")], size) for size in rows],
        "pictures": [(["--pictures", str(size)], size) for size in pictures],
        "stragglers": [([], 0)],
        "evaluate": [(["plan"], 0)],
        "run": [
            (["--pictures", str(size), "--trained", str(trained), "--folder", folder], size)
            for size, trained in zip(pictures, sorted(options.trained), strict=True)
        ],
    }
    return [
        (script, arguments, size)
        for name, runs in wanted.items()
        if (script := HERE / f"{name}.py").exists() and (not options.only or name in options.only)
        for arguments, size in runs
    ]


def in_common_words(line: Line, size: int, script: str) -> Line:
    """Return a script's line with the names of ``WORDS``; a line without its own size is of the piece's."""
    found = {name: line[word] for name, words in WORDS.items() for word in words if line.get(word) is not None}
    return {"n": size, **line, **found, "of_run": script == "run.py"}


def table(lines: Sequence[Line]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return a Markdown table of what was measured with its growth, and the fits by stage and figure."""
    by_stage: dict[str, dict[int, Line]] = defaultdict(dict)
    for line in lines:
        by_stage[line["stage"]][line["n"]] = line
    rows = ["| stage | | measured | growth | 1 billion by that |", "|---|---|---|---|---|"]
    fits: dict[str, dict[str, Any]] = defaultdict(dict)
    for stage, sizes in by_stage.items():
        for figure in MEASURED:
            points = [(n, float(line[figure])) for n, line in sorted(sizes.items()) if line.get(figure)]
            if not points:
                continue
            shown = ", ".join(f"{value:,.6g} at {n:,}" for n, value in points)
            growth, billion = "", ""
            if len(points) > 1:
                growth, factor = fit(points)
                at_billion = factor * GROWTHS[growth](BILLION)
                fits[stage][figure] = {"growth": growth, "factor": factor, "billion": at_billion}
                billion = f"{at_billion:,.4g}"
            rows.append(f"| {stage} | {figure} | {shown} | {growth} | {billion} |")
    return rows, fits


def stages_of(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Return what each stage takes: its start, the cost of an item, its memory (``measured_rates.StageRate``).

    A stage's start and the cost of an item lie on the line of seconds of cores through the smallest and the largest
    size that ``run.py`` measured: what other work of the machine adds to elapsed seconds is none of them. Memory grows
    as between the two largest sizes of the metadata benchmarks, of whose steps the largest counts, and is nowhere less
    than what was measured.
    """
    found: dict[str, dict[str, float]] = {}
    runs = [line for line in lines if line.get("of_run") and line["stage"] != "copy"]
    for stage in dict.fromkeys(line["stage"] for line in runs):
        measured = sorted((line for line in runs if line["stage"] == stage), key=lambda line: int(line["n"]))
        first, last = measured[0], measured[-1]
        slope = max(last["core_seconds"] - first["core_seconds"], 0.0) / max(last["n"] - first["n"], 1)
        found[stage] = {
            "start": round(max(first["core_seconds"] - slope * first["n"], 0.0), 1),
            "core_seconds": float(f"{slope:.3g}"),
            "driver_mib": max(line["driver_mib"] for line in measured),
            "task_mib": max(line["task_mib"] for line in measured),
            "largest": last["n"],
        }
        for name in ("driver_mib", "task_mib"):
            points: dict[int, float] = {}
            for line in lines:
                if not line.get("of_run") and line["stage"] in STEPS.get(stage, (stage,)) and line.get(name):
                    points[line["n"]] = max(line[name], points.get(line["n"], 0.0))
            if len(points) > 1:
                few, many = sorted(points)[-2:]
                each = max(points[many] - points[few], 0.0) / (many - few)
                least = max(held - each * n for n, held in points.items())
                found[stage][name] = round(max(found[stage][name], least))
                found[stage][f"{name}_per_million"] = round(each * 1e6, 3)
    return found


def rates(lines: Sequence[Line], command: str) -> dict[str, Any]:
    """Return the rates of this machine (``wukong.stages.measured_rates``): those of the stages, the speeds of a core.

    A core's speed in the tower follows from the features, where all cores are as busy. The starts of what trains or
    evaluates are where the lines of their sizes begin; the plan computes the rest from the speeds.
    """
    from run import experiment_of

    from wukong.model.cost import Size, text_step_flops
    from wukong.stages.estimate import CAPTION_TOKENS

    stages = stages_of(lines)
    experiment = experiment_of("rates", Path("none"))
    cores = os.cpu_count() or 1
    # All cores at once, as in a run: two cores that share a cache are slower than one alone.
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
        each = list(pool.map(_speeds_of_a_core, [experiment] * cores))
    found = {name: sum(speeds[name] for speeds in each) / cores for name in each[0]}
    size, settings = Size.of(experiment.model), experiment.pretrain
    views = 1 + settings.views
    tower = stages["features"]["core_seconds"] / views - 1 / found["augment"]
    step = text_step_flops(experiment.model, settings, size.shape, CAPTION_TOKENS)
    speeds = {
        "step_flops": float(f"{found['text_step'] * step:.4g}"),
        "tower_flops": float(f"{(1 / tower if tower > 0 else found['tower']) * size.tower_flops:.4g}"),
        "decode": round(found["decode"], 1),
        "augment": round(found["augment"], 1),
        "gpu_flops": 5e13,  # assumed: no GPU was measured
    }
    for name in ("features", "pretrain", "finetune", "evaluate"):
        stages[name]["core_seconds"] = 0.0  # the plan computes them from the speeds
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "measured": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": command,
        "speeds": speeds,
        "stages": stages | {"register": {"start": 2.0}, "report": {"start": 3.0}},
    }


def _speeds_of_a_core(experiment: Any) -> dict[str, float]:
    """Items a second of what a training does, of one thread; of its own time, which other work hardly changes."""
    import torch

    from wukong.train import rates as of_training

    torch.set_num_threads(1)
    of_training.time.perf_counter = time.process_time
    names = ["text_step", "tower", "decode", "augment"]
    return dict(of_training.measure(experiment.model, experiment.pretrain, names, torch.device("cpu")))


def processor() -> str:
    """The name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Run the pieces that are missing, print the table, write results and rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="rows of made-up metadata")
    parser.add_argument("--pictures", type=int, nargs="+", default=[1_000, 4_000])
    parser.add_argument("--trained", type=int, nargs="+", default=[500, 1_500], help="as many as --pictures")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/wukong-scale"), help="keeps what is finished")
    parser.add_argument("--only", nargs="+", default=[], metavar="SCRIPT", help="names of scripts, without .py")
    parser.add_argument("--rates", type=Path, help="file to write the rates to")
    parser.add_argument("--small", action="store_true", help="sizes for a check that it works, not for figures")
    options = parser.parse_args()
    if options.small:
        options.rows, options.pictures, options.trained = [1_000, 10_000], [200], [0]
    if options.rates and (
        min(len({*sizes}) for sizes in (options.pictures, options.trained)) < 2 or 0 in options.trained
    ):
        parser.error("--rates needs two sizes of --pictures and two of --trained, above 0")
    options.folder.mkdir(parents=True, exist_ok=True)
    work = pieces(options)
    done = [piece(options.folder, script, arguments) for script, arguments, _ in work]
    lines = [
        in_common_words(line, size, each["script"])
        for each, (_, _, size) in zip(done, work, strict=True)
        for line in each["lines"]
    ]
    for each in done:
        if each["text"]:
            print(f"\n{each['script']} {' '.join(each['arguments'])}\n", *each["text"], sep="\n")
    if not any(each["status"] for each in done):
        shutil.rmtree(options.folder / "metadata", ignore_errors=True)  # large, and all of it is in the results
    rows, fits = table(lines)
    print("", *rows, sep="\n", flush=True)
    (options.folder / "results.json").write_text(json.dumps({"lines": lines, "fits": fits}, indent=1), encoding="utf-8")
    if options.rates:
        tables = not options.only or "metadata" in options.only
        told = ["only"] * bool(options.only) + ["rows"] * tables + ["pictures", "trained"]
        sizes = [f"--{name} {' '.join(map(str, getattr(options, name)))}" for name in told]
        written = rates(lines, f"make bench NAME=scale ARGS='{' '.join(sizes)}'")
        options.rates.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    if failed := [each["script"] for each in done if each["status"]]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
