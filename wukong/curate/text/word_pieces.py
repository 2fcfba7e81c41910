"""The word pieces of captions, in the text encoder's vocabulary."""

from functools import lru_cache
from typing import Any

import polars as pl


def token_ids(caption: pl.Series) -> list[list[int]]:
    """WordPiece token ids of each caption, in the text encoder's vocabulary, without [CLS].

    Raises:
        ConfigError: the vocabulary is not installed.
    """
    encoded = _wordpiece().encode_batch(caption.to_list(), add_special_tokens=False)
    return [entry.ids for entry in encoded]


@lru_cache(maxsize=1)
def _wordpiece() -> Any:
    from tokenizers import BertWordPieceTokenizer

    from wukong.data.tokenizer import packaged_vocabulary

    # Not splitlines: some entries are line separators of Unicode themselves.
    entries = packaged_vocabulary().rstrip("\n").split("\n")
    return BertWordPieceTokenizer({entry: number for number, entry in enumerate(entries)})
