r"""What a Chinese character is, and which captions are Chinese.

A Chinese character is a character of Unicode's script Han (``Script=Han`` in Unicode 16). Those are the unified
ideographs with their extensions A to I, the compatibility ideographs, the radicals, 々 (iteration mark), 〇 (zero), 〻,
and the Hangzhou numerals (〡 to 〩, 〸 to 〺). Kana, hangul, bopomofo, punctuation and full-width letters are others.

``HAN`` spells the script out as ranges. So Python's ``re``, which does not know scripts, and the regular expressions of
Polars, whose version of Unicode changes with its release, agree. ``HAN`` is used by the query list (a query has a
Chinese character), the rules ``meaningless``, ``language``, ``length`` and ``sensitive``, the gate, and the words that
reports count. ``MAIN_BLOCK`` is a part of it, for short cuts, and for the names with which training captions are
varied.
"""

import re

import polars as pl

_RANGES = (
    (0x2E80, 0x2E99),  # CJK Radicals Supplement
    (0x2E9B, 0x2EF3),
    (0x2F00, 0x2FD5),  # Kangxi Radicals
    (0x3005, 0x3005),  # 々
    (0x3007, 0x3007),  # 〇
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3038, 0x303B),
    (0x3400, 0x4DBF),  # extension A
    (0x4E00, 0x9FFF),  # CJK Unified Ideographs
    (0xF900, 0xFA6D),  # CJK Compatibility Ideographs
    (0xFA70, 0xFAD9),
    (0x16FE2, 0x16FE3),  # old Chinese marks
    (0x16FF0, 0x16FF1),  # Vietnamese reading marks
    (0x20000, 0x2A6DF),  # extension B
    (0x2A700, 0x2B739),  # C
    (0x2B740, 0x2B81D),  # D
    (0x2B820, 0x2CEA1),  # E
    (0x2CEB0, 0x2EBE0),  # F
    (0x2EBF0, 0x2EE5D),  # I
    (0x2F800, 0x2FA1D),  # CJK Compatibility Ideographs Supplement
    (0x30000, 0x3134A),  # G
    (0x31350, 0x323AF),  # H
)

HAN = "".join(f"{chr(first)}-{chr(last)}" for first, last in _RANGES)
"""The Chinese characters, for use between the brackets of a regular expression, of Python or of Polars."""

MAIN_BLOCK = "\u4e00-\u9fff"
"""The block of the common Chinese characters, likewise. It is a part of ``HAN`` for which there are short cuts: each of
its characters takes three bytes in UTF-8, and no normal form of Unicode changes one."""

_HAN = re.compile(f"[{HAN}]")
_OTHERS_THAN_HAN = f"[^{HAN}]+"
_FOREIGN = r"[\p{Hiragana}\p{Katakana}\p{Hangul}--[のー]]"


def has_han(text: str) -> bool:
    """Whether a text holds a Chinese character."""
    return _HAN.search(text) is not None


def han_characters(caption: pl.Expr) -> pl.Expr:
    """The number of Chinese characters in a caption."""
    # Twice as fast as counting matches.
    return caption.str.replace_all(_OTHERS_THAN_HAN, "").str.len_chars().cast(pl.Int32)


def kana_and_hangul(caption: pl.Expr) -> pl.Expr:
    """The number of kana and hangul in a caption; の and ー, which decorate Chinese shop names, are not counted."""
    return caption.str.count_matches(_FOREIGN).cast(pl.Int32)


def is_chinese(caption: pl.Expr) -> pl.Expr:
    """Whether a caption has a Chinese character, and at least as many of them as kana and hangul (section 3.2)."""
    # Few captions have kana or hangul, and to find one costs a third of counting Chinese characters.
    foreign = caption.str.contains(_FOREIGN)
    han = han_characters(pl.when(foreign).then(caption))
    return (
        pl.when(foreign).then((han > 0) & (kana_and_hangul(caption) <= han)).otherwise(caption.str.contains(f"[{HAN}]"))
    )


def scripts(captions: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Compute ``han_characters`` and ``is_chinese`` of each caption, faster.

    In a caption of ASCII and the main block alone, the lengths in bytes (1 and 3 a character) and in characters give
    the number of Chinese characters. Only the other captions are read character by character.
    """
    others = captions.str.contains(rf"[^{MAIN_BLOCK}\x00-\x7f]").arg_true()
    han = ((captions.str.len_bytes() - captions.str.len_chars()) // 2).cast(pl.Int32)
    chinese = han > 0
    if len(others):
        counted = pl.select(
            han=han_characters(pl.lit(captions.gather(others))), chinese=is_chinese(pl.lit(captions.gather(others)))
        )
        han, chinese = han.scatter(others, counted["han"]), chinese.scatter(others, counted["chinese"])
    return han, chinese
