"""Run a compiled-in pipeline on this machine, each component in a process of its own, by KFP's own local runner."""

import contextlib
import io
import warnings
from collections.abc import Callable
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


def run(pipeline: Callable[..., Any], arguments: dict[str, Any], folder: Path, on_line: Callable[[str], None]) -> None:
    """Run a pipeline to its end.

    Args:
        pipeline: a function decorated with ``dsl.pipeline``.
        arguments: its parameters.
        folder: where KFP keeps the small artifacts that components hand on.
        on_line: called with each line that KFP or a component writes.

    Raises:
        PipelineError: a component failed.
    """
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(folder),
        workspace_root=str(folder),
        raise_on_error=True,
    )
    stream = _Lines(on_line)
    try:
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), warnings.catch_warnings():
            # Locally the components run in this environment, not in their image, whatever its name.
            warnings.filterwarnings("ignore", message="You may be attemping to run a task", category=RuntimeWarning)
            pipeline(**arguments)
    except RuntimeError as error:
        raise PipelineError(str(error)) from error
