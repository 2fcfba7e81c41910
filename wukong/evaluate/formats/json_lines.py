"""Files with one JSON object a line: XM3600, xFlickr&CO, and pairs of captions."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wukong.errors import DataError
from wukong.evaluate.published import reading_file


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Iterate over the objects of a file, each with its place for messages; a line at a time is in memory.

    Raises:
        NotThereError: there is no such file.
        DataError: it is not UTF-8, or a line is no JSON object.
    """
    with reading_file(path, f"{path} is not UTF-8"), path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"line {number:d} of {path}"
                with reading_file(path, f"{where} is no JSON object"):
                    row = json.loads(line)
                if not isinstance(row, dict):
                    raise DataError(f"{where} is no JSON object but {line[:60]!r}: it is another file")
                yield where, row


def are_texts(value: object) -> bool:
    """Whether a value is a list of one or more texts."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)
