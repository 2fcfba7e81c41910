"""The normal form of captions."""

import random
import string
import unicodedata

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


def test_marks_beside_what_is_removed_are_composed_again():
    assert apply(normalized, "e\u200b\u0301", "I\u0307\u05bc", "가\u00ad\u11a8") == ["é", "i\u05bc\u0307", "각"]


def test_normalising_twice_changes_nothing_for_any_mixture_of_characters():
    """20,000 texts of marks, invisible characters, capitals, jamo, stops and compatibility forms."""
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    pools = [
        [each for each in every if unicodedata.category(each).startswith("M")],
        [each for each in every if unicodedata.category(each) == "Cf"],
        [each for each in every if unicodedata.normalize("NFKC", each) != each],
        [each for each in every if each.lower() != each],
        [chr(code) for code in range(0x1100, 0x1200)],
        list(" \t\x00\u3000ΣσςİIaei"),
        [chr(code) for code in range(0x3000, 0x3040)],
        every,
    ]
    chance = random.Random(27)
    texts = ["".join(chance.choice(chance.choice(pools)) for _ in range(chance.randint(1, 6))) for _ in range(20_000)]
    once = apply(normalized, *texts)
    assert normal_forms(pl.Series(texts)).to_list() == once
    assert apply(normalized, *once) == once
    assert normal_forms(pl.Series(once)).to_list() == once
    assert apply(normalized, *apply(normalized, *every)) == apply(normalized, *every)
