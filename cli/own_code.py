"""The code that a run was made by, in a folder of its own, for ``wukong reproduce --own-code``."""

import subprocess
import sys
from pathlib import Path

from wukong.errors import DataError

ROOT = Path(__file__).parents[1]
_INSTALLED = ("constraints.txt", "pyproject.toml", "infra/install.py")
"""Files that say what is installed: with the same ones the packages of this environment are used."""


def check_out(revision: str, folder: Path) -> Path:
    """Check out a revision of this repository, and return the Python with its packages.

    Packages are installed, which takes minutes, only if the revision asks for others than this checkout.

    Args:
        revision: as a manifest's provenance has it.
        folder: where the code goes; what is there already is used.

    Raises:
        DataError: the revision is not in the repository, or had changes that no commit has; or its packages cannot be
            installed.
    """
    if revision.endswith("-dirty") or revision == "unknown":
        raise DataError(
            f"the run was made by the revision {revision}, with changes that no commit has: its code cannot be had "
            "again"
        )
    try:
        if not (folder / ".git").exists():
            _git("clone", "--quiet", "--no-checkout", str(ROOT), str(folder))
        # A revision that a stored file names is no option of git.
        commit = _git("-C", str(folder), "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}").strip()
        _git("-C", str(folder), "checkout", "--quiet", "--detach", commit)
    except subprocess.CalledProcessError as error:
        raise DataError(
            f"the revision {revision} of the run is not in {ROOT}: `git fetch` it ({error.stderr.strip()})"
        ) from error
    if all(_bytes(folder / name) == _bytes(ROOT / name) for name in _INSTALLED):
        return Path(sys.executable)
    # Its own messages say what it downloads; standard output may be read by a program.
    install = ["make", "--silent", "-C", str(folder), "install"]
    if subprocess.run(install, check=False, stdout=sys.stderr).returncode:  # noqa: S603 - of this repository's revision
        raise DataError(f"the packages of the revision {revision} could not be installed: see above; try again")
    return folder / ".venv" / "bin" / "python"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - git alone


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""
