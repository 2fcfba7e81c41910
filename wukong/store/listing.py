"""What lies below a path of a pyarrow file system."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow.fs as pafs

log = logging.getLogger(__name__)


def files_below(fs: "pafs.FileSystem", path: str) -> "list[pafs.FileInfo]":
    """Return what is known of all files below a path; empty if there is none.

    On a local file system links are followed, also out of the folder, and each folder is listed once, without a link in
    its path where there is such a path. Pipes, sockets, devices and links that lead nowhere are no files. A file whose
    name is not UTF-8 is left out, and logged.
    """
    if fs.type_name != "local":
        infos = fs.get_file_info(everything(path, recursive=True))
        return [info for info in infos if info.is_file]
    paths: list[str] = []
    seen: set[tuple[int, int]] = set()
    folders = [path.rstrip("/") or "/"]
    while folders:  # those behind one more link each time
        links: list[str] = []
        while folders:
            folder = folders.pop()
            try:
                at = Path(folder).stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if (at.st_dev, at.st_ino) in seen:
                continue
            seen.add((at.st_dev, at.st_ino))
            with os.scandir(folder) as entries:
                inside = list(entries)
            for entry in inside:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_symlink() and Path(entry).is_dir():
                    links.append(entry.path)
                elif not entry.path.isprintable() and not _is_utf8(entry.path):
                    log.warning("%r is left out: its name is not UTF-8", entry.path)
                elif entry.is_symlink() or entry.is_file():
                    paths.append(entry.path)
        folders = sorted(links, reverse=True)
    return [info for info in fs.get_file_info(paths) if info.is_file]


def everything(path: str, *, recursive: bool) -> "pafs.FileSelector":
    """Select all files and folders at a path, or below it too; it is not an error if there is nothing."""
    import pyarrow.fs as pafs

    return pafs.FileSelector(path, recursive=recursive, allow_not_found=True)


def _is_utf8(path: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in path)
