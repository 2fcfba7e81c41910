"""Environments of projects that open exports: each has its own packages, and shares torch with this one.

A virtual environment whose path also leads to this environment's packages takes a few MiB, where one with a torch of
its own takes 8 GiB. ``make test-apart NAME=export`` runs them all; otherwise the tests that need such an
environment are skipped, because they download packages.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ENVIRONMENTS = ROOT / "build" / "consumers"

only_by_hand = pytest.mark.skipif(
    os.environ.get("WUKONG_APART") != "export", reason="`make test-apart NAME=export` runs it"
)


def environment(name: str, packages: Sequence[str]) -> Path:
    """Return the Python of an environment that has some packages besides ours; it is made once."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    wanted, record = "\n".join(packages), folder / "packages.txt"
    if record.is_file() and record.read_text() == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (own / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    subprocess.run(command, check=True, timeout=1800)
    record.write_text(wanted)
    return python


def run(python: Path, script: str, *arguments: object) -> str:
    """Run a script in an environment, without this project on its path, and return what it prints."""
    command = [python, "-I", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
