"""Run a pipeline on this machine by KFP's own local runner, each component in a process or a container of its own."""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kfp import local


class PipelineError(RuntimeError):
    """KFP ended the run because a component failed; what failed stands in the run's records."""


class _Lines(io.TextIOBase):
    """A text stream that hands on whole lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._on_line(line)
        return len(text)


_IMAGE_USER = 1000
_LABEL = "wukong.pipeline"  # by which infra.containers finds what a killed run leaves


def run(
    pipeline: Callable[..., Any],
    arguments: dict[str, Any],
    folder: Path,
    on_line: Callable[[str], None],
    containers: Mapping[str, str] | None = None,
) -> None:
    """Run a pipeline to its end.

    Args:
        pipeline: a function decorated with ``dsl.pipeline``.
        arguments: its parameters.
        folder: where KFP keeps the small artifacts that components hand on.
        on_line: called with each line that KFP or a component writes.
        containers: run each component in a container of its image, with these variables and on this machine's network;
            None runs it in a process of this environment, with this process's variables.

    Raises:
        PipelineError: a component failed.
    """
    stream = _Lines(on_line)
    try:
        with (
            _runner(folder, containers) as runner,
            contextlib.redirect_stdout(stream),
            contextlib.redirect_stderr(stream),
            warnings.catch_warnings(),
        ):
            local.init(
                runner=runner,
                pipeline_root=str(folder),
                # Another folder: KFP mounts each into containers, and one folder at one place only.
                workspace_root=str(folder / "workspace"),
                raise_on_error=True,
            )
            # As processes, components run in this environment and not in their image, whatever its name.
            warnings.filterwarnings("ignore", message="You may be attemping to run a task", category=RuntimeWarning)
            pipeline(**arguments)
    except RuntimeError as error:
        raise PipelineError(str(error)) from error


@contextlib.contextmanager
def _runner(
    folder: Path, containers: Mapping[str, str] | None
) -> Iterator[local.SubprocessRunner | local.DockerRunner]:
    """KFP's runner. Containers are as pods are: a user without rights, no capabilities, a read-only file system.

    KFP does not end a container when it is interrupted itself: whatever is left at the end is removed here.
    """
    if containers is None:
        yield local.SubprocessRunner(use_venv=False)
        return
    import docker

    folder.mkdir(parents=True, exist_ok=True)
    user = os.getuid()
    if user == 0:
        user = _IMAGE_USER
        os.chown(folder, user, user)
    try:
        yield local.DockerRunner(
            environment={"HOME": "/tmp", "USER": "wukong", **containers},  # noqa: S108 - the container's own
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
                left.remove(force=True)
        client.close()
