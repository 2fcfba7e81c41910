"""Captions with a sensitive word, and the settings that name the words."""

import polars as pl
from rule_samples import NO_COUNTS, judge

from wukong.config.filter import Filter
from wukong.curate import rules
from wukong.store import storage


def test_a_caption_with_a_sensitive_word_is_dropped():
    assert judge(["免费色情影片", "红色情侣装"]) == ["sensitive", None]


def test_the_operators_words_replace_those_of_the_library_or_are_added_to_them(tmp_path):
    (tmp_path / "house.txt").write_text("内部资料\n", encoding="utf-8")
    captions = pl.DataFrame({"caption": ["公司内部资料", "免费色情影片"], "width": [300, 300], "height": [300, 300]})
    for added, expected in (False, ["sensitive", None]), (True, ["sensitive", "sensitive"]):
        settings = Filter(sensitive_words=storage.from_path(tmp_path), default_words=added)
        computed = rules.compute(captions, settings, NO_COUNTS, rules.load(settings))
        assert rules.decide(computed, settings).to_list() == expected
