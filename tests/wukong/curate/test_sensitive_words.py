"""Sensitive words: what is found, what is not, and lists of the operator's own."""

from pathlib import Path

import jieba
import polars as pl
import pytest
import rjieba
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate import sensitive_words
from wukong.curate.text.normalize import normal_forms
from wukong.errors import ConfigError
from wukong.store import storage

WORDS = sensitive_words.load()


LISTS = {"some": ["色情", "猫*狗", "jpg"]}


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "猫狗 色.情*0年月jpg\u200b\x00の한", max_size=30
)


SENSITIVE = [
    "網上賭博", "賭 博", "販*毒",
    "免费色情影片", "色 情", "网上赌博", "赌*博", "赌　博", "六.合.彩", "Ｋ粉", "porn", "free PORN here", "色情片",
]  # fmt: skip


HARMLESS = [
    "红色情侣装", "红色 情侣装", "特色情人节礼物", "路口交通", "十字路口交通信号灯", "做爱心便当", "popcorn",
    "男性交友", "年代考古", "夫人妻子", "购买枪战游戏", "LISA片段",
]  # fmt: skip


PADDED = {"padding": [f"填充词语{n}" for n in range(999)]}


def categories(words, captions):
    return words.categories_of_normal(normal_forms(captions))


@pytest.fixture(scope="module")
def short_and_long():
    return sensitive_words.SensitiveWords(LISTS), sensitive_words.SensitiveWords(PADDED | LISTS)


@given(captions=st.lists(TEXT, max_size=8))
@settings(deadline=None, max_examples=30)
def test_long_lists_find_what_short_ones_do(short_and_long, captions):
    given_ = pl.Series(captions, dtype=pl.String)
    short, padded = (categories(words, given_).to_list() for words in short_and_long)
    assert padded == short


def test_sensitive_words_are_found_through_spaces_width_and_script():
    found = categories(WORDS, pl.Series(SENSITIVE)).to_list()
    assert [text for text, category in zip(SENSITIVE, found, strict=True) if category is None] == []


def test_words_that_only_arise_between_neighbours_are_not_sensitive():
    found = categories(WORDS, pl.Series(HARMLESS)).to_list()
    assert [(t, WORDS.find(t)) for t, category in zip(HARMLESS, found, strict=True) if category] == []


def test_overlapping_words_are_all_found_with_their_category():
    words = sensitive_words.SensitiveWords({"one": ["坏东西"], "two": ["东西坏了"]})
    assert {(m.word, m.category) for m in words.find("坏东西坏了")} >= {("东西坏了", "two")}
    spaced = words.find("坏 东 西 坏 了")
    assert [(m.word, m.category) for m in spaced] == [("坏东西", "one"), ("东西坏了", "two")]


def test_the_operators_lists_replace_the_default(tmp_path):
    (tmp_path / "house.txt").write_text("# ours\n内部资料 # secret\n\n", encoding="utf-8")
    words = sensitive_words.load(storage.from_path(tmp_path))
    assert categories(words, pl.Series(["公司内部资料", "免费色情影片"])).to_list() == ["house", None]


def test_the_operators_lists_may_add_to_the_default(tmp_path):
    (tmp_path / "gambling.txt").write_text("內部 賽馬\n", encoding="utf-8")
    words = sensitive_words.load(storage.from_path(tmp_path), with_default=True)
    captions = pl.Series(["内部赛马", "網上賭博", "免费色情影片", "赛马"])
    assert categories(words, captions).to_list() == ["gambling", "gambling", "pornography", None]
    assert [match.word for match in words.find("内部赛马")] == ["内部赛马"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding):
    (tmp_path / "house.txt").write_bytes("# 自己的\r内部资料\r".encode(encoding))
    assert categories(sensitive_words.load(storage.from_path(tmp_path)), pl.Series(["内部资料"])).to_list() == ["house"]


def test_lists_that_cannot_be_used_are_explained(tmp_path):
    with pytest.raises(ConfigError, match="no list"):
        sensitive_words.load(storage.from_path(tmp_path))
    (tmp_path / "a.txt").write_bytes("敏感".encode("gb18030"))
    with pytest.raises(ConfigError, match=r"a\.txt is not UTF-8"):
        sensitive_words.load(storage.from_path(tmp_path))
    (tmp_path / "a.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="empty"):
        sensitive_words.load(storage.from_path(tmp_path))


@given(TEXT)
@settings(deadline=None)
def test_the_screen_misses_nothing_that_a_close_look_finds(text):
    assert (categories(WORDS, pl.Series([text])).to_list()[0] is not None) == bool(WORDS.find(text))


def test_captions_are_cut_as_jieba_cuts_them() -> None:
    lines = Path("benchmarks/curate/names/captions/train/general.txt").read_text(encoding="utf-8").splitlines()
    captions = [line.replace("[", "").replace("]", "") for line in lines if line and not line.startswith("#")]
    assert len(captions) > 1000
    for caption in captions:
        assert rjieba.cut(caption, False) == list(jieba.cut(caption, HMM=False))
