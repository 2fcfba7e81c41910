"""What a Chinese character is, beside Unicode's own data, and which captions are Chinese."""

import re
import unicodedata

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate.text.characters import HAN, MAIN_BLOCK, han_characters, has_han, is_chinese, scripts

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "猫狗 色.情*0年月jpg\u200b\x00の한", max_size=30
)


def apply(expression, *captions):
    return pl.DataFrame({"c": captions}).select(expression(pl.col("c"))).to_series().to_list()


def test_languages():
    chinese = ["一只猫", "猫cat", "鲜の果园", "繁體中文", "〇", "㐀", "𠮷野家"]
    other = ["a cat", "ねこ", "かわいい猫", "고양이 猫", "", "🐱", "ーの"]
    assert apply(is_chinese, *chinese) == [True] * len(chinese)
    assert apply(is_chinese, *other) == [False] * len(other)


@given(st.lists(TEXT | st.text("猫㐀𠮷ねの한a 々〇ー", max_size=6), max_size=20))
@settings(deadline=None)
def test_the_short_way_to_scripts_gives_what_is_counted_character_by_character(captions):
    han, chinese = scripts(pl.Series("c", captions, dtype=pl.String))
    if captions:
        assert han.to_list() == apply(han_characters, *captions)
        assert chinese.to_list() == apply(is_chinese, *captions)


CHINESE = {
    "common": "猫貓",
    "iteration mark": "々",
    "zero": "〇",
    "vertical iteration mark": "〻",
    "Hangzhou numerals": "〡〩〸〺",
    "extension A": "㐀䶿",
    "extension B": "𠀀𠮷𪛟",
    "extensions C to F": "\U0002a700\U0002b740\U0002b820\U0002ceb0",
    "extensions G to I": "\U00030000\U00031350\U0002ebf0",
    "compatibility": "豈﨑\ufad9",
    "compatibility supplement": "\U0002f800",
    "radicals": "⺀⼀⿕",
}
OTHERS = {
    "hexagrams": "䷀䷿",
    "kana": "のアー",
    "hangul": "한",
    "bopomofo": "ㄅ",
    "punctuation": "。、「」",
    "full width": "Ａ１",
    "strokes and descriptions": "㇀⿰",
    "enclosed": "㈠㊗",
    "Latin, digits, emoji": "aZ09🀄",
}


@pytest.mark.parametrize("kind", CHINESE)
def test_characters_of_the_script_han_are_chinese(kind):
    for character in CHINESE[kind]:
        assert has_han(character), f"U+{ord(character):04X}"
        assert apply(han_characters, character * 3) == [3]
        assert apply(is_chinese, character) == [True]


@pytest.mark.parametrize("kind", OTHERS)
def test_other_characters_are_not(kind):
    for character in OTHERS[kind]:
        assert not has_han(character), f"U+{ord(character):04X}"
        assert apply(han_characters, character) == [0]


def test_every_character_is_one_to_both_libraries_as_unicode_has_it():
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    series, pattern = pl.Series(characters), re.compile(f"[{HAN}]")
    ours = series.str.contains(f"[{HAN}]")
    assert ours.to_list() == [pattern.match(character) is not None for character in characters]
    # Polars knows the script too. A later version of Unicode may have characters that this one does not assign.
    theirs = series.str.contains(r"\p{Han}")
    assert not (ours & ~theirs).any()
    new = series.filter(theirs & ~ours)
    assert [c for c in new if unicodedata.category(c) != "Cn"] == []


def test_the_main_block_is_what_its_short_cuts_take_it_for():
    block = re.compile(f"[{MAIN_BLOCK}]")
    inside = [chr(code) for code in range(0x3000, 0x20000) if not 0xD800 <= code <= 0xDFFF and block.match(chr(code))]
    assert len(inside) == 0x9FFF - 0x4E00 + 1
    for character in inside:
        assert len(character.encode()) == 3
        assert unicodedata.normalize("NFKC", character) == character == character.lower()
        assert has_han(character)
