"""Captions put right, against OpenCC and a browser's reading of HTML."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opencc import OpenCC

from wukong.config.filter import Filter
from wukong.curate.text import clean

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text(
    "<a>/&lt;#x3猫😀👍🏽️‍♀ \n\x00", max_size=30
)
BOTH = Filter(clean_markup=True, simplify=True)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("一只&nbsp;猫 &amp; 狗", "一只 猫 & 狗"),
        ("<b>高清</b>图片<br/>下载", "高清 图片 下载"),
        ("&lt;strong&gt;猫&lt;/strong&gt;", "猫"),
        ("&amp;lt;em&amp;gt;猫", "猫"),
        ("<!-- 注释 -->猫", "猫"),
        ("可爱😀猫👍🏽咪👩‍👩‍👧🇨🇳1️⃣❤️", "可爱 猫 咪"),
        ("摄影师<人名>在公园", "摄影师<人名>在公园"),
        ("3 < 5 且 a<b 版权©2024 Nike™", "3 < 5 且 a<b 版权©2024 Nike™"),
        ("&#29483;&#x732b;", "猫猫"),
        ("AT&T R&D &未知;", "AT&T R&D &未知;"),
        ("&#xD800;&#0;猫", "��猫"),
        ("<p>&nbsp;</p>😀", ""),
        ("  猫  狗  ", "  猫  狗  "),
    ],
)
def test_markup_and_emoji_go_and_all_else_stays(caption, expected):
    assert clean.without_markup(pl.Series([caption])).to_list() == [expected]


CONVERTED = ["一隻貓", "乾隆皇帝的乾燥花", "台灣的頭髮與發展", "著名的瞭望台", "只是簡體", "皇后與後面", "名著看著"]


def test_traditional_becomes_what_opencc_makes_of_it():
    expected = [OpenCC("t2s").convert(text) for text in CONVERTED]
    assert clean.in_simplified(pl.Series(CONVERTED)).to_list() == expected
    assert expected[:3] == ["一只猫", "乾隆皇帝的干燥花", "台湾的头发与发展"]


@given(st.lists(TEXT, max_size=10))
@settings(deadline=None)
def test_no_caption_makes_it_raise_and_it_is_off_unless_asked_for(captions):
    given_ = pl.Series("c", captions, dtype=pl.String)
    cleaned = clean.cleaned(given_, BOTH)
    assert len(cleaned) == len(captions)
    assert cleaned.null_count() == 0
    assert cleaned.name == "c"
    assert clean.cleaned(given_, Filter()).to_list() == captions == given_.to_list()
