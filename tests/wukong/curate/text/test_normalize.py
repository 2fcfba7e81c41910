"""The normal form of captions."""

import string

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate.text.normalize import normal_forms, normalized

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "猫狗 色.情*0年月jpg\u200b\x00の한", max_size=30
)


def apply(expression, *captions):
    return pl.DataFrame({"c": captions}).select(expression(pl.col("c"))).to_series().to_list()


def test_normalising_folds_width_case_spacing_and_invisible_characters():
    same = ["查看 源网页", "查看　源网页", " 查看\t\n源网页 ", "查看\u200b 源网页", "查看 源网页\x00"]
    assert set(apply(normalized, *same)) == {"查看 源网页"}
    assert apply(normalized, "ＡＢＣ①") == ["abc1"]


@given(st.lists(TEXT | st.text("猫a -Ａ", max_size=5), max_size=20))
@settings(deadline=None)
def test_the_short_way_to_the_normal_form_gives_the_same_and_changes_nothing_else(captions):
    given_ = pl.Series("c", captions, dtype=pl.String)
    assert normal_forms(given_).to_list() == apply(normalized, *captions) if captions else True
    assert given_.to_list() == captions


@given(TEXT)
@settings(deadline=None)
def test_normalising_twice_changes_nothing(text):
    once = apply(normalized, text)[0]
    assert apply(normalized, once)[0] == once


def test_letters_survive():
    assert apply(normalized, string.ascii_letters)[0] == string.ascii_lowercase * 2
