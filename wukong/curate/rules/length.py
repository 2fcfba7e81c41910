"""The length of a caption in Chinese words, in one of three units (section 3.2).

The paper keeps captions with at least one and fewer than 32 "Chinese words" and does not say what a word is. Its
table 2 (22 tokens a caption on average, median 24, standard deviation 7) is what a limit of 32 *characters* leaves:
under 32 segmented words captions would run to some 50 characters. So the default unit is the character.
"""

from functools import lru_cache
from typing import Any

import polars as pl

from wukong.curate.rules.language import han_characters


def characters(caption: pl.Series) -> pl.Series:
    """Chinese characters (script Han) in each caption."""
    return pl.select(han_characters(pl.lit(caption))).to_series()


def words(caption: pl.Series) -> pl.Series:
    """Words that hold a Chinese character, as jieba cuts them, in each caption."""
    import rjieba

    counts = [sum(map(_has_han, rjieba.cut(text, False))) for text in caption]
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
"""How each value of ``filter.length_unit`` is counted: captions in, numbers out."""


def _has_han(word: str) -> bool:
    return any(_is_han(ord(character)) for character in word)


def _is_han(code: int) -> bool:
    return (
        0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x323AF or code in (0x3005, 0x3007)
    )


@lru_cache(maxsize=1)
def _wordpiece() -> Any:
    from tokenizers import BertWordPieceTokenizer

    from wukong.data.tokenizer import packaged_vocabulary

    # Not splitlines: some entries are themselves line separators of Unicode.
    entries = packaged_vocabulary().rstrip("\n").split("\n")
    return BertWordPieceTokenizer({entry: number for number, entry in enumerate(entries)})
