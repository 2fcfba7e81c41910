"""The least similarity of caption and picture; `tests/ray_jobs/test_filter.py` computes similarities with a model."""

import polars as pl
import pytest
from pydantic import ValidationError

from wukong.config.filter import Filter
from wukong.curate import rules


def test_pairs_below_the_least_similarity_are_dropped_unless_they_were_before():
    settings = Filter(similarity_model="file:///model", min_similarity=0.25)
    columns = pl.DataFrame(
        {"similarity": [0.25, 0.24, 0.1, None], "dropped_by": [None, None, "size", None]},
        schema={"similarity": pl.Float32, "dropped_by": pl.String},
    )
    assert rules.decide(columns, settings, "pictures").to_list() == [None, "similarity", "size", None]
    assert rules.decide(columns, Filter(), "pictures").to_list() == [None, None, "size", None]


def test_a_least_similarity_without_a_model_is_refused():
    with pytest.raises(ValidationError, match="without similarity_model nothing is compared"):
        Filter(min_similarity=0.2)
