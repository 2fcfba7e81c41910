"""Measure how long a component works before its RayJob is made, and how much of a core it takes.

    python benchmarks/components/bench.py             filter's component, three times, on an otherwise idle machine
    python benchmarks/components/bench.py --busy 4    beside four processes that never rest

The component is the compiled pipeline's, started as KFP's launcher starts it. MLflow's server and the object store are
real, on loopback; the Kubernetes API is played by the tests' server. The time ends when the RayJob arrives there.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import yaml

from wukong.config import stored
from wukong.config.experiment import Experiment
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

REPOSITORY = Path(__file__).parents[2]
sys.path += [str(REPOSITORY / "tests" / folder) for folder in ("k8s", "wukong/store", "ray_jobs/launch/kuberay")]

import api_server  # noqa: E402 - the tests' folders are on the path only now
import mlflow_server  # noqa: E402
import played_ray_job  # noqa: E402
from object_store import ObjectStore  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def crawled(experiment: Experiment) -> Manifest:
    stage = Stage(experiment.root, "crawl", {"made": "up"})
    storage.write_json(stage.path("part.json"), {})
    return stage.commit([stage.describe("part.json")])


def command(experiment: str, run: str, parent: Manifest, folder: Path) -> list[str]:
    """The command of the filter stage's container, with what KFP's launcher puts into it."""
    documents = yaml.safe_load_all((REPOSITORY / "pipelines/compiled/training.yaml").read_text(encoding="utf-8"))
    container = next(iter(documents))["deploymentSpec"]["executors"]["exec-filter-pairs"]["container"]
    artifact = folder / "crawl_manifest"
    artifact.write_text(parent.model_dump_json(), encoding="utf-8")

    def listed(name: str, path: Path) -> dict[str, object]:
        return {"artifacts": [{"name": name, "type": {"schemaTitle": "system.Artifact"}, "uri": str(path)}]}

    given = {
        "inputs": {
            "parameterValues": {"experiment": experiment, "run": run},
            "artifacts": {"crawl_manifest": listed("crawl_manifest", artifact)},
        },
        "outputs": {
            "artifacts": {"manifest": listed("manifest", folder / "manifest")},
            "outputFile": str(folder / "output.json"),
        },
    }
    return [*container["command"], *(json.dumps(given) if entry == "{{$}}" else entry for entry in container["args"])]


def seconds_of_group(group: int) -> float:
    """Seconds of a core that the processes of a group have taken so far."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def measure(times: int) -> list[tuple[float, float]]:
    """Wall seconds and seconds of a core until the RayJob is there, of each of some runs."""
    found = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = ObjectStore(folder / "store")
        stack.callback(store.kill)
        store.start()
        store.wait_ready("wukong")
        address = stack.enter_context(mlflow_server.running(folder)).address
        api = stack.enter_context(api_server.running())
        api.config_maps["ray-job"] = played_ray_job.installed_config_map()
        os.environ.update(store.variables())
        kubeconfig = str(api.kubeconfig(folder / "kubeconfig"))
        environment = os.environ | {
            "MLFLOW_TRACKING_URI": address,
            "WUKONG_CLUSTER": "wukong",
            "WUKONG_REVISION": "of the image",
            "KUBECONFIG": kubeconfig,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        }
        root = "s3://wukong"
        crawl = {"queries": f"{root}/queries.txt", "endpoint": "http://site.invalid/search"}
        experiment = Experiment.model_validate({"name": "demo", "storage": root, "crawl": crawl})
        uri, parent = stored.store(experiment), crawled(experiment)
        for number in range(times):
            began, before = time.monotonic(), len(api.jobs)
            process = subprocess.Popen(
                command(uri, f"run-{number}", parent, folder),
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=(folder / "log.txt").open("wb"),
                start_new_session=True,
            )
            try:
                while len(api.jobs) == before:
                    if process.poll() is not None:
                        raise SystemExit((folder / "log.txt").read_text())
                    time.sleep(0.005)
                found.append((time.monotonic() - began, seconds_of_group(process.pid)))
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--times", type=int, default=3, help="how often (%(default)s)")
    parser.add_argument("--busy", type=int, default=0, help="processes that take a core each meanwhile (%(default)s)")
    arguments = parser.parse_args()
    with busy(arguments.busy):
        found = measure(arguments.times)
    wall, cores = zip(*found, strict=True)
    print(
        f"to the RayJob, of {len(found)}: {statistics.median(wall):.2f} s, seconds of a core "
        f"{statistics.median(cores):.2f} (wall {min(wall):.2f} to {max(wall):.2f}; load {os.getloadavg()[0]:.1f})"
    )


if __name__ == "__main__":
    main()
