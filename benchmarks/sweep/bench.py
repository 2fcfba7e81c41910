"""Measure a sweep beside the trainings alone: eight configurations, one cache of features.

    python benchmarks/sweep/bench.py                       eight configurations of 12 epochs
    python benchmarks/sweep/bench.py --configurations 2    a quick look
    python benchmarks/sweep/bench.py --kill 40             kill the sweep after 40 s, and start it again
    python benchmarks/sweep/bench.py --only sweep --folder /tmp/sweep    one part, in a folder that stays

`wukong sweep` trains, fine-tunes and evaluates each configuration, computes the features once and compares all. Beside
it, each configuration's `pretrain` and `finetune` jobs run one after the other in another place, where the features are
there already: the text-tower trainings alone. Both are measured in seconds and in seconds of a core, of all processes.
MLflow's server and Ray are real.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil
import ray
import yaml

REPOSITORY = Path(__file__).parents[2]
sys.path += [str(REPOSITORY / "tests" / folder) for folder in ("k8s", "ray_jobs")]

import mlflow_server  # noqa: E402 - the tests' folders are on the path only now
from crawled import complete  # noqa: E402
from test_training_jobs import COLOURS, SHAPES, experiment, picture  # noqa: E402

from ray_jobs import features  # noqa: E402
from ray_jobs import filter as filter_job  # noqa: E402
from wukong.config import stored  # noqa: E402
from wukong.config.experiment import Experiment  # noqa: E402
from wukong.crawl.part_writer import Spool, write_part  # noqa: E402
from wukong.registry import sweep  # noqa: E402
from wukong.runs import run_records  # noqa: E402
from wukong.runs.run_records import Record  # noqa: E402
from wukong.stages import places  # noqa: E402
from wukong.store import storage  # noqa: E402
from wukong.store.manifest import Manifest, Stage  # noqa: E402

TARGET = 1.3
PARTS = ("trainings", "sweep")


def crawl(root: str, copies: int) -> Manifest:
    """Coloured shapes with their Chinese names; the experiment's hold-outs have a style and words of their own."""
    stage, rows = Stage(root, "crawl", {}), []
    with Spool() as spool:
        for style, times in (("plain", copies), ("outlined", 1)):
            for name, colour in COLOURS.items():
                for title, shape in SHAPES.items():
                    for number in range(times):
                        url = f"http://x/{style}/{colour}-{shape}-{number}.jpg"
                        row = complete({"url": url, "caption": f"{name}色的{title}", "width": 220, "height": 240})
                        spool.add(row["key"], picture(style, colour, shape, number % 6))
                        rows.append(row)
        write_part(stage.path("parts/00000"), rows, spool)
    return stage.commit([stage.describe(f"parts/00000{suffix}", len(rows)) for suffix in (".tar", ".parquet")])


