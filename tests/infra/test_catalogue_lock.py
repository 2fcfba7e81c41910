"""Two processes and one cache of the demo corpus: the second waits, and goes on when the first is killed."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infra import corpus
from wukong.errors import WukongError

HOLDER = """
import fcntl, sys, time
with open(sys.argv[1], "w") as stream:
    fcntl.flock(stream, fcntl.LOCK_EX)
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_cache_in_use_is_waited_for_until_its_holder_is_killed(tmp_path: Path) -> None:
    ended = threading.Event()

    def prepare() -> None:
        with pytest.raises(WukongError, match="none of the demo corpus's sources"):
            corpus.prepare(tmp_path, progress=False, from_sources=())
        ended.set()

    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        waiting = threading.Thread(target=prepare, daemon=True)
        waiting.start()
        assert not ended.wait(1), "it works on a cache that another process holds"
        holder.kill()
        assert ended.wait(60)
