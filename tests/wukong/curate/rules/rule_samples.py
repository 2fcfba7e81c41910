"""Captions of any kind, and the decision of the rules over captions."""

import numpy as np
import polars as pl
from hypothesis import strategies as st

from wukong.config.filter import Filter
from wukong.curate import rules
from wukong.curate.caption_counts import CaptionCounts

NO_COUNTS = CaptionCounts(np.empty(0, np.uint64), np.empty(0, np.int64))
LOADED = rules.load(Filter())
# What a Parquet string can hold: any Unicode text but lone surrogates, NUL and control characters included.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "猫狗 色.情*0年月jpg\u200b\x00の한", max_size=30
)


def judge(captions, width=300, height=300, counts=NO_COUNTS, loaded=LOADED, columns=None, **thresholds):
    frame = pl.DataFrame({"caption": captions, **(columns or {})}, schema_overrides={"caption": pl.String})
    frame = frame.with_columns(width=pl.lit(width, pl.Int32), height=pl.lit(height, pl.Int32))
    settings = Filter.model_validate(thresholds)
    return rules.decide(rules.compute(frame, settings, counts, loaded or rules.load(settings)), settings).to_list()