def core_seconds() -> float:
    """Seconds of a core that this process and all below it have used, those that have ended too."""
    mine = psutil.Process()
    found = 0.0
    for process in (mine, *mine.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        found += times.user + times.system + times.children_user + times.children_system
    return found


def prepare(folder: Path, epochs: int, copies: int) -> tuple[Experiment, Manifest]:
    """Make the data of an experiment; return the experiment and the manifest of the filtered pairs."""
    usual = experiment(folder, epochs=epochs, batch_size=32)
    # A caption of as many pictures is no advertisement here.
    base = usual.model_copy(update={"filter": usual.filter.model_copy(update={"max_caption_count": copies + 1})})
    crawled = crawl(base.root, copies)
    filtered = filter_job.run(base, {"crawl": crawled})
    places.validation(base, filtered).commit([])  # shapes in eight colours would not pass the gate
    for made in (crawled, filtered):
        record = Record(stage=made.stage, state="succeeded", manifest=f"{made.uri}/manifest.json")
        run_records.write(base, "data", record)
    return base, filtered


def settings_of(folder: Path, base: Experiment, configurations: int) -> Path:
    rates = [round(0.005 + 0.005 * number, 4) for number in range(configurations)]
    (folder / "base.yaml").write_text(json.dumps(base.model_dump(mode="json")), encoding="utf-8")
    file = folder / "sweep.yaml"
    value = {"name": "rates", "experiment": "base.yaml", "parameters": {"pretrain.learning_rate": rates}}
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    return file


def run_sweep(file: Path, variables: Mapping[str, str], kill: float) -> str:
    """Run the sweep to its end and return what it prints; with ``kill`` it is killed once after so many seconds."""
    command = [sys.executable, "-m", "cli.main", "sweep", str(file), "--html", str(file.with_suffix(".html"))]
    if kill:
        first = subprocess.Popen(command, env=variables, cwd=REPOSITORY)
        time.sleep(kill)
        first.kill()
        first.wait()
        print(f"killed after {kill:.0f} s")
    ended = subprocess.run(command, env=variables, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
    return ended.stdout


def train_alone(file: Path, filtered: Manifest, variables: Mapping[str, str]) -> None:
    """Run the two training jobs of each configuration, as a pipeline's components start them."""
    parsed, base = sweep.load(file)
    for number, values in enumerate(sweep.grid(parsed)):
        trial = sweep.trial_of(parsed, base, number, values)
        parents = [filtered.uri]
        for stage in ("pretrain", "finetune"):
            uri = stored.store(trial.experiment)
            command = [sys.executable, "-m", "ray_jobs", stage, "--experiment", uri, "--run", trial.run]
            command += [part for parent in parents for part in ("--parent", f"{parent}/manifest.json")]
            subprocess.run(command, env=variables, cwd=REPOSITORY, check=True, capture_output=True)
            record = run_records.read(trial.experiment, trial.run, stage)
            parents.append(record.manifest.removesuffix("/manifest.json") if record else "")


def main() -> int:
    """Measure, print, and return 1 if the sweep takes too much more of a core than the trainings."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--configurations", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--copies", type=int, default=20, help="pictures of each caption")
    parser.add_argument("--kill", type=float, default=0, help="kill the sweep after so many seconds, and repeat it")
    parser.add_argument("--only", choices=PARTS, help="measure one part")
    parser.add_argument("--folder", type=Path, help="where everything is written; by default a folder that is deleted")
    options = parser.parse_args()
    found: dict[str, tuple[float, float]] = {}
    with ExitStack() as ends:
        folder = options.folder or Path(ends.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        mlflow = ends.enter_context(mlflow_server.running(folder))
        ray.init("local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
        variables = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "WUKONG_HOME": str(folder / "home"),
        }
        for part in [options.only] if options.only else PARTS:
            base, filtered = prepare(folder / part, options.epochs, options.copies)
            file = settings_of(folder / part, base, options.configurations)
            if part == "trainings":
                features.run(base, {"filter": filtered})
            began, used = time.monotonic(), core_seconds()
            if part == "sweep":
                tracked = variables | {"MLFLOW_TRACKING_URI": mlflow.address}
                print(run_sweep(file, tracked, options.kill))
            else:
                train_alone(file, filtered, variables)
            found[part] = time.monotonic() - began, core_seconds() - used
            print(f"{part}: {found[part][0]:.1f} s, {found[part][1]:.1f} s of a core", flush=True)
        caches = storage.list_files(storage.join(base.root, "features"), "/manifest.json")
        trained = storage.list_files(storage.join(base.root, "pretrain"), "/manifest.json")
        key = places.features(base, filtered).uri
        ray.shutdown()
    once = sum(uri.startswith(key) for uri in caches) == 1 and len(trained) == options.configurations
    print(f"features computed once, each configuration trained once: {'yes' if once else 'NO'}")
    if options.only:
        return 0 if once else 1
    wall, core = (found["sweep"][n] / found["trainings"][n] for n in (0, 1))
    print(f"{options.configurations} configurations: {wall:.2f} x the seconds, {core:.2f} x the seconds of a core")
    return 0 if core <= TARGET and once else 1


if __name__ == "__main__":
    sys.exit(main())
