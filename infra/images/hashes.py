"""Write the hashes that the images' builds demand: ``python -m infra.images.hashes``; ``make hashes`` runs it.

They stand apart from ``constraints.txt``: pip demands a hash of everything once one constraint has one, and the project
itself, which ``make install`` installs from its folder, has none. The program ``uv`` asks the index for the hashes of
all files of a version, so that they hold for every Python and machine.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from infra.install import FILES
from wukong.commands.output import echo
from wukong.errors import StackError
from wukong.runtime import installed

_HERE = Path(__file__).parent
PINS = (_HERE.parents[1] / "constraints.txt", _HERE / "constraints.txt")
"""Files with the versions of the packages."""
HASHES, CUDA_HASHES = _HERE / "hashes.txt", _HERE / "torch-cuda-hashes.txt"
"""Hashes of these, and of torch with the packages of CUDA. CPU builds of torch are in an index of their own."""


def versions(text: str) -> dict[str, str]:
    """Return the version of each package that a requirements file pins, by normal name."""
    lines = (line.split("#")[0] for line in text.splitlines())
    matches = (re.match(r"([\w.-]+)={2,3}([\w.+!-]+)", line.strip()) for line in lines)
    return {installed.normal(match[1]): match[2] for match in matches if match}


def write() -> None:
    """Write both files.

    Raises:
        StackError: uv is not installed, or the index does not have a version.
    """
    pins = [file.read_text(encoding="utf-8") for file in PINS]
    HASHES.write_text(_compiled([*pins, *FILES], "--no-deps"), encoding="utf-8")
    known = versions(HASHES.read_text(encoding="utf-8"))
    made = _compiled([(_HERE / "torch-cuda.txt").read_text(encoding="utf-8")], f"--constraints={HASHES}")
    parts = re.split(r"\n(?=\S)", made.strip())
    kept = [part for part in parts if not versions(part).keys() & known.keys()]
    CUDA_HASHES.write_text("\n".join(kept) + "\n", encoding="utf-8")


def _compiled(texts: Sequence[str], *options: str) -> str:
    uv = shutil.which("uv", path=str(_HERE.parents[1] / "build" / "uv" / "bin")) or shutil.which("uv")
    if uv is None:
        raise StackError("the program uv is not installed: `make hashes` installs it, or https://docs.astral.sh/uv")
    command = [uv, "pip", "compile", "--generate-hashes", "--universal", "--python-version=3.11", "--no-config"]
    command += ["--quiet", "--no-header", "--no-annotate", *options, "-"]
    given = "\n".join(texts) + "\n"
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise StackError(f"uv found no hashes: {done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    try:
        write()
    except StackError as error:
        echo(f"error: {error}", err=True)
        sys.exit(1)
