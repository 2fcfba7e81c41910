"""The filters of sections 3.1 and 3.2: compute columns, then decide over them.

Each rule's module computes a column and knows no threshold; ``decide`` holds the thresholds and knows no caption. So a
threshold can change without computing anything again, and every dropped pair keeps the name of the first rule, in the
order of ``RULES``, that dropped it. The order is the paper's, but for ``meaningless``, which comes before the language
check so that ``000.jpg`` is named for what it is.
"""

import polars as pl

from wukong.config import Filter
from wukong.curate.rules import length, size
from wukong.curate.rules.frequency import CaptionCounts, hashes_of_normal
from wukong.curate.rules.language import scripts
from wukong.curate.rules.meaningless import is_meaningless
from wukong.curate.rules.sensitive import SensitiveWords
from wukong.curate.text.normalize import normal_forms

RULES = ("size", "aspect_ratio", "meaningless", "language", "length", "frequency", "sensitive")
"""The rules by name, in the order in which they drop pairs."""

PICTURE_RULES = ("similarity", "duplicate_image")
"""Rules beyond the paper's that must look at pictures; they come last, and are off by default."""

HELD_BACK = "held_back"
"""Why a pair that passed every rule is in no split: training may not see it and no hold-out takes it."""


def compute(pairs: pl.DataFrame, settings: Filter, counts: CaptionCounts, words: SensitiveWords) -> pl.DataFrame:
    """Add the columns that ``decide`` decides over; never raises on any caption.

    Args:
        pairs: one row a pair, with ``caption``, ``width`` and ``height``.
        settings: which unit captions are measured in.
        counts: occurrences of captions in the whole corpus.
        words: the sensitive words.

    Returns:
        ``pairs`` with ``shorter_side`` (pixels), ``aspect_ratio``, ``meaningless``, ``chinese``, ``length`` (in the
        unit), ``caption_count`` and ``sensitive`` (category or null).
    """
    caption = pairs["caption"]
    normal = normal_forms(caption)
    han, chinese = scripts(caption)
    width, height = pl.col("width"), pl.col("height")
    return pairs.with_columns(
        shorter_side=size.shorter_side(width, height),
        aspect_ratio=size.aspect_ratio(width, height),
        meaningless=is_meaningless(pl.lit(normal)),
        chinese=chinese,
        length=han if settings.length_unit == "character" else length.COUNTERS[settings.length_unit](caption),
        caption_count=pl.Series(counts.of(hashes_of_normal(normal)), dtype=pl.Int64),
        sensitive=words.categories_of_normal(normal),
    )


def decide(columns: pl.DataFrame, settings: Filter) -> pl.Series:
    """Name, for each row that ``compute`` gave, the first rule that drops it; null where none does."""
    drops = {
        "size": pl.col("shorter_side") < settings.min_side,
        "aspect_ratio": pl.col("aspect_ratio") > settings.max_aspect_ratio,
        "meaningless": pl.col("meaningless"),
        "language": ~pl.col("chinese") & (settings.min_length > 0),
        "length": ~pl.col("length").is_between(settings.min_length, settings.max_length),
        "frequency": pl.col("caption_count") > settings.max_caption_count,
        "sensitive": pl.col("sensitive").is_not_null(),
    }
    first = pl.coalesce(pl.when(drops[rule]).then(pl.lit(rule)) for rule in RULES)
    return columns.select(dropped_by=first)["dropped_by"]


def applied(settings: Filter) -> tuple[str, ...]:
    """The rules that are on, by name, in the order in which they drop pairs."""
    on = {"similarity": settings.similarity_model is not None, "duplicate_image": settings.duplicate_images != "keep"}
    return (*RULES, *(rule for rule in PICTURE_RULES if on[rule]))
