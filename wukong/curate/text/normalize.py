"""The normal form of a caption, by which captions are counted, compared and split."""

import hashlib

import polars as pl

from wukong.curate.text.characters import MAIN_BLOCK

# Chinese characters of the main block, stops and brackets, and printable ASCII without capitals, stay as they are.
PERHAPS_NOT_NORMAL = rf"[^{MAIN_BLOCK}、。〈-】 -@\[-~]|  |^ | $"
"""A regular expression, of polars and of Python, that is found in each text whose normal form is another."""


def normalized(caption: pl.Expr) -> pl.Expr:
    """Compute the normal form: NFKC (width, compatibility forms), lower case, single spaces, no invisible characters.

    Two captions with the same normal form are the same caption, for their frequency and for the split. The normal form
    of a normal form is itself: what is removed, or is a small letter now, may stand beside a mark that it makes one
    character with, so characters are composed again at the end.
    """
    return (
        caption.str.normalize("NFKC")
        .str.replace_all(r"\p{Cf}+", "")
        .str.to_lowercase()
        .str.normalize("NFKC")
        .str.replace_all(r"[\s\p{Cc}]+", " ")
        .str.strip_chars(" ")
    )


def normal_forms(captions: pl.Series) -> pl.Series:
    """Compute ``normalized`` of each caption, fast: most are in this form already, which is cheap to find out."""
    changed = captions.str.contains(PERHAPS_NOT_NORMAL).arg_true()
    if not len(changed):
        return captions
    return captions.clone().scatter(changed, pl.select(normalized(pl.lit(captions.gather(changed)))).to_series())


def salted_fraction(text: str, salt: str) -> float:
    """Hash a string to a uniform number in [0, 1), equal on every machine (SHA-256 of ``salt NUL text``)."""
    data = f"{salt}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(data).digest()[:8]) / 2**64
