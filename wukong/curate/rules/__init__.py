"""The rules of sections 3.1 and 3.2, one file each: every module of this folder assigns a ``Rule`` to ``RULE``.

To add a rule, add a file; nothing else names it. The experiment's settings, the stored columns, the filter, the gate
and the funnel of each report read ``REGISTRY``. The order is the paper's, with two exceptions: ``meaningless`` comes
before the language check, and the rules that must read pictures come last.

Computing and deciding are apart: ``compute`` adds columns and knows no threshold, ``decide`` alone applies thresholds.

Whoever loads an experiment imports these files: each command and component, and an installation without polars. So they
import polars, which takes 0.15 s, inside the functions that use it.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from pydantic import create_model

from wukong.config.section import Strict
from wukong.curate.rule import HELD_BACK, Batch, Check, Column, Decided, FromPictures, Nearness, PictureBatch, Rule
from wukong.errors import ConfigError
from wukong.runtime.registered import registered

if TYPE_CHECKING:
    import polars as pl

    from wukong.curate.caption_counts import CaptionCounts


_PICTURES, _PICTURES_ON_GPU = 64, 256
"""Pictures of a batch."""


def _ordered() -> tuple[Rule, ...]:
    """The rule of every module of this folder, in the order of their places.

    Raises:
        TypeError: a module has no ``RULE``, or two rules share a place, a setting or a stored column.
    """
    rules = sorted(registered(__name__, "RULE", Rule).values(), key=lambda rule: rule.place)
    for first, second in itertools.combinations(rules, 2):
        if first.place == second.place:
            raise TypeError(f"the rules {first.name!r} and {second.name!r} share a place: each has its own")
        for a, b in ((first.Settings, second.Settings), (first.GateSettings, second.GateSettings)):
            if a is not b and (shared := a.model_fields.keys() & b.model_fields.keys()):
                raise TypeError(f"the rules {first.name!r} and {second.name!r} both have the setting {min(shared)}")
        if shared := {column.name for column in first.stored} & {column.name for column in second.stored}:
            raise TypeError(f"the rules {first.name!r} and {second.name!r} both store the column {min(shared)}")
    return tuple(rules)


REGISTRY = _ordered()
"""All rules, in the order in which they drop pairs."""


def section_of(which: Literal["Settings", "GateSettings"]) -> type[Strict]:
    """The base class of a section of the experiment, with the settings of every rule.

    Args:
        which: ``Settings`` for the section ``filter``, ``GateSettings`` for ``validation``.
    """
    bases = [each for each in dict.fromkeys(getattr(rule, which) for rule in REGISTRY) if each is not Strict]
    # pydantic takes fields from the last base first.
    return create_model(f"Rules_{which}", __base__=tuple(reversed(bases)) or Strict)


def stored_columns(*, optional: bool = False) -> list[Column]:
    """The columns that the rules store with every pair, in their order; or those that only switched-on rules store."""
    placed = [(column.place or rule.place, column) for rule in REGISTRY for column in rule.stored]
    return [column for _, column in sorted(placed, key=itemgetter(0)) if column.optional is optional]


def optional_columns(settings: Strict) -> set[str]:
    """The optional columns that the tables have with these settings."""
    return {column.name for rule in REGISTRY if rule.enabled(settings) for column in rule.stored if column.optional}


def applied(settings: Strict) -> tuple[str, ...]:
    """The rules that are on, by name, in the order in which they drop pairs."""
    return tuple(rule.name for rule in REGISTRY if rule.enabled(settings))


def never_shown() -> tuple[str, ...]:
    """The drop reasons of pairs that nobody may see: whoever shows what was dropped leaves them out."""
    return tuple(rule.name for rule in REGISTRY if rule.never_shown)


def decided(when: Decided, settings: Strict) -> tuple[Rule, ...]:
    """The rules that are on and decide at this time, in the order in which they drop pairs."""
    return tuple(rule for rule in REGISTRY if rule.decided == when and rule.enabled(settings))


def config_of(settings: Strict, *, exclude: Collection[str] = ()) -> dict[str, Any]:
    """The settings as the filter's manifest stores them, with the versions of the rules; they are part of its key.

    Args:
        settings: the filter's settings.
        exclude: settings that are left out, of a section ``SECTION.SETTING``.

    Returns:
        The settings, and under ``rule_versions`` the version of each rule that is on.
    """
    values = settings.model_dump(mode="json")
    for name in exclude:
        section, _, key = name.partition(".")
        if not key:
            values.pop(section, None)
        elif isinstance(values.get(section), dict):
            values[section].pop(key, None)
    return values | {"rule_versions": {rule.name: rule.version for rule in REGISTRY if rule.enabled(settings)}}


def uris(settings: Strict, of: Sequence[Rule] = REGISTRY) -> dict[str, str]:
    """The URIs that the settings of rules name, by setting; those of a list with their places, ``section.setting[0]``.

    Args:
        settings: the filter's settings.
        of: the rules.
    """
    found: dict[str, str] = {}
    for key in (key for rule in of for key in rule.uris):
        value: Any = settings
        for name in key.split("."):
            value = getattr(value, name, None)  # a section may be null
        named = {key: value} if isinstance(value, str) else {f"{key}[{n}]": each for n, each in enumerate(value or ())}
        found |= {name: uri for name, uri in named.items() if uri}
    return found


def digests(settings: Strict, *, late: bool | None = None) -> dict[str, str]:
    """Digests of the content of the files that the settings of the rules name, by setting; they are part of the key.

    Args:
        settings: the filter's settings.
        late: see ``load``; None for all.

    Raises:
        ConfigError: a file cannot be used.
    """
    return {key: digest for rule in _loading(settings, late) for key, digest in rule.digests(settings).items()}


def load(settings: Strict, *, late: bool = False, known: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read what the rules need, for instance word lists, by the rule's name; for ``compute`` and the gate.

    Args:
        settings: the filter's settings.
        late: true for what the rules need that decide after the pictures were read, false for what the others need.
        known: the ``digests`` in the key of the stage that works with it; None if there is no such key.

    Raises:
        ConfigError: it cannot be used, or is not what the key says.
    """
    found = {rule.name: rule.load(settings) for rule in _loading(settings, late)}
    for key, digest in digests(settings, late=late).items() if known is not None else ():
        if known is not None and known.get(key) != digest:
            raise ConfigError(
                f"filter.{key}: what it names was replaced while the filter worked: run it again, which filters by "
                "what is there now"
            )
    return found


