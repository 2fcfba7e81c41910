"""What each rule removed from a set, by kind and by source, and which of the removed pictures a card may show blurred.

The tables of dropped pairs are counted one by one and the counts added up, so a set of any size needs the memory of one
table.
"""

import fnmatch
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Any, get_args

import polars as pl

from wukong.config.experiment import Source
from wukong.config.filter import Filter
from wukong.curate import repack
from wukong.curate.rule import Decided, Rule
from wukong.curate.rules import REGISTRY
from wukong.errors import DataError
from wukong.store import damage, storage
from wukong.store.manifest import Manifest

PATH = "removed.json"
"""Where a validate stage stores the counts. No key is in it."""

ELSEWHERE = ""
"""Stands for a source, for pairs of none that the experiment names."""

MOST_SHOWN = 20
"""Pictures that a card shows at most."""

_WHEN: tuple[Decided, ...] = get_args(Decided)


@dataclass
class Removed:
    """Counts over dropped pairs.

    Attributes:
        kinds: pairs by rule and kind; only rules that tell kinds (``Rule.kinds``) are there.
        sources: pairs by rule and name of the source.
        candidates: by rule, the pairs that come first in a random order: their places in it, and their keys.
    """

    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    candidates: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def add(self, other: "Removed") -> None:
        """Add the counts over other pairs to these."""
        for mine, theirs in ((self.kinds, other.kinds), (self.sources, other.sources)):
            for rule, counts in theirs.items():
                mine.setdefault(rule, Counter()).update(counts)
        for rule, places in other.candidates.items():
            self.candidates[rule] = heapq.nsmallest(MOST_SHOWN, [*self.candidates.get(rule, ()), *places])

    def chosen(self) -> list[tuple[str, str]]:
        """Return the pairs that a card shows, rule and key: of each rule one, then of each a second, and so on."""
        turns = [
            (turn, place, rule.name, key)
            for place, rule in enumerate(REGISTRY)
            for turn, (_, key) in enumerate(self.candidates.get(rule.name, ()))
        ]
        return [(name, key) for _, _, name, key in sorted(sorted(turns)[:MOST_SHOWN], key=itemgetter(1, 0))]

    def as_json(self) -> dict[str, Any]:
        """Return the counts as a JSON value."""
        return {
            what: {rule: dict(sorted(counts.items())) for rule, counts in sorted(by_rule.items())}
            for what, by_rule in (("kinds", self.kinds), ("sources", self.sources))
        }


def read(validated: Manifest) -> Removed:
    """Read the counts that a validate stage stored; one of an earlier version counted nothing.

    Raises:
        DataError: the file holds something else.
        StorageError: it cannot be read, or was altered.
    """
    if not validated.parts.has(PATH):
        return Removed()
    uri, sha256 = validated.file(PATH)
    value = storage.read_json(uri, sha256)
    try:
        kinds, sources = (
            {str(rule): Counter({str(name): int(rows) for name, rows in counts.items()}) for rule, counts in each}
            for each in (value["kinds"].items(), value["sources"].items())
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{uri} does not hold the counts of dropped pairs ({error}): {damage.remedy(uri)}") from error
    return Removed(kinds, sources)


def merge(tables: Iterable[Removed]) -> Removed:
    """Add up the counts of tables, of which one is held at a time."""
    whole = Removed()
    for each in tables:
        whole.add(each)
    return whole


def count(table: pl.DataFrame, settings: Filter, sources: Sequence[Source]) -> Removed:
    """Count over one table of dropped pairs.

    Args:
        table: rows of ``wukong.curate.pairs.DROPPED``.
        settings: those that the filter had.
        sources: a pair counts for each whose pattern its URL has.
    """
    matches = [(source.name, re.compile(fnmatch.translate(source.pattern)).match) for source in sources]
    found = Removed(candidates=candidates(table, settings))
    for rule, rows in _by_rule(table):
        if (kinds := rule.kinds(rows, settings)) is not None:
            found.kinds[rule.name] = Counter(kinds.drop_nulls().to_list())
        if matches:
            named = ([name for name, match in matches if match(url)] or [ELSEWHERE] for url in rows["url"])
            found.sources[rule.name] = Counter(chain.from_iterable(named))
    return found


def candidates(table: pl.DataFrame, settings: Filter) -> dict[str, list[tuple[int, str]]]:
    """Return, by rule, the pairs of a table of dropped pairs that come first in a random order; see ``Removed``."""
    showable = _showable(settings)
    return {
        rule.name: heapq.nsmallest(MOST_SHOWN, zip(repack.positions(keys, settings.seed), keys, strict=True))
        for rule, rows in _by_rule(table)
        for keys in [rows["key"]]
        if rule.name in showable
    }


def _by_rule(table: pl.DataFrame) -> Iterator[tuple[Rule, pl.DataFrame]]:
    for rule in REGISTRY:
        rows = table.filter(pl.col("dropped_by") == rule.name)
        if len(rows):
            yield rule, rows


def _showable(settings: Filter) -> frozenset[str]:
    """The names of the rules of whose pictures blurred examples may be shown.

    A picture that must never be shown (``Rule.never_shown``) may have been dropped for another reason before it was
    compared. So where such a rule is on, only those that decide after it are among them: what they drop, it let pass.
    """
    applied = [rule for rule in REGISTRY if rule.enabled(settings)]
    order = {rule.name: (_WHEN.index(rule.decided), rule.place) for rule in applied}
    last = max((order[rule.name] for rule in applied if rule.never_shown), default=(-1, -1))
    return frozenset(name for name, when in order.items() if when > last)
