"""Read variables of MATLAB files, which some sets have their splits and labels in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wukong.errors import DataError
from wukong.evaluate.published import NotThereError


def variable(path: Path, name: str) -> Any:
    """Read one variable of a MATLAB file, as scipy gives it with its single dimensions taken away.

    Raises:
        NotThereError: there is no such file.
        DataError: it is damaged, or has no such variable.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, squeeze_me=True, variable_names=[name])
    except FileNotFoundError as error:
        raise NotThereError(f"{path} is not there") from error
    except (MatReadError, ValueError, TypeError, OSError, EOFError) as error:
        raise DataError(f"{path} is no complete MATLAB file ({error}): download it again") from error
    if name not in content:
        raise DataError(f"{path} has no variable {name!r}: it is another file; download it again")
    return content[name]