def compute(pairs: pl.DataFrame, settings: Strict, counts: CaptionCounts, loaded: Mapping[str, Any]) -> pl.DataFrame:
    """Add the columns that the rules compute from text and sides to a table of pairs; no caption makes it raise.

    Args:
        pairs: one row a pair, with ``caption``, ``width`` and ``height``.
        settings: for instance the unit in which captions are measured.
        counts: occurrences of captions in the whole corpus.
        loaded: what ``load`` has read.

    Returns:
        ``pairs`` with the columns that each rule's ``compute`` names.
    """
    batch = Batch(pairs, counts, loaded)
    columns: dict[str, pl.Expr | pl.Series] = {}
    for rule in REGISTRY:
        columns |= rule.compute(batch, settings)
    return pairs.with_columns(**columns)


def checks(settings: Strict, gate: Strict) -> list[Check]:
    """What the gate expects of every kept pair, in the order of its results."""
    placed = [(rule.place, check) for rule in REGISTRY if (check := rule.check(settings, gate)) is not None]
    return [check for _, check in sorted(placed, key=lambda each: each[1].place or each[0])]


def needs_pictures(settings: Strict) -> bool:
    """Whether a rule must read the pictures of pairs."""
    return bool(_from_pictures(settings))


def picture_thresholds() -> set[str]:
    """Settings that decide over what was computed of pictures: with another value of them no picture is read again."""
    return {key for rule in REGISTRY for key in rule.thresholds}


def columns_of_pictures(settings: Strict) -> list[str]:
    """The columns that the settings ask to be computed from pictures."""
    return [each.column for each in _from_pictures(settings)]


def run_a_model(settings: Strict) -> bool:
    """Whether a rule that is on runs a model on pictures."""
    return any(each.runs_model for each in _from_pictures(settings))


def compute_from_pictures(
    tar: str,
    captions: Mapping[str, Sequence[str]],
    settings: Strict,
    device: str = "cpu",
    loaders: int = 0,
    sha256: str = "",
) -> pl.DataFrame:
    """Compute the columns of the rules that read pictures.

    Args:
        tar: URI of a shard, which is read once.
        captions: the captions of the pairs that are wanted, by key.
        settings: which rules are on.
        device: where a model computes.
        loaders: number of threads that compute a batch each: one decodes while the model runs for another.
        sha256: digest that the shard must have; empty for any.

    Returns:
        ``key`` and the columns that are asked for, one row a pair that is wanted and in the shard. Where a pair has
        several captions: ``key``, ``caption`` and these columns, one row a caption.

    Raises:
        DataError: the shard cannot be read, or a picture not be decoded.
        StorageError: the shard was altered.
    """
    import polars as pl

    from wukong.data.shards import pictures

    asked = _from_pictures(settings)

    def compute(batch: list[tuple[str, str, bytes]]) -> pl.DataFrame:
        keys = [key for key, _, _ in batch]
        texts = [text for _, text, _ in batch]
        names = [f"{key}.jpg of {tar}" for key in keys]
        given = PictureBatch([data for _, _, data in batch], texts, names, device)
        of_caption = {"caption": texts} if several else {}
        columns = {each.column: each.compute(given, settings) for each in asked}
        return pl.DataFrame({"key": keys, **of_caption, **columns})

    several = any(len(each) > 1 for each in captions.values())
    frames = [pl.DataFrame(schema={"key": pl.String})]
    wanted = ((key, text, data) for key, data in pictures(tar, sha256) for text in captions.get(key, ()))
    computing: deque[Future[pl.DataFrame]] = deque()
    with ThreadPoolExecutor(max(loaders, 1)) as threads:
        while batch := list(itertools.islice(wanted, _PICTURES if device == "cpu" else _PICTURES_ON_GPU)):
            computing.append(threads.submit(compute, batch))
            if len(computing) > loaders:
                frames.append(computing.popleft().result())
        frames += [each.result() for each in computing]
    return pl.concat(frames[1:] or frames)


