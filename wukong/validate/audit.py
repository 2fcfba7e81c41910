"""What validation looks at, computed anew from captions and digests rather than taken from the filter's columns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from wukong.config import Split
from wukong.curate import names
from wukong.curate.rules.frequency import Hashes, hashes
from wukong.curate.rules.language import han_characters
from wukong.curate.rules.sensitive import SensitiveWords
from wukong.curate.split import TRAIN, picture_digests


def audit(pairs: pl.DataFrame, words: SensitiveWords) -> pl.DataFrame:
    """Add what row-level expectations check: ``shorter_side``, ``ratio``, ``han``, ``sensitive_word``, ``name_left``.

    Args:
        pairs: rows of ``PAIRS``.
        words: the sensitive words.
    """
    long, short = pl.max_horizontal("width", "height"), pl.min_horizontal("width", "height")
    return pairs.with_columns(
        shorter_side=short,
        ratio=long / short,
        han=han_characters(pl.col("caption")),
        sensitive_word=pl.Series([_first_word(words, caption) for caption in pairs["caption"]], dtype=pl.String),
        name_left=pl.Series(names.suspects(pairs["caption"].to_list()), dtype=pl.Boolean),
    )


@dataclass(frozen=True)
class Facts:
    """What expectations over the whole set need of one batch of it: hashes and digests, not rows."""

    rows: dict[str, int]
    keys: Hashes
    captions: Hashes
    train_captions: Hashes
    unseen_captions: Hashes
    seen_captions: Hashes
    train_pictures: Hashes
    holdout_pictures: Hashes


def facts_of(pairs: pl.DataFrame, split: Split) -> Facts:
    """Reduce a batch of pairs to its facts."""
    unseen = [holdout.name for holdout in split.holdouts if holdout.captions == "unseen"]
    seen = [holdout.name for holdout in split.holdouts if holdout.captions == "seen"]
    train = pairs.filter(pl.col("split") == TRAIN)
    return Facts(
        rows=dict(pairs["split"].value_counts().iter_rows()),
        keys=hashes(pairs["key"]),
        captions=hashes(pairs["caption_original"]),
        train_captions=_captions(train),
        unseen_captions=_captions(pairs.filter(pl.col("split").is_in(unseen))),
        seen_captions=_captions(pairs.filter(pl.col("split").is_in(seen))),
        train_pictures=np.unique(picture_digests(train)),
        holdout_pictures=np.unique(picture_digests(pairs.filter(pl.col("split") != TRAIN))),
    )


@dataclass(frozen=True)
class Dataset:
    """The whole set in one row, and the hashes of what breaks an expectation, to find example rows by."""

    row: dict[str, int]
    offenders: dict[str, Hashes]


def summarize(facts: Sequence[Facts], split: Split) -> Dataset:
    """Join the facts of all batches: sizes, and what splits share that may not be shared."""

    def union(name: str) -> Hashes:
        return np.unique(np.concatenate([getattr(entry, name) for entry in facts]))

    keys, key_counts = np.unique(np.concatenate([entry.keys for entry in facts]), return_counts=True)
    captions, counts = np.unique(np.concatenate([entry.captions for entry in facts]), return_counts=True)
    train_captions = union("train_captions")
    offenders = {
        "duplicate_keys": keys[key_counts > 1],
        "most_frequent_caption": captions[counts == counts.max(initial=1)],
        "unseen_captions_in_train": np.intersect1d(train_captions, union("unseen_captions")),
        "seen_captions_not_in_train": np.setdiff1d(union("seen_captions"), train_captions),
        "holdout_pictures_in_train": np.intersect1d(union("train_pictures"), union("holdout_pictures")),
    }
    row = {name: len(found) for name, found in offenders.items()}
    row["most_frequent_caption"] = int(counts.max(initial=0))
    for name in (TRAIN, *(holdout.name for holdout in split.holdouts)):
        row[f"pairs_{name}"] = sum(entry.rows.get(name, 0) for entry in facts)
    return Dataset(row, offenders)


def offending_rows(pairs: pl.DataFrame, column: str, offenders: Hashes) -> pl.DataFrame:
    """The rows of a batch by which ``Dataset.row[column]`` came about."""
    value = {
        "duplicate_keys": lambda: hashes(pairs["key"]),
        "most_frequent_caption": lambda: hashes(pairs["caption_original"]),
        "unseen_captions_in_train": lambda: hashes(pairs["caption"]),
        "seen_captions_not_in_train": lambda: hashes(pairs["caption"]),
        "holdout_pictures_in_train": lambda: picture_digests(pairs),
    }[column]()
    return pairs.filter(pl.Series(np.isin(value, offenders)))


def _captions(pairs: pl.DataFrame) -> Hashes:
    return np.unique(hashes(pairs["caption"]))


def _first_word(words: SensitiveWords, caption: str) -> str | None:
    found = words.find(caption)
    return found[0].word if found else None
