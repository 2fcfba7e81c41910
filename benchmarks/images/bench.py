"""Measure the container images and the cost of containers: sizes, start-up, rebuilds, and a run with and without.

    python benchmarks/images/bench.py                 sizes and start-up, takes a minute
    python benchmarks/images/bench.py --rebuild data  also builds an image twice without cache and compares the layers
    python benchmarks/images/bench.py --runs          also runs the demo from scratch in processes and in containers

It needs Docker and the images that `make images` builds.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, dsl

from components.container_image import DATA_IMAGE
from infra.images import build

LIMITS = {"data": 900e6, "ray": 2.5e9}
REPOSITORY = Path(__file__).parents[2]
# The options with which pipelines/local.py runs components.
CONTAINER = (
    "docker",
    "run",
    "--rm",
    "--init",
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--network=host",
)


@dsl.component(base_image=DATA_IMAGE, install_kfp_package=False)
def probe(experiment: str) -> None:
    import time

    print(f"first line at {time.time()}", flush=True)
    from components import stage

    print(f"imported {stage.__name__} at {time.time()}", flush=True)


def output(command: Sequence[str], **options: Any) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def sizes() -> None:
    for image in build.IMAGES:
        name = build.tag(image)
        size = int(output(["docker", "image", "inspect", "--format={{.Size}}", name]))
        bound = f", at most {LIMITS[image] / 1e6:,.0f}" if image in LIMITS else ""
        print(f"{name}: {size / 1e6:,.0f} MB unpacked{bound}")


def executor() -> list[str]:
    """Return the command with which KFP starts the component, from the compiled pipeline."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "probe.yaml"
        compiler.Compiler().compile(probe, str(file))
        container = yaml.safe_load(file.read_text())["deploymentSpec"]["executors"]["exec-probe"]["container"]
    inputs = {"inputs": {"parameterValues": {"experiment": "{}"}}, "outputs": {"outputFile": "/dev/null"}}
    return [*container["command"], "--executor_input", json.dumps(inputs), "--function_to_execute", "probe"]


def moments(command: Sequence[str]) -> tuple[float, float, float]:
    """Return the seconds until the process starts, the component prints its first line, and its imports are done."""
    began = time.time()
    text = output(command)
    found = [float(value) for value in re.findall(r"(?:begin|at) (\d+\.\d+)", text)]
    return tuple(moment - began for moment in found)  # type: ignore[return-value]


def start_up(repeats: int) -> None:
    begin = ["sh", "-c", 'echo "begin $(date +%s.%N)"; exec "$@"', "-"]
    ways = {
        "in a container": [*CONTAINER, DATA_IMAGE],
        "in a process": ["env", f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"],
    }
    for name, prefix in ways.items():
        command = [*prefix, *begin, *executor()]
        moments(command)  # the first run reads from the disk and does not count
        measured = list(zip(*(moments(command) for _ in range(repeats)), strict=True))
        process, first, imported = (statistics.median(column) for column in measured)
        print(
            f"component {name}: first line after {first:.2f} s, of which {first - process:.2f} s are KFP's executor; "
            f"everything a stage's component imports after {imported:.2f} s (medians of {repeats})"
        )


def rebuild(image: str, base_image: str | None) -> None:
    layers = []
    for _ in range(2):
        name = build.build(image, "cpu", base_image, cache=False)
        layers.append(json.loads(output(["docker", "image", "inspect", "--format={{json .RootFS.Layers}}", name])))
    same = sum(first == second for first, second in zip(*layers, strict=True))
    print(f"{image} built twice without cache: {same} of {len(layers[0])} layers are the same bytes")


def runs(arguments: Sequence[str]) -> None:
    """Run the demo in processes and in containers, each with its own home; print the summaries and the ratio."""
    seconds = {}
    for runner in ("process", "docker"):
        with tempfile.TemporaryDirectory() as home:
            environment = {**os.environ, "WUKONG_HOME": home}
            wukong = str(Path(sys.executable).with_name("wukong"))
            text = output([wukong, "run", "--runner", runner, *arguments], env=environment, cwd=REPOSITORY)
            subprocess.run([wukong, "down"], env=environment, check=True)
        print(text[text.index("From query to pair") :])
        found = dict(re.findall(r"^([a-z][a-z ]*?)\s+([\d.]+)$", text, re.MULTILINE))
        # The time for the corpus depends on the cache, so it is left out.
        seconds[runner] = float(found["all"]) - float(found["corpus and stack"])
    print(f"pipeline: {seconds['process']:.0f} s in processes, {seconds['docker']:.0f} s in containers, ", end="")
    print(f"{seconds['docker'] / seconds['process'] - 1:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rebuild", metavar="IMAGE", choices=list(build.IMAGES))
    parser.add_argument("--base-image", default=os.environ.get("BASE_IMAGE") or None)
    parser.add_argument("--runs", action="store_true")
    options, of_runs = parser.parse_known_args()
    tags = [build.tag(image) for image in build.IMAGES]
    inspected = subprocess.run(["docker", "image", "inspect", *tags], capture_output=True, text=True, check=False)
    if inspected.returncode:
        parser.error(
            f"{inspected.stderr.strip().splitlines()[0]}: run `make images` first, with Docker's daemon running"
        )
    sizes()
    start_up(options.repeats)
    if options.rebuild:
        rebuild(options.rebuild, options.base_image)
    if options.runs:
        runs(of_runs)


if __name__ == "__main__":
    main()
