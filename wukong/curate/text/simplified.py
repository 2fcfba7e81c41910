"""Replace each Traditional character by one Simplified character, so that offsets in a text stay valid."""

from functools import lru_cache

import polars as pl

from wukong.runtime.installed import installed_file

_PACKAGE = "opencc-python-reimplemented"
_FILE = "opencc/dictionary/TSCharacters.txt"


@lru_cache(maxsize=1)
def table() -> dict[int, int]:
    """Read OpenCC's table of characters for ``str.translate``; of several Simplified forms it takes the first.

    Raises:
        ConfigError: the package that has the table is not installed.
    """
    lines = installed_file(_PACKAGE, _FILE).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines)
    forms = ((pair[0], pair[1].split(" ")[0]) for pair in pairs if len(pair) == 2)
    return {ord(one): ord(other) for one, other in forms if one != other and len(one) == len(other) == 1}


@lru_cache(maxsize=1)
def any_traditional() -> str:
    """A regular expression, of polars and of Python, for each character that ``table`` replaces."""
    return f"[{''.join(map(chr, table()))}]"


def traditional(captions: pl.Series) -> pl.Series:
    """Indices of the captions that hold a character which ``table`` replaces."""
    return captions.str.contains(any_traditional()).arg_true()


def simplify(text: str) -> str:
    """Replace every Traditional character by its Simplified form; the length does not change."""
    return text.translate(table())
