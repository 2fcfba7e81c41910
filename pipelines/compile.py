"""Compile the pipelines for KFP: ``python -m pipelines.compile [FOLDER]``, by default ``pipelines/compiled``.

The result depends only on the code and on ``WUKONG_DATA_IMAGE``, the image of the components: not on the machine, the
time or the hash seed.
"""

import argparse
import itertools
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from kfp import compiler

from pipelines.data import data_on_cluster
from pipelines.evaluate import evaluate_on_cluster
from pipelines.recurring import recurring_on_cluster
from pipelines.training import training_on_cluster

PIPELINES = {
    "training": training_on_cluster,
    "data": data_on_cluster,
    "evaluate": evaluate_on_cluster,
    "recurring": recurring_on_cluster,
}
"""The pipelines by the names that files have and ``wukong submit`` takes."""

FOLDER = Path(__file__).parent / "compiled"

_EXECUTORS = ("python3 -m kfp.dsl.executor_main ", "python3 -m components.executor ")
"""KFP's program that runs a component's function, and ours, which takes its place."""


def compile_all(folder: Path = FOLDER) -> list[Path]:
    """Write every pipeline as KFP's YAML; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, pipeline in PIPELINES.items():
        files.append(folder / f"{name}.yaml")
        with warnings.catch_warnings():
            # Components come with the image, KFP included: nothing is installed when they start.
            warnings.simplefilter("ignore", category=FutureWarning)
            compiler.Compiler().compile(pipeline, str(files[-1]))
        # KFP's comment repeats the default experiment, with its keys in another order each time.
        lines = files[-1].read_text(encoding="utf-8").splitlines(keepends=True)
        text = "".join(itertools.dropwhile(lambda line: line.startswith("#"), lines))
        if _EXECUTORS[0] not in text:
            raise RuntimeError(f"KFP {version('kfp')} starts components by another program than {_EXECUTORS[0]}")
        text = text.replace(*_EXECUTORS)
        files[-1].write_text(f"# Made by python -m pipelines.compile: do not edit.\n{text}", encoding="utf-8")
    return files


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipelines.compile", description="Compile the pipelines for KFP.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    for file in compile_all(parser.parse_args().folder):
        sys.stdout.write(f"{file}\n")
