"""How often a caption occurs in the corpus, at its limit."""

import polars as pl
from rule_samples import judge

from wukong.curate.caption_counts import CaptionCounts, counted, hashes


def test_more_than_ten_is_too_often_and_ten_is_not():
    captions = ["展开全文"] * 10 + ["摄影部落"] * 11 + ["一只猫"]
    counts = CaptionCounts.of_rows(counted(hashes(pl.Series(captions))))
    assert judge(captions, counts=counts) == [None] * 10 + ["frequency"] * 11 + [None]
