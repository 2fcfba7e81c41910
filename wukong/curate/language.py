"""Is a caption Chinese? The language check of section 3.2."""

import polars as pl


def han_characters(caption: pl.Expr) -> pl.Expr:
    """Chinese characters in a caption: those of the script Han, extensions and 〇 included."""
    return caption.str.count_matches(r"\p{Han}").cast(pl.Int32)


def kana_and_hangul(caption: pl.Expr) -> pl.Expr:
    """Japanese kana and Korean letters in a caption; the decorative の and ー of Chinese shop names are not counted."""
    return caption.str.count_matches(r"[\p{Hiragana}\p{Katakana}\p{Hangul}--[のー]]").cast(pl.Int32)


def is_chinese(caption: pl.Expr) -> pl.Expr:
    """Whether a caption has a Chinese character, and at least as many of them as of kana and Korean letters."""
    han = han_characters(caption)
    return (han > 0) & (kana_and_hangul(caption) <= han)
