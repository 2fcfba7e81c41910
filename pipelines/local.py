"""Run a pipeline on this machine by KFP's own local runner, each component in a process or a container of its own."""

import contextlib
import io
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from kfp import local

from wukong.runtime.cancel import ENDS_WITH

if TYPE_CHECKING:
    import psutil

_GRACE = 6.0
"""Seconds that components have to end in order before they are killed."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class PipelineError(RuntimeError):
    """A component failed, so KFP ended the run; the run's records say what failed."""


class InterruptedRunError(RuntimeError):
    """A signal ended the run and all that the run had started.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class _Lines(io.TextIOBase):
    """A text stream that passes on whole lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._on_line(line)
        return len(text)


_IMAGE_USER = 1000
_SHELLS = ("sh", "bash", "dash")
_LABEL = "wukong.pipeline"  # infra.containers finds containers of killed runs by it


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
        folder: where KFP keeps the components' artifacts; containers see it at the same path.
        on_line: called with each line of output of KFP and of components.
        containers: environment variables for components that run in containers of their images, on this machine's
            network. None runs them as processes of this environment, with this process's variables.

    Raises:
        PipelineError: a component failed.
        InterruptedRunError: a signal came: SIGTERM, SIGHUP or an interrupt.
    """
    stream = _Lines(on_line)
    try:
        with (
            _interruptible(folder, containers is not None),
            _runner(folder, containers) as runner,
            contextlib.redirect_stdout(stream),
            contextlib.redirect_stderr(stream),
            warnings.catch_warnings(),
        ):
            local.init(
                runner=runner,
                pipeline_root=str(folder),
                # KFP mounts both folders into containers, so they must differ.
                workspace_root=str(folder / "workspace"),
                raise_on_error=True,
            )
            # As processes, components do not run in their image, so its name does not matter.
            warnings.filterwarnings("ignore", message="You may be attemping to run a task", category=RuntimeWarning)
            pipeline(**arguments)
    except InterruptedRunError:
        raise
    except RuntimeError as error:
        raise PipelineError(str(error)) from error


@contextlib.contextmanager
def _interruptible(folder: Path, in_containers: bool) -> Iterator[None]:
    """End what the run has started when a signal comes: first in order, then by killing.

    It kills what is left after a while or at a second signal. Only the components get the first signal. KFP reads their
    output until they have ended, sees that one failed, and ends the pipeline. Processes that ran before, such as the
    stack's services, get no signal.
    """
    started = _Containers(folder) if in_containers else _Processes()
    came: list[int] = []
    over = threading.Event()

    def end() -> None:
        until = time.monotonic() + _GRACE
        while not over.wait(0.2):
            if len(came) > 1 or time.monotonic() > until:
                started.kill()
            else:
                started.tell()

    def handle(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            threading.Thread(target=end, name="ends-the-run", daemon=True).start()

    outside = os.environ.get(ENDS_WITH)
    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    os.environ[ENDS_WITH] = str(os.getpid())
    try:
        yield
    except Exception as error:
        if came:
            raise InterruptedRunError(came[0]) from error
        raise
    finally:
        over.set()
        for number, handler in previous.items():
            signal.signal(number, handler)
        del os.environ[ENDS_WITH]
        if outside is not None:
            os.environ[ENDS_WITH] = outside
    if came:  # while the last component was ending
        raise InterruptedRunError(came[0])


class _Processes:
    """The processes of this run's components, and their children."""

    def __init__(self) -> None:
        import psutil

        self._before = {child.pid for child in psutil.Process().children()}
        self._told: set[int] = set()

    def tell(self) -> None:
        """Send SIGTERM to each component, once; a component ends its own children."""
        import psutil

        for process in self._started():
            with contextlib.suppress(psutil.NoSuchProcess):
                # KFP runs a component below a shell and waits only for the shell, which would end at once.
                for component in process.children() if process.name() in _SHELLS else [process]:
                    if component.pid not in self._told:
                        self._told.add(component.pid)
                        component.terminate()

    def kill(self) -> None:
        """Send SIGKILL to components and their children."""
        import psutil

        for component in self._started():
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in (*component.children(recursive=True), component):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()

    def _started(self) -> "list[psutil.Process]":
        import psutil

        return [child for child in psutil.Process().children() if child.pid not in self._before]


class _Containers:
    """The containers of this run's components."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told: set[str] = set()

    def tell(self) -> None:
        """Send SIGTERM to each, once."""
        self._send("SIGTERM", self._told)

    def kill(self) -> None:
        """Send SIGKILL to each."""
        self._send("SIGKILL", set())

    def _send(self, name: str, told: set[str]) -> None:
        import docker
        import docker.errors

        client = docker.from_env()
        for container in client.containers.list(filters={"label": f"{_LABEL}={self._folder}"}):
            if container.id not in told:
                told.add(container.id)
                with contextlib.suppress(docker.errors.APIError):  # it may be ending itself
                    container.kill(name)
        client.close()


@contextlib.contextmanager
def _runner(
    folder: Path, containers: Mapping[str, str] | None
) -> Iterator[local.SubprocessRunner | local.DockerRunner]:
    """Return KFP's runner. Containers run like pods: an ordinary user, no capabilities, a read-only file system.

    KFP does not end its container when it is interrupted, so containers that are left are removed here.
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
