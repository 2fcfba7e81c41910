"""What the filter does with a table of pairs: put captions right, compute, decide, mask names. It needs no Ray."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from wukong.config.filter import Filter
from wukong.curate import captions, duplicates, names, near_duplicates, rules, split
from wukong.curate.caption_counts import CaptionCounts, Hashes
from wukong.curate.pairs import CAPTIONS, DROPPED, OPTIONAL, schema_of
from wukong.curate.rule import Comparison
from wukong.curate.text import clean


def apply_rules(
    pairs: pl.DataFrame, settings: Filter, counts: CaptionCounts, loaded: Mapping[str, Any]
) -> pl.DataFrame:
    """Apply the rules that need neither pictures nor other pairs, and mask the names of persons in what is left.

    Of several captions each is judged. The first that is left is the pair's, so a pair is dropped if none is left, for
    the reason of the first.

    Args:
        pairs: the pairs of a crawl, as ``wukong.curate.pairs.read_pairs`` gives them.
        settings: the thresholds.
        counts: occurrences of captions in the whole corpus.
        loaded: what ``wukong.curate.rules.load`` has read.

    Returns:
        The columns of ``DROPPED``; ``dropped_by`` is null for a pair that is left, and columns of pictures are null.
    """
    rows = captions.apart(pairs)
    original = rows["caption"]
    columns = rules.compute(rows.with_columns(clean.cleaned(original, settings)), settings, counts, loaded)
    columns = columns.with_columns(dropped_by=rules.decide(columns, settings), caption_original=original)
    columns = columns.with_columns(**_later(columns, settings))
    if settings.mask_names:
        kept = columns["dropped_by"].is_null()
        masked = pl.Series(names.mask(columns["caption"].filter(kept), settings.name_care), dtype=pl.String)
        columns = columns.with_columns(caption=columns["caption"].scatter(kept.arg_true(), masked))
    return _stored(captions.together(columns))


def apply_picture_rules(
    judged: pl.DataFrame, computed: pl.DataFrame, settings: Filter, loaded: Mapping[str, Any]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Apply the rules that read pictures.

    Args:
        judged: what ``apply_rules`` returned.
        computed: what ``wukong.curate.rules.compute_from_pictures`` returned.
        settings: the thresholds.
        loaded: what ``wukong.curate.rules.load`` has read for these rules.

    Returns:
        The columns of ``DROPPED``, and the further counts of the rules.
    """
    by = [name for name in ("key", "caption") if name in computed.columns]
    rows = captions.apart(judged).drop((name for name in computed.columns if name not in by), strict=False)
    joined = rules.look_up(rows.join(computed, on=by, how="left", maintain_order="left"), settings, loaded)
    decided = captions.together(joined.with_columns(rules.decide(joined, settings, "pictures")))
    return _stored(decided), rules.counts(decided.filter(judged["dropped_by"].is_null()), settings)


def apply_comparisons(
    judged: pl.DataFrame, repeats: Mapping[str, Hashes], near: pl.DataFrame | None, settings: Filter
) -> pl.DataFrame:
    """Apply the rules that compare all pairs with each other.

    Args:
        judged: what ``apply_rules`` or ``apply_picture_rules`` returned.
        repeats: by a comparison's column, keys as numbers of the pairs that repeat an earlier one.
        near: what ``wukong.curate.near_duplicates.nearest`` found; None where it was not asked.
        settings: which rules are on.
    """
    if not repeats and near is None:
        return judged
    keys = duplicates.numbers(judged["key"])
    compared = judged.with_columns(
        **{column: pl.Series(np.isin(keys, repeated)) for column, repeated in repeats.items()}
    )
    if near is not None:
        cosines = near_duplicates.best(near).select("key", near_duplicates.COSINE)
        compared = compared.drop(near_duplicates.COSINE).join(cosines, on="key", how="left", maintain_order="left")
    return _stored(compared.with_columns(rules.decide(compared, settings, "corpus")))


