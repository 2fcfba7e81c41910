"""Local paths: where the file of an object lies here, never outside of its folder, and what is no file at all."""

import errno
import re
import stat
from pathlib import Path

from wukong.errors import DataError


def local_path(folder: Path, name: str, origin: str) -> Path:
    """Return the path of a file in a folder, by a name that a store, an archive or a manifest gives.

    Args:
        folder: the folder, which may not be there yet.
        name: below the folder, with slashes.
        origin: what has this name, for the message.

    Raises:
        DataError: the name leads out of the folder, by itself or by a link that lies in the folder.
    """
    path = folder / name
    # A backslash parts names on other systems, and files that one system copies are handed on to another.
    if "\0" in name or ".." in re.split(r"[/\\]", name) or not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{origin} leads out of {folder}, where it would be written: give it another name there")
    return path


def refuse_pipe(path: str) -> None:
    """Check that a local path is no pipe, socket or device, whose reader would wait for ever or read without end.

    Raises:
        OSError: it is.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return  # opening it says why
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no file")
