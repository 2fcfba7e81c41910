"""The columns that the gate checks, computed anew from captions, sizes and digests to find errors of the filter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from wukong.config.split import Split
from wukong.curate import captions, names, rules
from wukong.curate.caption_counts import hashes
from wukong.curate.split import TRAIN, picture_digests

NAME_LEFT = "name_left"
"""Column: whether a masked caption may still hold a person's name."""

SAMPLES = 5
"""The most pairs that are shown of those that break an expectation on the whole set."""

_OF = pl.Enum(["key", "caption_original", "caption", "picture", "pair"])

REPEATED = "repeated_pairs"
"""Number of pairs that have the picture and the first caption of another pair."""
_KIND = pl.Enum(["train", "drawn", "unseen", "seen", "other"])


def audit(pairs: pl.DataFrame, loaded: Mapping[str, Any]) -> pl.DataFrame:
    """Add the columns that the expectations on pairs check: those of the rules' checks, and ``NAME_LEFT``.

    Args:
        pairs: rows of ``PAIRS``.
        loaded: what ``wukong.curate.rules.load`` has read.
    """
    for rule in rules.REGISTRY:
        pairs = pairs.with_columns(**rule.audit(pairs, loaded.get(rule.name)))
    return pairs.with_columns(pl.Series(NAME_LEFT, names.suspects(pairs["caption"].to_list()), dtype=pl.Boolean))


def facts_of(pairs: pl.DataFrame, split: Split) -> pl.DataFrame:
    """What the expectations on the whole set need of one batch: hashes and digests instead of rows.

    Args:
        pairs: rows of ``PAIRS``.
        split: the hold-outs.

    Returns:
        Five rows a pair: ``hash``, what it is the hash of (``of``; of ``pair`` of the picture with the first caption),
        the pair's ``row`` in the batch, and its ``kind``: ``train``, ``unseen`` or ``seen`` for a test set with such
        captions, or ``other``. And two rows for each further caption of a pair: ``drawn``, because only those trainings
        see it that draw among captions.
    """
    kinds = {TRAIN: "train"} | {each.name: each.captions for each in split.holdouts if each.captions != "any"}
    texts = captions.apart(pairs)
    several = captions.PAIR in texts.columns
    rows = texts if several else texts.with_row_index(captions.PAIR)
    kind = pl.col("split").replace_strict(kinds, default="other", return_dtype=_KIND)
    facts = rows.select(
        row=captions.PAIR,
        kind=pl.when(pl.col(captions.PAIR).is_first_distinct()).then(kind).otherwise(pl.lit("drawn", _KIND)),
    )
    values = {
        "key": hashes(rows["key"]),
        "caption_original": hashes(rows["caption_original"]),
        "caption": hashes(rows["caption"]),
        "picture": picture_digests(rows),
    }
    values["pair"] = values["picture"] ^ values["caption_original"]
    tables = [
        facts.select(hash=pl.Series(value), of=pl.lit(name, _OF), row="row", kind="kind")
        for name, value in values.items()
    ]
    told = pl.concat(tables).filter((pl.col("of") != "pair") | (pl.col("kind") != "drawn"))
    # A caption occurs once in a pair, also where two of its captions have the same normal form.
    return told.unique(["of", "row", "hash"], keep="first", maintain_order=True) if several else told


@dataclass(frozen=True)
class Dataset:
    """What breaks the expectations on a whole set, or on the pairs whose hashes are in one range.

    Attributes:
        row: by column of the expectations, the number of hashes that break one; of ``most_frequent_caption`` how often
            the most frequent caption occurs; of ``repeated_pairs`` how many pairs have picture and caption of another.
        samples: by the same columns, the first pairs with such a hash, as batch and row in the batch.
    """

    row: dict[str, int]
    samples: dict[str, list[tuple[int, int]]]


def summarize(facts: pl.DataFrame) -> Dataset:
    """Find what breaks the expectations among the hashes of one range.

    Args:
        facts: ``facts_of`` all batches, of each hash in some range all rows, with the number of their ``batch``.
    """

    def has(kind: str) -> pl.Expr:
        return (pl.col("kind") == kind).any()

    by_hash = pl.col("of"), pl.col("hash")
    known = facts.group_by(by_hash).agg(
        rows=pl.len(),
        train=has("train"),
        trained=has("train") | has("drawn"),
        unseen=has("unseen"),
        seen=has("seen"),
        tested=(~pl.col("kind").is_in(["train", "drawn"])).any(),
    )
    most = max(known.filter(of="caption_original")["rows"], default=0)
    breaks = {
        "duplicate_keys": (pl.col("of") == "key") & (pl.col("rows") > 1),
        "most_frequent_caption": (pl.col("of") == "caption_original") & (pl.col("rows") == most),
        "unseen_captions_in_train": (pl.col("of") == "caption") & pl.col("trained") & pl.col("unseen"),
        "seen_captions_not_in_train": (pl.col("of") == "caption") & pl.col("seen") & ~pl.col("train"),
        "holdout_pictures_in_train": (pl.col("of") == "picture") & pl.col("train") & pl.col("tested"),
    }
    row, samples = {}, {}
    for name, condition in breaks.items():
        offenders = known.filter(condition)
        first = (
            facts.join(offenders, on=["of", "hash"], how="semi")
            .select("batch", "row")
            .bottom_k(SAMPLES, by=["batch", "row"])
        )
        row[name], samples[name] = len(offenders), sorted(first.iter_rows())
    repeated = known.filter(of="pair").select((pl.col("rows") - 1).sum()).item()
    return Dataset(row | {"most_frequent_caption": most, REPEATED: repeated}, samples)


def join(ranges: Sequence[Dataset]) -> Dataset:
    """Add up what was found in all ranges of hashes."""
    row = {name: sum(each.row[name] for each in ranges) for name in ranges[0].row}
    row["most_frequent_caption"] = max(each.row["most_frequent_caption"] for each in ranges)

    def samples(name: str) -> list[tuple[int, int]]:
        offending = (each for each in ranges if name != "most_frequent_caption" or each.row[name] == row[name])
        return sorted(sample for each in offending for sample in each.samples[name])[:SAMPLES]

    return Dataset(row, {name: samples(name) for name in ranges[0].samples})
