"""Read a long JSON list one element at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wukong.errors import DataError
from wukong.evaluate.published import NotThereError

_READ = 1 << 20
_BETWEEN = " \t\r\n,"


def elements(path: Path) -> Iterator[Any]:
    """Iterate over the elements of a file that is one JSON list of objects; a mebibyte of text is in memory at a time.

    Raises:
        NotThereError: there is no such file.
        DataError: it is no such list, or is truncated.
    """
    decoder = json.JSONDecoder()
    try:
        with path.open(encoding="utf-8-sig") as file:
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
                    more = file.read(_READ)
                    if not more:
                        raise DataError(f"{path} ends within its list ({error}): download it again") from error
                    text += more
                    continue
                yield value
                text = text[end:]
    except FileNotFoundError as error:
        raise NotThereError(f"{path} is not there") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason}): download it again") from error
