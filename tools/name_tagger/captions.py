"""Labelled captions: the file format of ``benchmarks/curate/names/captions/``.

One caption a line, with each person's name in square brackets: ``演员[海清]出席发布会``. A line that begins with ``#``
is a comment, and also the heading of the captions below it.
"""

import re
from pathlib import Path
from typing import NamedTuple

from wukong.curate.names.tagger import Span
from wukong.errors import DataError

_NAME = re.compile(r"(\[[^\[\]]+\])")


class Labelled(NamedTuple):
    """A caption and the spans of its names, in order."""

    text: str
    names: list[Span]


def parse(line: str) -> Labelled:
    """Read one line.

    Raises:
        DataError: a bracket is not closed, or has nothing in it.
    """
    names: list[Span] = []
    text = ""
    for piece in _NAME.split(line):
        bare = piece
        if _NAME.fullmatch(piece):
            bare = piece[1:-1]
            names.append((len(text), len(text) + len(bare)))
        elif "[" in piece or "]" in piece:
            raise DataError(f"{line!r}: write each name as [name], brackets closed, not nested and not empty")
        text += bare
    return Labelled(text, names)


def read(path: Path, kind: str = "") -> list[Labelled]:
    """Read a file of labelled captions.

    Args:
        path: the file.
        kind: only captions below a heading that ends in this, such as ``hard``.

    Raises:
        DataError: the file cannot be read, or a line is not in the format; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the labelled captions in {path}: {error}") from error
    captions, heading = [], ""
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            heading = line
        elif line and heading.endswith(kind):
            try:
                captions.append(parse(line))
            except DataError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
    return captions
