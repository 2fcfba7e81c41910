"""A separate search site for one run. It serves the corpus of this run, next to the stack's own site."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.corpus import HOST
from infra.stack import processes
from infra.stack.state import Stack
from wukong.errors import StackError

_READY_SECONDS = 300.0
_GRACE = 5.0
_OUTLIVES = 15.0
_TAIL_LINES = 15


@contextmanager
def sample_site(stack: Stack, catalogue: Path, outlives: float = _OUTLIVES) -> Iterator[str]:
    """Serve a catalogue during the block.

    The site's process ends with this process, also if this process is killed. It is marked as a process of the stack,
    so that `wukong down` finds it.

    Args:
        stack: the stack of the run.
        catalogue: the catalogue to serve.
        outlives: seconds that the site continues after this process was killed. Crawl tasks that still run then must
            not get broken links.

    Yields:
        The entry of ``WUKONG_CONNECT_TO`` for the site.

    Raises:
        StackError: the site does not start; the message contains the end of its log.
    """
    with tempfile.TemporaryDirectory() as folder:
        port_file, log_file = Path(folder, "port"), Path(folder, "log.txt")
        command = [sys.executable, "-m", "infra.site", f"--catalogue={catalogue}", f"--port-file={port_file}"]
        marks = {processes.MARK: stack.identity, processes.SERVICE_MARK: "sample"}
        with (
            log_file.open("wb") as output,
            subprocess.Popen(  # noqa: S603
                [*command, f"--outlive-input={outlives}"],
                env={**os.environ, **marks},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must reach only the command, which stops this process last
            ) as process,
        ):
            try:
                _wait(process, port_file, log_file)
                yield f"{HOST}=127.0.0.1:{port_file.read_text(encoding='ascii').strip()}"
            finally:
                process.terminate()
                try:
                    process.wait(timeout=_GRACE)
                except subprocess.TimeoutExpired:
                    process.kill()


def _wait(process: "subprocess.Popen[bytes]", port_file: Path, log_file: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not port_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
            state = "did not answer in time" if process.returncode is None else f"ended with {process.returncode}"
            raise StackError("\n".join([f"the search site of this run's sample {state}:", *lines]))
        time.sleep(0.05)
