"""The form in which texts are searched and found, so that every way to write a query finds the same."""

import re
from collections.abc import Sequence
from functools import lru_cache

import polars as pl

from wukong.curate.text.clean import in_simplified
from wukong.curate.text.normalize import PERHAPS_NOT_NORMAL, normal_forms
from wukong.curate.text.simplified import any_traditional

_FEW = 64
"""Up to so many texts are looked at one by one, because polars takes a millisecond for one text too."""


def search_forms(texts: Sequence[str]) -> list[str]:
    """Compute the form of queries, labels and captions that the model reads.

    It is the normal form by which captions are compared (``curate.text.normalize``: full width to half width, lower
    case, no invisible characters), with Simplified characters (OpenCC, by phrase).
    """
    if len(texts) <= _FEW and not any(map(_may_change().search, texts)):
        return list(texts)
    return in_simplified(normal_forms(pl.Series(texts, dtype=pl.String))).to_list()


@lru_cache(maxsize=1)
def _may_change() -> re.Pattern[str]:
    return re.compile(f"{PERHAPS_NOT_NORMAL}|{any_traditional()}")