def look_up(pairs: pl.DataFrame, settings: Strict, loaded: Mapping[str, Any]) -> pl.DataFrame:
    """Add the columns that rules look up after the pictures were read.

    Args:
        pairs: one row a caption, with the columns of the crawl and those of pictures.
        settings: which rules are on.
        loaded: what ``load`` has read for these rules.
    """
    for rule in REGISTRY:
        if rule.enabled(settings):
            pairs = pairs.with_columns(**rule.look_up(pairs, settings, loaded.get(rule.name)))
    return pairs


def counts(pairs: pl.DataFrame, settings: Strict) -> dict[str, int]:
    """The further counts of the rules that are on, over pairs whose pictures were read, with ``dropped_by``."""
    on = (rule for rule in REGISTRY if rule.enabled(settings))
    return {name: count for rule in on for name, count in rule.counts(pairs, settings).items()}


def nearness(settings: Strict) -> Nearness | None:
    """The rule that is on and compares the vectors of pairs."""
    return next((rule for rule in decided("corpus", settings) if isinstance(rule, Nearness)), None)


def vectors(pairs: pl.DataFrame, looked: pl.DataFrame, settings: Strict) -> pl.DataFrame:
    """The vectors of pairs by which a ``Nearness`` compares them.

    Args:
        pairs: rows with the stored columns.
        looked: what ``compute_from_pictures`` returned for these pairs and any others.
        settings: the filter's settings.

    Returns:
        ``key``, ``score`` and ``vector`` of the pairs that have a vector, as ``wukong.curate.near_duplicates`` needs
        them.
    """
    import polars as pl

    from wukong.curate import near_duplicates

    asked = nearness(settings)
    if asked is None or asked.vector not in looked.columns:  # no pair of the part was left when pictures were read
        return pl.DataFrame(schema={"key": pl.String, "score": pl.Float64, "vector": pl.Binary})
    further = [name for name in looked.columns if name not in pairs.columns]
    known = looked.select("key", *further).unique("key", keep="first").filter(pl.col(asked.vector).is_not_null())
    joined = pairs.join(known, on="key", how="inner", maintain_order="left")
    return pl.DataFrame(
        [joined["key"], asked.scores(joined, settings).alias("score"), near_duplicates.of_column(joined[asked.vector])]
    )


def decide(columns: pl.DataFrame, settings: Strict, when: Decided | Literal["split"] = "pairs") -> pl.Series:
    """Name, for each row, the first rule that drops it; null where none does. No other function applies a threshold.

    Args:
        columns: what the rules decide over. Where ``dropped_by`` is among them, a reason in it stays.
        settings: the thresholds.
        when: the rules that decide at this time (``Decided``); ``split`` holds back the pairs that are in no split.
    """
    import polars as pl

    if when == "split":
        drops: dict[str, Any] = {HELD_BACK: columns["split"] == HELD_BACK}
    else:
        drops = {rule.name: rule.drops(columns, settings) for rule in decided(when, settings)}
    reasons = [pl.when(name).then(pl.lit(name)) for name in drops]
    earlier = [pl.col("dropped_by")] if "dropped_by" in columns.columns else []
    first = pl.coalesce([*earlier, *reasons, pl.lit(None, pl.String)])
    return columns.with_columns(**drops).with_columns(dropped_by=first)["dropped_by"]


def _loading(settings: Strict, late: bool | None) -> list[Rule]:
    """The rules that are on, or of these those that load what they need late; see ``load``."""
    on = [rule for rule in REGISTRY if rule.enabled(settings)]
    return [rule for rule in on if late is None or (rule.decided == "pictures") is late]


def _from_pictures(settings: Strict) -> list[FromPictures]:
    """What the settings ask to be computed from pictures: stored columns in their order, then the others."""
    on = [rule for rule in REGISTRY if rule.enabled(settings)]
    by_column = {each.column: each for rule in on for each in rule.from_pictures(settings)}
    places = {column.name: place for place, column in enumerate([*stored_columns(), *stored_columns(optional=True)])}
    return sorted(by_column.values(), key=lambda each: (places.get(each.column, len(places)), each.column))
