"""The split: which kept pairs are trained on, and which test set takes each of the others (``wukong.config.split``).

The split is by caption and by picture, never by file, because a concept repeats across sources and a caption across
pictures. A pair is trained on unless its caption is held out, its URL belongs to a source that is never trained on, or
another such pair has the same picture. A test set then takes pairs of its source: with ``captions: unseen`` those whose
caption is held out, with ``seen`` those whose caption training has. A pair that is neither trained on nor tested is
held back. Of several captions, the first decides; then the others are left out that training may not see
(``wukong.curate.apply``).

For a large set there are three passes over its groups of parts: ``held_out_pictures``, ``trained_captions`` and
``assign``. What a group must know of all groups, it asks (``question``): which of its pictures are held out, and which
of its ``asked_captions``, those that test sets with ``seen`` may take, training sees. ``known`` answers.
"""

from __future__ import annotations

import fnmatch
import re

import numpy as np
import polars as pl

from wukong.config.split import Split
from wukong.curate.caption_counts import Hashes, hashes
from wukong.curate.rule import HELD_BACK
from wukong.curate.text.normalize import normalized, salted_fraction

SALT = "wukong"
"""Another text would hold out other captions."""

TRAIN = "train"
"""Name of the training split."""


def holds_out(split: Split) -> bool:
    """Whether there may be held-out pictures at all."""
    return bool(split.held_out_captions or split.holdouts)


def asks_for_captions(split: Split) -> bool:
    """Whether there may be asked captions at all."""
    return any(holdout.captions == "seen" for holdout in split.holdouts)


def held_out_pictures(pairs: pl.DataFrame, split: Split) -> Hashes:
    """The pictures that training may not see: the first 64 bits of their digests, sorted, each once."""
    kept_away = caption_held_out(pairs, split) | _source_held_out(pairs, split)
    return np.unique(picture_digests(pairs.filter(kept_away)))


def trained_captions(pairs: pl.DataFrame, split: Split, held_out: Hashes) -> Hashes:
    """Hashes of the captions that training sees, sorted, each once.

    Args:
        pairs: one row a pair; may be one part of the corpus.
        split: the hold-outs.
        held_out: those of its pictures that are in ``held_out_pictures`` of the whole corpus.
    """
    return np.unique(hashes(pairs.filter(_trainable(pairs, split, held_out))["caption"]))


def asked_captions(pairs: pl.DataFrame, split: Split) -> Hashes:
    """Hashes of the captions in the sources of ``seen`` test sets, sorted, each once: has training seen them?"""
    asks = pl.Series(np.zeros(len(pairs), dtype=bool))
    for holdout in split.holdouts:
        if holdout.captions == "seen":
            asks |= _matches(pairs["url"], holdout.source)
    return np.unique(hashes(pairs.filter(asks)["caption"]))


def question(has: Hashes, asks: Hashes) -> pl.DataFrame:
    """What a group has and what it asks for: each hash once, as ``hash``, with ``has`` and ``asks``."""
    both = np.union1d(has, asks)
    return pl.DataFrame({"hash": both, "has": np.isin(both, has), "asks": np.isin(both, asks)})


def known(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of groups that ask for a hash which some group has.

    Args:
        rows: ``question`` of each group, with any further columns.
    """
    return rows.filter(pl.col("asks") & pl.col("has").any().over("hash")).drop("has", "asks")


def assign(pairs: pl.DataFrame, split: Split, held_out: Hashes, trained: Hashes) -> pl.Series:
    """Give each kept pair the name of its split: ``train``, a hold-out's name, or ``held_back``.

    A pair that several hold-outs would take is in the first of them.

    Args:
        pairs: one row a pair, with ``url``, ``caption`` (names masked) and ``sha256``; may be one part of the corpus.
        split: the hold-outs.
        held_out: those of its pictures that are in ``held_out_pictures`` of the whole corpus.
        trained: those of its ``asked_captions`` that are in ``trained_captions`` of the whole corpus.
    """
    caption_held = caption_held_out(pairs, split)
    seen = pl.Series(np.isin(hashes(pairs["caption"]), trained))
    result = pl.Series("split", [HELD_BACK] * len(pairs), dtype=pl.String)
    for holdout in reversed(split.holdouts):
        takes = _matches(pairs["url"], holdout.source)
        if holdout.captions == "unseen":
            takes &= caption_held
        elif holdout.captions == "seen":
            takes &= ~caption_held & seen
        result = result.set(takes, holdout.name)
    return result.set(_trainable(pairs, split, held_out), TRAIN)


def caption_held_out(pairs: pl.DataFrame, split: Split) -> pl.Series:
    """Whether each row's caption is held out, by its salted hash."""
    if split.held_out_captions == 0:
        return pl.Series(np.zeros(len(pairs), dtype=bool))
    texts = pairs.select(normalized(pl.col("caption"))).to_series()
    limit = split.held_out_captions
    held = {text: salted_fraction(text, SALT) < limit for text in texts.unique()}
    return pl.Series([held[text] for text in texts], dtype=pl.Boolean)


def picture_digests(pairs: pl.DataFrame) -> Hashes:
    """The first 64 bits of each picture's SHA-256."""
    digest = pairs["sha256"].fill_null("0" * 64)
    return digest.str.head(16).str.to_integer(base=16, dtype=pl.UInt64, strict=False).fill_null(0).to_numpy()


def _trainable(pairs: pl.DataFrame, split: Split, held_out: Hashes) -> pl.Series:
    picture_held = pl.Series(np.isin(picture_digests(pairs), held_out))
    return ~(caption_held_out(pairs, split) | _source_held_out(pairs, split) | picture_held)


def _source_held_out(pairs: pl.DataFrame, split: Split) -> pl.Series:
    held = pl.Series(np.zeros(len(pairs), dtype=bool))
    for holdout in split.holdouts:
        if holdout.captions != "unseen":
            held |= _matches(pairs["url"], holdout.source)
    return held


def _matches(urls: pl.Series, pattern: str) -> pl.Series:
    match = re.compile(fnmatch.translate(pattern)).match
    return pl.Series([match(url) is not None for url in urls], dtype=pl.Boolean)
