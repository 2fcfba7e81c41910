"""The rules one by one, their order, and that no string makes one raise."""

import string
from collections import Counter
from pathlib import Path

import jieba
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import rjieba
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong import storage
from wukong.config import Filter
from wukong.curate import rules
from wukong.curate.rules import frequency, length, sensitive
from wukong.curate.rules.frequency import CaptionCounts, hashes, merge
from wukong.curate.rules.language import han_characters, is_chinese, scripts
from wukong.curate.rules.meaningless import is_meaningless
from wukong.curate.text.normalize import normal_forms, normalized
from wukong.errors import ConfigError

NO_COUNTS = CaptionCounts(np.empty(0, np.uint64), np.empty(0, np.int64))
WORDS = sensitive.load()
LISTS = {"some": ["色情", "猫*狗", "jpg"]}
# What a Parquet string can hold: any Unicode text but lone surrogates, NUL and control characters included.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "猫狗 色.情*0年月jpg\u200b\x00の한", max_size=30
)


def apply(expression, *captions):
    return pl.DataFrame({"c": captions}).select(expression(pl.col("c"))).to_series().to_list()


def judge(captions, width=300, height=300, counts=NO_COUNTS, **thresholds):
    frame = pl.DataFrame({"caption": captions}, schema={"caption": pl.String}).with_columns(
        width=pl.lit(width, pl.Int32), height=pl.lit(height, pl.Int32)
    )
    settings_ = Filter(**thresholds)
    return rules.decide(rules.compute(frame, settings_, counts, WORDS), settings_).to_list()


@given(st.lists(TEXT, max_size=20), st.sampled_from(["character", "word"]))
@settings(deadline=None, max_examples=200)
def test_no_caption_makes_a_rule_raise_and_every_reason_is_known(captions, unit):
    result = judge(captions, length_unit=unit)
    assert len(result) == len(captions)
    assert set(result) <= {None, *rules.RULES}


@pytest.mark.parametrize(
    "caption", ["", " \u3000\t", "\x00\x01", "猫" * 350_000, "が" * 100 + "한글", "\ufffd", "🐱" * 1000]
)
def test_extreme_captions_are_dropped_under_a_reason(caption):
    assert judge([caption])[0] in rules.RULES


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(201, 201, None), (200, 201, "size"), (201, 200, "size"), (603, 201, None), (604, 201, "aspect_ratio"),
     (201, 604, "aspect_ratio"), (None, 300, "size"), (0, 0, "size")],
)  # fmt: skip
def test_size_and_ratio_at_their_limits(width, height, expected):
    assert judge(["一只猫"], width, height) == [expected]


def test_a_pair_keeps_the_first_reason_in_the_documented_order():
    # Too small, too long-drawn, meaningless and not Chinese at once: each threshold lifted shows the next reason.
    bad = "000.jpg"
    assert judge([bad], 10, 100) == ["size"]
    assert judge([bad], 10, 100, min_side=0) == ["aspect_ratio"]
    assert judge([bad], 10, 100, min_side=0, max_aspect_ratio=100) == ["meaningless"]
    repeated = "色情" + "猫" * 40
    counts = merge(np.repeat(hashes(pl.Series([repeated])), 11))
    assert judge([repeated], counts=counts) == ["length"]
    assert judge([repeated], counts=counts, max_length=50) == ["frequency"]
    assert judge([repeated], counts=counts, max_length=50, max_caption_count=11) == ["sensitive"]


@pytest.mark.parametrize(("count", "expected"), [(31, None), (32, "length"), (1, None)])
def test_at_least_one_and_fewer_than_32_chinese_characters(count, expected):
    assert judge(["猫" * count + " with any number of English words " * 5]) == [expected]


def test_units_differ_on_the_same_caption():
    caption = pl.Series(["北京大学的图书馆 library 2024"])
    assert length.characters(caption).to_list() == [8]
    # jieba's own answer, counted by hand: 北京大学 / 的 / 图书馆.
    assert list(jieba.cut("北京大学的图书馆", HMM=False)) == ["北京大学", "的", "图书馆"]
    assert length.words(caption).to_list() == [3]


