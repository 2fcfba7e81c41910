"""The length of a caption in Chinese units: characters, words or word pieces."""

from functools import lru_cache
from typing import Any

import polars as pl

from wukong.curate.text.characters import han_characters, has_han


def characters(caption: pl.Series) -> pl.Series:
    """Chinese characters (script Han) in each caption."""
    return pl.select(han_characters(pl.lit(caption))).to_series()


def words(caption: pl.Series) -> pl.Series:
    """Words that hold a Chinese character, as jieba cuts them, in each caption."""
    import rjieba

    counts = [sum(map(has_han, rjieba.cut(text, False))) for text in caption]
    return pl.Series(caption.name, counts, dtype=pl.Int32)


def tokens(caption: pl.Series) -> pl.Series:
    """WordPiece tokens of the text encoder's vocabulary in each caption, without [CLS]; 0 if none of them is Chinese.

    Raises:
        ConfigError: the vocabulary is not installed.
    """
    counts = [len(ids) for ids in token_ids(caption)]
    return (
        pl.Series(caption.name, counts, dtype=pl.Int32)
        .to_frame("n")
        .select(pl.when(characters(caption) > 0).then("n").otherwise(0).cast(pl.Int32))
        .to_series()
    )


def token_ids(caption: pl.Series) -> list[list[int]]:
    """WordPiece token ids of each caption, in the text encoder's vocabulary, without [CLS].

    Raises:
        ConfigError: the vocabulary is not installed.
    """
    encoded = _wordpiece().encode_batch(caption.to_list(), add_special_tokens=False)
    return [entry.ids for entry in encoded]


COUNTERS = {"character": characters, "word": words, "token": tokens}
"""The function that counts each unit (``filter.length_unit``): from captions to numbers."""


@lru_cache(maxsize=1)
def _wordpiece() -> Any:
    from tokenizers import BertWordPieceTokenizer

    from wukong.data.tokenizer import packaged_vocabulary

    # Not splitlines: some entries are line separators of Unicode themselves.
    entries = packaged_vocabulary().rstrip("\n").split("\n")
    return BertWordPieceTokenizer({entry: number for number, entry in enumerate(entries)})
