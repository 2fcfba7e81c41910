"""The form in which texts are searched and found, so that every way to write a query finds the same."""

from collections.abc import Sequence

import polars as pl

from wukong.curate.text.clean import in_simplified
from wukong.curate.text.normalize import normal_forms


def search_forms(texts: Sequence[str]) -> list[str]:
    """Compute the form of queries, labels and captions that the model reads.

    It is the normal form by which captions are compared (``curate.text.normalize``: full width to half width, lower
    case, no invisible characters), with Simplified characters (OpenCC, by phrase).
    """
    return in_simplified(normal_forms(pl.Series(texts, dtype=pl.String))).to_list()