def apply_overlaps(
    judged: pl.DataFrame, found: pl.DataFrame, found_captions: pl.DataFrame, settings: Filter
) -> pl.DataFrame:
    """Apply the rules that compare pairs with test sets. Of several captions only those of a test set are dropped.

    Args:
        judged: what ``apply_comparisons`` returned.
        found: pairs that show a test picture, columns of ``wukong.curate.overlap.FOUND``.
        found_captions: captions of a test set, columns of ``wukong.curate.overlap.FOUND_CAPTIONS``.
        settings: which rules are on.
    """
    first = found.select("key", overlap=pl.format("{}/{}", "set", "picture")).unique("key", keep="first")
    captioned = found_captions.rename({"set": "overlap_caption"}).unique(["key", "caption_original"], keep="first")
    rows = captions.apart(judged).drop("overlap", "overlap_caption")
    rows = rows.join(first, on="key", how="left", maintain_order="left")
    rows = rows.join(captioned, on=["key", "caption_original"], how="left", maintain_order="left")
    return _stored(captions.together(rows.with_columns(rules.decide(rows, settings, "tests"))))


def hold_back(assigned: pl.DataFrame, settings: Filter) -> pl.DataFrame:
    """Give the pairs that are in no split their drop reason.

    Args:
        assigned: pairs that passed every rule, with ``split`` of ``wukong.curate.split.assign``.
        settings: the filter's settings.
    """
    return assigned.with_columns(rules.decide(assigned, settings, "split"))


def without_tested_captions(assigned: pl.DataFrame, settings: Filter) -> pl.DataFrame:
    """Leave out, of pairs with several captions, those that training may not see; a pair of a test set keeps its first.

    Args:
        assigned: pairs that passed every rule, with ``split`` of ``wukong.curate.split.assign``.
        settings: the filter's settings.
    """
    if CAPTIONS.name not in assigned.columns:
        return assigned
    rows = captions.apart(assigned)
    stays = (pl.col("split") == split.TRAIN) & ~split.caption_held_out(rows, settings.split)
    return captions.together(rows.filter(stays | pl.col(captions.PAIR).is_first_distinct()))


def count_near(pairs: pl.DataFrame) -> dict[str, int]:
    """How many of some pairs were compared by their vectors, and how many go at each threshold.

    Args:
        pairs: after ``apply_comparisons``, or stored ones, kept or dropped.
    """
    if near_duplicates.COSINE not in pairs.columns:
        return {}
    if "dropped_by" in pairs.columns:
        earlier = ("pairs", "pictures")
        before = [rule.name for rule in rules.REGISTRY if rule.decided in earlier or isinstance(rule, Comparison)]
        pairs = pairs.filter(~pl.col("dropped_by").is_in(before).fill_null(value=False))
    return near_duplicates.counts(pairs)


def count_reasons(tables: Iterable[pl.DataFrame], reasons: Iterable[str]) -> dict[str, int]:
    """Count the rows with each of some drop reasons."""
    counts = dict.fromkeys(reasons, 0)
    for table in tables:
        for reason, rows in table["dropped_by"].drop_nulls().value_counts().iter_rows():
            if reason in counts:
                counts[reason] += rows
    return counts


def _stored(pairs: pl.DataFrame) -> pl.DataFrame:
    return pairs.select(schema_of(pairs, DROPPED).names)


def _later(computed: pl.DataFrame, settings: Filter) -> dict[str, pl.Expr]:
    """The stored columns that come of pictures or of what is looked up, as nulls."""
    missing = ({*DROPPED.names} | rules.optional_columns(settings)) - {*computed.columns}
    empty = pl.DataFrame(pa.schema([*DROPPED, *OPTIONAL]).empty_table())
    return {name: pl.lit(None, dtype) for name, dtype in empty.schema.items() if name in missing}
