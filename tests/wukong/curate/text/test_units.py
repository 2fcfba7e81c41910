"""The units in which captions are measured, beside the libraries that define them."""

import jieba
import polars as pl
import pytest

from wukong.curate.text import units


def test_units_differ_on_the_same_caption():
    caption = pl.Series(["北京大学的图书馆 library 2024"])
    assert units.characters(caption).to_list() == [8]
    # jieba's own answer, counted by hand: 北京大学 / 的 / 图书馆.
    assert list(jieba.cut("北京大学的图书馆", HMM=False)) == ["北京大学", "的", "图书馆"]
    assert units.words(caption).to_list() == [3]


def test_tokens_are_those_of_the_text_encoder():
    pytest.importorskip("torch")
    from wukong.data.tokenizer import Tokenizer, packaged_vocabulary

    tokenizer = Tokenizer(packaged_vocabulary(), max_tokens=64)
    captions = ["北京大学的图书馆 library 2024", "猫", "only english"]
    ids = tokenizer(captions)
    inside = [sum(int(i) not in (tokenizer.pad, tokenizer.cls, tokenizer.sep) for i in row) for row in ids]
    assert units.tokens(pl.Series(captions)).to_list() == [inside[0], inside[1], 0]
