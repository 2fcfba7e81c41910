"""Time a run in which every stage is reused: wall clock, CPU seconds of all its processes, and how many there are.

It trains a small model once, on 64 drawn pictures, in a home of its own, and repeats that run: with the stack running,
and after `wukong down`. ``--home`` keeps the home, so that another call does not train again.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image, ImageDraw

_SETTINGS = (
    *("pretrain.epochs=2", "finetune.epochs=1", "model.image.image_size=64", "model.text.width=32"),
    *("model.text.heads=2", "filter.split.held_out_captions=0.2"),
)
_COLOURS = {"红": "red", "绿": "green", "蓝": "blue", "黄": "yellow", "黑": "black", "白": "white"}
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Attributes:
        wall: seconds until it has ended.
        cpu: CPU seconds of it and of the processes that it has waited for; the stack's own are not among them.
        processes: started below it and seen, every 20 ms; those of the stack's services are not counted.
    """

    wall: float
    cpu: float
    processes: int


def main() -> int:
    """Run the benchmark and print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="runs with the stack running")
    parser.add_argument("--home", type=Path, help="a home to make, or to use again; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = (options.home or Path(folder, "home")).absolute()
        pictures = draw(home.parent / "pictures")
        environment = {**os.environ, "WUKONG_HOME": str(home), "XDG_STATE_HOME": str(home.parent / "state")}
        try:
            show("the first run", measure(pictures, environment))
            for _ in range(options.repeat):
                show("again, the stack running", measure(pictures, environment))
            wukong("down", environment=environment)
            show("again, after wukong down", measure(pictures, environment))
        finally:
            wukong("down", environment=environment)
    return 0


def draw(folder: Path) -> Path:
    """Draw 64 pictures with captions, the same each time; leave a folder that is there as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for number in range(64):
            name, colour = list(_COLOURS.items())[number % len(_COLOURS)]
            picture = Image.new("RGB", (64, 64), (90 + number, 150, 200 - number))
            ImageDraw.Draw(picture).ellipse((number % 20, 8, number % 20 + 36, 44), fill=colour)
            picture.save(folder / f"{number:02d}.png")
            (folder / f"{number:02d}.txt").write_text(f"第{number}张图片上有一个{name}色的圆形", encoding="utf-8")
    return folder


def measure(pictures: Path, environment: Mapping[str, str]) -> Cost:
    """Run the workflow on the pictures and measure it.

    Raises:
        RuntimeError: the run failed.
    """
    options = [part for value in _SETTINGS for part in ("--set", value)]
    began, before = time.monotonic(), os.times()
    process = start("run", "--data", str(pictures), *options, environment=environment)
    seen: set[int] = set()
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(process.pid, seen, over))
    watch.start()
    output, _ = process.communicate()
    wall, after = time.monotonic() - began, os.times()
    over.set()
    watch.join()
    if process.returncode:
        raise RuntimeError(output)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(wall, cpu, len(seen))


def start(*arguments: str, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Start the ``wukong`` command of this checkout."""
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wukong(*arguments: str, environment: Mapping[str, str]) -> None:
    """Run the ``wukong`` command to its end."""
    start(*arguments, environment=environment).communicate()


def show(what: str, cost: Cost) -> None:
    """Print a line."""
    load = os.getloadavg()[0]
    sys.stdout.write(
        f"{what:<26}{cost.wall:>7.1f} s wall{cost.cpu:>7.1f} s CPU{cost.processes:>5} processes   load {load:.1f}\n"
    )
    sys.stdout.flush()


def _watch(root: int, seen: set[int], over: threading.Event) -> None:
    """Note the processes below one, without those of the stack, until it is over."""
    while not over.wait(_LOOK_SECONDS):
        try:
            for child in psutil.Process(root).children(recursive=True):
                if child.pid not in seen and "WUKONG_STACK_SERVICE" not in child.environ():
                    seen.add(child.pid)
        except psutil.Error:
            continue


if __name__ == "__main__":
    sys.exit(main())
