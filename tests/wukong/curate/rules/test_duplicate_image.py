"""By what pairs are compared; `tests/wukong/curate/test_duplicates.py` finds those that repeat a picture."""

import polars as pl

from wukong.config.filter import Filter
from wukong.curate.rules.duplicate_image import RULE


def test_equal_pictures_have_equal_digests_and_similar_ones_are_compared_by_their_hashes():
    pairs = pl.DataFrame(
        {"sha256": ["0" * 15 + "1" + "0" * 48], "image_hash": [7]}, schema_overrides={"image_hash": pl.UInt64}
    )
    assert RULE.values(pairs, Filter(duplicate_images="equal")).tolist() == [1]
    assert RULE.values(pairs, Filter(duplicate_images="similar")).tolist() == [7]
