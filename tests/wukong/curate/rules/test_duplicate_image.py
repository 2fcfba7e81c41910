"""The decision over pairs that repeat a picture; `tests/wukong/curate/test_duplicates.py` finds them."""

import polars as pl

from wukong.config.filter import Filter
from wukong.curate import rules


def test_a_repeated_picture_is_dropped_unless_the_pair_was_before():
    columns = pl.DataFrame({"repeats_picture": [True, False, True], "dropped_by": [None, None, "length"]})
    for how in "equal", "similar":
        found = rules.decide(columns, Filter(duplicate_images=how), "corpus").to_list()
        assert found == ["duplicate_image", None, "length"]
    assert rules.decide(columns, Filter(), "corpus").to_list() == [None, None, "length"]


def test_equal_pictures_have_equal_digests_and_similar_ones_are_compared_by_their_hashes():
    pairs = pl.DataFrame(
        {"sha256": ["0" * 15 + "1" + "0" * 48], "image_hash": [7]}, schema_overrides={"image_hash": pl.UInt64}
    )
    assert rules.compared_values("duplicate_image", pairs, Filter(duplicate_images="equal")).tolist() == [1]
    assert rules.compared_values("duplicate_image", pairs, Filter(duplicate_images="similar")).tolist() == [7]