def test_tokens_are_those_of_the_text_encoder():
    pytest.importorskip("torch")
    from wukong.data.tokenizer import Tokenizer, packaged_vocabulary

    tokenizer = Tokenizer(packaged_vocabulary(), max_tokens=64)
    captions = ["北京大学的图书馆 library 2024", "猫", "only english"]
    ids = tokenizer(captions)
    inside = [sum(int(i) not in (tokenizer.pad, tokenizer.cls, tokenizer.sep) for i in row) for row in ids]
    assert length.tokens(pl.Series(captions)).to_list() == [inside[0], inside[1], 0]


MEANINGLESS = [
    "000.jpg", "IMG_2034", "IMG_2034.JPG", "img 2034 (2).jpeg", "DSC00012", "DSC_0012.NEF", "dscn1234",
    "PXL_20230102_1", "mmexport1554871234567", "微信图片_20200101123456.jpg", "微信图片_20200101",
    "QQ图片20180101", "屏幕截图 2021-03-04 101112", "截图1", "图片1", "图 3", "照片 (12)",
    "http://example.com/a.jpg", "https://example.com/图片", "www.example.com", "example.com", "123", "2019-03-05",
    "2019年3月5日", "2019年3月5日 12:30", "12:30", "1/3", "未命名", "未命名-1.psd", "无标题", "...", "！？",
    "d41d8cd98f00b204e9800998ecf8427e", "550e8400-e29b-41d4-a716-446655440000", "banner-home-2.png",
    "00001 - 副本.jpg", "IMG_2034 拷贝", "１２３．ｊｐｇ", "p_9912", "timg.jpg", "null",
]  # fmt: skip
MEANINGFUL = [
    "一只猫", "可爱的猫咪.jpg", "可爱的猫咪 IMG_2034.jpg", "2019年春节联欢晚会", "图片素材 蓝天白云", "照片墙",
    "三月的樱花", "12生肖", "5月的花海", "数字1", "日", "月", "年", "图片", "日历", "100分", "4k壁纸",
    "iPhone 12 手机壳", "第3名", "下载图标", "照片", "www.example.com 的首页截图", "1号楼", "24小时便利店",
    "文件夹", "图表", "截图工具", "二维码",
]  # fmt: skip


def test_captions_that_say_nothing():
    result = apply(lambda c: is_meaningless(normalized(c)), *MEANINGLESS)
    assert [text for text, hit in zip(MEANINGLESS, result, strict=True) if not hit] == []


def test_captions_that_say_something_are_left():
    result = apply(lambda c: is_meaningless(normalized(c)), *MEANINGFUL)
    assert [text for text, hit in zip(MEANINGFUL, result, strict=True) if hit] == []


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


@given(st.lists(TEXT, max_size=8))
@settings(deadline=None, max_examples=30)
def test_long_lists_find_what_short_ones_do(captions):
    given_ = pl.Series(captions, dtype=pl.String)
    padded = sensitive.SensitiveWords({"padding": [f"填充词语{n}" for n in range(999)]} | LISTS)
    short = sensitive.SensitiveWords(LISTS)
    assert padded.categories(given_).to_list() == short.categories(given_).to_list()


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


@given(st.lists(st.lists(st.sampled_from(["猫", "狗", "查看源网页", "Cat", "cat", " CAT"]), max_size=40), max_size=6))
@settings(deadline=None)
def test_counts_are_exact_over_parts(parts):
    counts = merge(*(hashes(pl.Series(part, dtype=pl.String)) for part in parts))
    expected = Counter(text.strip().lower() for part in parts for text in part)
    for part in parts:
        found = counts.of(hashes(pl.Series(part, dtype=pl.String)))
        assert found.tolist() == [expected[text.strip().lower()] for text in part]


