"""Run a pipeline whose jobs have all finished: its components' functions, one after the other, in this process.

KFP's local runner starts a process for each component. Its imports take seconds, and a component that finds its
manifest does nothing else. Here the same functions are called, with the same artifacts, in the order of the table of
stages.
"""

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.dsl.types import type_annotations

from pipelines.local import PipelineError
from pipelines.training import component_of
from wukong import stages
from wukong.errors import WukongError
from wukong.runtime import logs


def run(names: Sequence[str], experiment: str, run_name: str, folder: Path, log: Path) -> None:
    """Run the components of some stages to their end.

    A stage that has work to do all the same, because its output has been deleted in the meantime, does it: its
    component starts its job.

    Args:
        names: names of the stages, in the table's order, with all that they read.
        experiment: URI of the experiment.
        run_name: name of the run.
        folder: where the components' artifacts lie.
        log: the file that gets the components' log, which is appended to it.

    Raises:
        PipelineError: a component failed.
        SystemExit: a signal came; the component has ended its run in MLflow.
    """
    made: dict[tuple[str, str], dsl.Artifact] = {}
    with _logged(log):
        for name in names:
            entry = stages.of(name)
            function = component_of(name).python_func
            given = {f"{parent}_manifest": made[parent, "manifest"] for parent in entry.parents}
            given |= {parameter: made[source] for parameter, source in entry.inputs.items()}
            outputs = _outputs(function, folder / name)
            try:
                function(experiment=experiment, run=run_name, **given, **outputs)
            except WukongError as error:
                raise PipelineError(str(error)) from error
            except Exception as error:
                raise PipelineError(f"{name} failed: {type(error).__name__}: {error}") from error
            made |= {(name, output): artifact for output, artifact in outputs.items()}


def _outputs(function: Any, folder: Path) -> dict[str, dsl.Artifact]:
    """Make the output artifacts of a component, each a file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {}
    for name, parameter in inspect.signature(function).parameters.items():
        annotation = parameter.annotation
        if type_annotations.is_artifact_wrapped_in_Output(annotation):
            outputs[name] = type_annotations.get_io_artifact_class(annotation)(uri=str(folder / name))
    return outputs


@contextlib.contextmanager
def _logged(log: Path) -> Iterator[None]:
    """Append what is logged from INFO on to a file; the other handlers get no more than before."""
    root = logging.getLogger()
    before = {handler: handler.level for handler in root.handlers}
    level = root.level
    for handler in root.handlers:
        handler.setLevel(max(handler.level, level))
    target = logging.FileHandler(log, encoding="utf-8")
    target.setFormatter(logs.FORMATTER)
    root.addHandler(target)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(target)
        target.close()
        for handler, own in before.items():
            handler.setLevel(own)
