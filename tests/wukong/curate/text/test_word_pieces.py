"""Word pieces of captions, beside the tokenizer that training has."""

import polars as pl
import pytest

from wukong.curate.text.word_pieces import token_ids


def test_tokens_are_those_of_the_text_encoder():
    pytest.importorskip("torch")
    from wukong.data.tokenizer import Tokenizer, packaged_vocabulary

    tokenizer = Tokenizer(packaged_vocabulary(), max_tokens=64)
    captions = ["北京大学的图书馆 library 2024", "猫", "only english"]
    ids = tokenizer(captions)
    inside = [[int(i) for i in row if int(i) not in (tokenizer.pad, tokenizer.cls, tokenizer.sep)] for row in ids]
    assert token_ids(pl.Series(captions)) == inside
