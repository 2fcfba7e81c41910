"""What is counted of near duplicates, and by what; `tests/wukong/curate/test_near_duplicates.py` finds them."""

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from wukong.config.filter import Filter
from wukong.curate import apply, near_duplicates, rules


def test_no_threshold_is_below_what_is_told():
    lowest = near_duplicates.LOWEST
    Filter.model_validate({"near_duplicates": {"min_cosine": lowest}})
    with pytest.raises(ValidationError):
        Filter.model_validate({"near_duplicates": {"min_cosine": lowest - 0.001}})


def test_what_was_dropped_before_was_not_compared_and_is_not_counted():
    gone = ["length", "duplicate_image", "similarity", "near_duplicate", "held_back", None, None]
    cosines = [None, None, None, 0.97, 0.85, None, 0.8]
    pairs = pl.DataFrame(
        {"nearest_cosine": cosines, "dropped_by": gone}, schema_overrides={"nearest_cosine": pl.Float32}
    )
    counts = apply.count_near(pairs)
    assert counts["near_duplicates"] == 4
    assert {name: counts[f"near_duplicates/{name}"] for name in ("0.85", "0.86", "0.97", "0.98")} == {
        "0.85": 2, "0.86": 1, "0.97": 1, "0.98": 0,
    }  # fmt: skip
    assert apply.count_near(pairs.drop("dropped_by"))["near_duplicates"] == 7
    assert apply.count_near(pairs.drop("nearest_cosine")) == {}


def test_pairs_without_a_vector_are_not_compared_and_several_captions_have_one():
    pairs = pl.DataFrame({"key": ["0" * 20, "1" * 20, "2" * 20], "similarity": [None, 0.5, 0.7], "length": [3, 4, 5]})
    vectors = pl.Series("vector", np.eye(4, dtype=np.float16)[[2, 1, 1, 0]], dtype=pl.Array(pl.Float16, 4))
    looked = pl.DataFrame(
        {"key": ["2" * 20, "1" * 20, "1" * 20, "0" * 20], "caption": ["a", "b", "c", "d"], "vector": vectors}
    ).with_columns(vector=pl.when(pl.col("key") != "0" * 20).then("vector"))
    settings = Filter.model_validate({"near_duplicates": {"keep": "best-caption"}})
    rows = rules.vectors(pairs, looked, settings)
    assert rows["key"].to_list() == ["1" * 20, "2" * 20]
    assert rows["score"].to_list() == [0.5, 0.7]
    assert near_duplicates.unpacked(rows["vector"]).argmax(axis=1).tolist() == [1, 2]
    assert rules.vectors(pairs, looked.select("key"), settings).is_empty(), "a part of which no picture was read"
