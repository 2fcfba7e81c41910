"""Write a folder as a whole: beside its place first, and then in the place of an earlier one."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wukong.errors import ConfigError


@contextmanager
def whole(folder: Path, mark: str) -> Iterator[Path]:
    """Give an empty folder to write into, which takes the place of ``folder`` when the block ends without an error.

    Args:
        folder: where the files are to be; its parents are created.
        mark: name of a file that every output has. A folder with files and without it is of something else.

    Raises:
        ConfigError: ``folder`` is a file, or holds files of something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise ConfigError(f"{folder} holds files of something else: name an empty folder, or a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        written = Path(scratch, folder.name)
        written.mkdir()
        yield written
        if folder.exists():
            shutil.move(folder, Path(scratch, "earlier"))
        written.rename(folder)
