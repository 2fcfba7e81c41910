"""Run the workflow on this machine: each component in this process, or a pipeline with its components in containers.

KFP's local runner starts a process for each component, whose imports take seconds. ``run`` calls the same functions
with the same artifacts, in the order of the table of stages.
"""

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from kfp import dsl, local
from kfp.dsl.types import type_annotations

from pipelines.training import component_of
from wukong import stages
from wukong.errors import WukongError
from wukong.runtime import logs
from wukong.runtime.cancel import end_on_signal

_GRACE = 6
"""Seconds that a component in a container has to end in order before it is killed."""

_IMAGE_USER = 1000
_LABEL = "wukong.pipeline"  # infra.containers finds containers of killed runs by it

_log = logging.getLogger(__name__)


class PipelineError(RuntimeError):
    """A component failed, which ended the run; the run's records say what failed."""


def run(names: Sequence[str], experiment: str, run_name: str, folder: Path, log: TextIO) -> None:
    """Run the components of some stages in this process, one after the other.

    Args:
        names: names of the stages, in the table's order, with all that they read.
        experiment: URI of the experiment.
        run_name: name of the run.
        folder: where the components' artifacts lie.
        log: a file that gets all output of the components and their jobs.

    Raises:
        PipelineError: a component failed.
        SystemExit: a signal came; the component has ended its job and its run in MLflow.
    """
    made: dict[tuple[str, str], dsl.Artifact] = {}
    with _output_to(log):
        for name in names:
            entry = stages.of(name)
            function = component_of(name).python_func
            given = {f"{parent}_manifest": made[parent, "manifest"] for parent in entry.parents}
            given |= {parameter: made[source] for parameter, source in entry.inputs.items()}
            outputs = _outputs(function, folder / name)
            _log.info("Executing task '%s'", name)
            try:
                function(experiment=experiment, run=run_name, **given, **outputs)
            except Exception as error:
                _log.exception("%s failed", name)
                said = str(error) if isinstance(error, WukongError) else f"{type(error).__name__}: {error}"
                raise PipelineError(f"{name} failed: {said}") from error
            _log.info("Task '%s' finished", name)
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
def _output_to(log: TextIO) -> Iterator[None]:
    """Let a file alone get what this process prints and what it logs from INFO on, as of a component's own process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    root.handlers.clear()
    logs.start(log)
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def run_in_containers(
    pipeline: Callable[..., Any],
    arguments: dict[str, Any],
    folder: Path,
    log: TextIO,
    variables: Mapping[str, str],
) -> None:
    """Run a pipeline by KFP's own local runner, each component in a container of its image, on this machine's network.

    Args:
        pipeline: a function decorated with ``dsl.pipeline``.
        arguments: its parameters.
        folder: where KFP keeps the components' artifacts; containers see it at the same path.
        log: a file that gets all output of KFP and of components.
        variables: the containers' environment variables.

    Raises:
        PipelineError: a component failed.
        SystemExit: a signal came; the containers have ended.
    """
    try:
        with (
            end_on_signal(),
            _in_containers(folder, variables) as runner,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            local.init(
                runner=runner,
                pipeline_root=str(folder),
                # KFP mounts both folders into containers, so they must differ.
                workspace_root=str(folder / "workspace"),
                raise_on_error=True,
            )
            pipeline(**arguments)
    except RuntimeError as error:
        raise PipelineError(str(error)) from error


@contextlib.contextmanager
def _in_containers(folder: Path, variables: Mapping[str, str]) -> Iterator[local.DockerRunner]:
    """Give KFP's runner, whose containers run like pods: an ordinary user, no capabilities, a read-only file system.

    KFP does not end its container when it is interrupted, so the containers that are left are ended here: first in
    order, then by killing.
    """
    import docker
    import docker.errors

    folder.mkdir(parents=True, exist_ok=True)
    user = os.getuid()
    if user == 0:
        user = _IMAGE_USER
        os.chown(folder, user, user)
    try:
        yield local.DockerRunner(
            environment={"HOME": "/tmp", "USER": "wukong", **variables},  # noqa: S108 - the container's own
            network_mode="host",
            user=f"{user}:{user}",
            labels={_LABEL: str(folder)},
            init=True,
            read_only=True,
            tmpfs={"/tmp": ""},  # noqa: S108
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
        )
    finally:
        client = docker.from_env()
        for left in client.containers.list(all=True, filters={"label": f"{_LABEL}={folder}"}):
            with contextlib.suppress(docker.errors.APIError):  # it may be removing itself
                left.stop(timeout=_GRACE)
                left.remove(force=True)
        client.close()
