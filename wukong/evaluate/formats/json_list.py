"""Read a long JSON list one element at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wukong.errors import DataError
from wukong.evaluate.published import reading_file

_READ = 1 << 20
_MOST = 64 << 20  # characters of one element
_BETWEEN = " \t\r\n,"


def elements(path: Path) -> Iterator[Any]:
    """Iterate over the elements of a file that is one JSON list of objects; a mebibyte of text is in memory at a time.

    Raises:
        NotThereError: there is no such file.
        DataError: it is no such list, or is truncated.
    """
    decoder = json.JSONDecoder()
    with reading_file(path, f"{path} is no JSON list in UTF-8"), path.open(encoding="utf-8-sig") as file:
        text = file.read(_READ).lstrip()
        if not text.startswith("["):
            raise DataError(f"{path} is no JSON list: download it again")
        text = text[1:]
        while True:
            text = text.lstrip(_BETWEEN)
            if text.startswith("]"):
                return
            try:
                value, end = decoder.raw_decode(text)
            except ValueError as error:
                if len(text) > _MOST or not (more := file.read(_READ)):
                    raise DataError(f"{path} ends within its list ({error}): download it again") from error
                text += more
                continue
            yield value
            text = text[end:]