def test_one_machine_counts_what_the_ranges_of_many_do(tmp_path):
    parts = [[f"第{n * n % 700}号 CAT" for n in range(start, start + 400)] for start in (0, 300, 5000)]
    files = [storage.from_path(tmp_path / f"{number}.parquet") for number in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        storage.write_table(file, pa.table({"caption": part}))
    counts = frequency.count(files)
    expected = Counter(text.lower() for part in parts for text in part)
    assert counts.of(hashes(pl.Series(list(expected)))).tolist() == list(expected.values())
    assert (np.diff(counts.hashes.astype(object)) > 0).all()
    assert len(frequency.count([]).hashes) == 0


def test_more_than_ten_is_too_often_and_ten_is_not():
    captions = ["展开全文"] * 10 + ["摄影部落"] * 11 + ["一只猫"]
    counts = merge(hashes(pl.Series(captions)))
    assert judge(captions, counts=counts) == [None] * 10 + ["frequency"] * 11 + [None]


SENSITIVE = [
    "網上賭博", "賭 博", "販*毒",
    "免费色情影片", "色 情", "网上赌博", "赌*博", "赌　博", "六.合.彩", "Ｋ粉", "porn", "free PORN here", "色情片",
]  # fmt: skip
HARMLESS = [
    "红色情侣装", "红色 情侣装", "特色情人节礼物", "路口交通", "十字路口交通信号灯", "做爱心便当", "popcorn",
    "男性交友", "年代考古", "夫人妻子", "购买枪战游戏", "LISA片段",
]  # fmt: skip


def test_sensitive_words_are_found_through_spaces_width_and_script():
    found = WORDS.categories(pl.Series(SENSITIVE)).to_list()
    assert [text for text, category in zip(SENSITIVE, found, strict=True) if category is None] == []


def test_words_that_only_arise_between_neighbours_are_not_sensitive():
    found = WORDS.categories(pl.Series(HARMLESS)).to_list()
    assert [(t, WORDS.find(t)) for t, category in zip(HARMLESS, found, strict=True) if category] == []


def test_overlapping_words_are_all_found_with_their_category():
    words = sensitive.SensitiveWords({"one": ["坏东西"], "two": ["东西坏了"]})
    assert {(m.word, m.category) for m in words.find("坏东西坏了")} >= {("东西坏了", "two")}
    spaced = words.find("坏 东 西 坏 了")
    assert [(m.word, m.category) for m in spaced] == [("坏东西", "one"), ("东西坏了", "two")]


def test_the_operators_lists_replace_the_default(tmp_path):
    (tmp_path / "house.txt").write_text("# ours\n内部资料 # secret\n\n", encoding="utf-8")
    words = sensitive.load(storage.from_path(tmp_path))
    assert words.categories(pl.Series(["公司内部资料", "免费色情影片"])).to_list() == ["house", None]


def test_the_operators_lists_may_add_to_the_default(tmp_path):
    (tmp_path / "gambling.txt").write_text("內部 賽馬\n", encoding="utf-8")
    words = sensitive.load(storage.from_path(tmp_path), with_default=True)
    captions = pl.Series(["内部赛马", "網上賭博", "免费色情影片", "赛马"])
    assert words.categories(captions).to_list() == ["gambling", "gambling", "pornography", None]
    assert [match.word for match in words.find("内部赛马")] == ["内部赛马"]


def test_lists_that_cannot_be_used_are_explained(tmp_path):
    with pytest.raises(ConfigError, match="no list"):
        sensitive.load(storage.from_path(tmp_path))
    (tmp_path / "a.txt").write_bytes("敏感".encode("gb18030"))
    with pytest.raises(ConfigError, match=r"a\.txt is not UTF-8"):
        sensitive.load(storage.from_path(tmp_path))
    (tmp_path / "a.txt").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="empty"):
        sensitive.load(storage.from_path(tmp_path))


@given(TEXT)
@settings(deadline=None)
def test_the_screen_misses_nothing_that_a_close_look_finds(text):
    assert (WORDS.categories(pl.Series([text])).to_list()[0] is not None) == bool(WORDS.find(text))


def test_letters_survive():
    assert apply(normalized, string.ascii_letters)[0] == string.ascii_lowercase * 2


def test_captions_are_cut_as_jieba_cuts_them() -> None:
    lines = Path("benchmarks/curate/names/tuning/general.txt").read_text(encoding="utf-8").splitlines()
    captions = [line.replace("[", "").replace("]", "") for line in lines if line and not line.startswith("#")]
    assert len(captions) > 1000
    for caption in captions:
        assert rjieba.cut(caption, False) == list(jieba.cut(caption, HMM=False))
