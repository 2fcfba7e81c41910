"""The columns that the gate checks, computed anew from captions, sizes and digests to find errors of the filter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from wukong.config.split import Split
from wukong.curate import names, rules
from wukong.curate.caption_counts import Hashes, hashes
from wukong.curate.split import TRAIN, picture_digests

NAME_LEFT = "name_left"
"""Column: whether a masked caption may still hold a person's name."""


def columns() -> list[str]:
    """The columns that ``audit`` adds."""
    return [*(check.column for _, check in rules.checks() if check.audit is not None), NAME_LEFT]


def audit(pairs: pl.DataFrame, loaded: Mapping[str, Any]) -> pl.DataFrame:
    """Add the columns that the expectations on pairs check: those of the rules' checks, and ``NAME_LEFT``.

    Args:
        pairs: rows of ``PAIRS``.
        loaded: what ``wukong.curate.rules.load`` has read.
    """
    computed: dict[str, pl.Expr | pl.Series] = {
        check.column: check.audit(pairs, loaded.get(rule.name))
        for rule, check in rules.checks()
        if check.audit is not None
    }
    computed[NAME_LEFT] = pl.Series(names.suspects(pairs["caption"].to_list()), dtype=pl.Boolean)
    return pairs.with_columns(**computed)


@dataclass(frozen=True)
class Facts:
    """What the expectations on the whole set need of one batch: hashes and digests instead of rows."""

    rows: dict[str, int]
    keys: Hashes
    captions: Hashes
    train_captions: Hashes
    unseen_captions: Hashes
    seen_captions: Hashes
    train_pictures: Hashes
    holdout_pictures: Hashes


def facts_of(pairs: pl.DataFrame, split: Split) -> Facts:
    """Compute the facts of a batch of pairs."""
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
    """The whole set in one row, and the hashes that break an expectation, by which example rows are found."""

    row: dict[str, int]
    offenders: dict[str, Hashes]


def summarize(facts: Sequence[Facts], split: Split) -> Dataset:
    """Join the facts of all batches: the sizes of the splits, and what two splits share although they must not."""

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
    """The rows of a batch that are counted in ``Dataset.row[column]``."""
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
