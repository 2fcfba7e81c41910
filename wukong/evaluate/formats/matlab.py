"""Read variables of MATLAB files, which some sets have their splits and labels in.

scipy reads them in a process of its own: its reader, which is not written in Python, ends the process for some damaged
files, and takes any amount of memory for others.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from wukong.errors import DataError
from wukong.evaluate.published import reading_file

_SECONDS = 60  # of the processor
_BYTES = 4 << 30
"""Of the process; the largest list of a published set, with what scipy itself takes, needs less than a tenth."""


def variable(path: Path, name: str) -> Any:
    """Read one variable of a MATLAB file: numbers and texts, in lists where it has dimensions of more than one.

    Of a table of named fields (an array of structs) it is a dict with the list of each field.

    Raises:
        NotThereError: there is no such file.
        DataError: it is damaged, or has no such variable.
    """
    with reading_file(path, f"{path} is no complete MATLAB file"):
        path.stat()
        read = subprocess.run(  # noqa: S603 - this module itself
            [sys.executable, "-m", __name__, str(path), name],
            capture_output=True,
            check=False,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # each further thread reserves memory
        )
        if read.returncode:
            said = read.stderr.decode("utf-8", "replace").strip().splitlines()
            raise ValueError(said[-1] if said else f"its reader ended with the status {read.returncode}")
        content = json.loads(read.stdout)
    if content is None:
        raise DataError(f"{path} has no variable {name!r}: it is another file; download it again")
    return content


def _main(path: str, name: str) -> None:
    """Print a variable as JSON; null where there is none."""
    from scipy.io import loadmat

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    found = loadmat(path, squeeze_me=True, variable_names=[name]).get(name)
    fields = getattr(getattr(found, "dtype", None), "names", None)
    told = {each: found[each] for each in fields} if fields else found
    json.dump(told, sys.stdout, default=lambda each: each.tolist())


if __name__ == "__main__":
    _main(*sys.argv[1:])
