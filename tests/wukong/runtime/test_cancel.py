"""A process ends with the run it belongs to."""

import os
import signal
import subprocess
import sys
import time

import pytest

from wukong.runtime import cancel

BLOCK = """
import sys, time
from wukong.runtime import cancel

def stop():
    print("stopped", flush=True)
    time.sleep(0.5)

with cancel.end_on_signal(stop):
    print("in the block", flush=True)
    time.sleep(600)
"""
CHILD = """
import time
from wukong.runtime import cancel

cancel.end_with_parent()
print("watching", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", cancel.SIGNALS)
def test_the_first_signal_ends_the_block_and_later_ones_do_not_interrupt_that(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", BLOCK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the block\n"
        process.send_signal(number)
        assert process.stdout.readline() == "stopped\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + number
        assert process.stdout.read() == ""


def test_a_run_begun_by_nohup_outlives_its_terminal() -> None:
    command = ["nohup", sys.executable, "-c", BLOCK]
    nothing = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"in the block\n"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_a_process_ends_when_the_one_it_belongs_to_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as parent:
        environment = os.environ | {cancel.ENDS_WITH: str(parent.pid)}
        command = [sys.executable, "-c", CHILD]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "watching\n"
            assert child.poll() is None
            parent.kill()  # a zombie from now on, until it is waited for
            assert child.wait(60) == -signal.SIGTERM


def test_a_process_that_has_ended_is_not_running() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        assert cancel.is_running(process.pid)
        process.kill()
        until = time.monotonic() + 60
        while cancel.is_running(process.pid):
            assert time.monotonic() < until, "a zombie has ended"
            time.sleep(0.01)
        process.wait()
        assert not cancel.is_running(process.pid)
    assert cancel.is_running(os.getpid())
    assert cancel.is_running(1), "another user's process"
