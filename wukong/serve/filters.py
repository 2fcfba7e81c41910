"""What people filter pictures by: a filter says which rows of an index may be found, and a search sees these alone."""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, ValidationError

from wukong.crawl.uploads import RefusedError
from wukong.runtime.language import _, joined
from wukong.serve.index import Index
from wukong.serve.query import search_forms

Mask = npt.NDArray[np.bool_]
_EPOCH = date(1970, 1, 1)
_UNKNOWN = -1
"""In a column of numbers."""
_KEPT = 8
"""Selections that are kept, because the pages of a result have the same filters."""
_MOST_LICENCES = 50
_MOST_PIXELS = 1_000_000
NAMES = {
    "source": _("the site"),
    "width": _("the width"),
    "height": _("the height"),
    "date": _("the date"),
    "licence": _("the licence"),
    "group": _("groups of near-duplicates"),
}
"""What a column of an index is called in messages."""


class Filters(BaseModel, frozen=True):
    """What a picture must have to be found. A picture of which a thing is unknown does not have it."""

    source: str = Field(
        "", max_length=253, description="The host from which it comes, or a domain in which that host is; in any case."
    )
    min_width: int = Field(0, ge=0, le=_MOST_PIXELS, description="Its least width in pixels.")
    min_height: int = Field(0, ge=0, le=_MOST_PIXELS, description="Its least height in pixels.")
    since: date | None = Field(None, description="The first day of its date, as 2024-01-31.")
    until: date | None = Field(None, description="The last day of its date.")
    licence: str = Field("", max_length=200, description="Its licence, as the data have it.")
    word: str = Field(
        "",
        max_length=200,
        description="What one of its captions has somewhere, also inside of a word. Both are compared in the form in "
        "which queries are read: half width, lower case, Simplified characters.",
    )
    fold: bool = Field(
        False,
        description="Whether of near-duplicates only the one that is nearest to the query is among the results.",
    )

    @classmethod
    def of_form(cls, fields: Iterable[tuple[str, str]]) -> "Filters":
        """Read what a form sends: names with their values, where what is left empty is not asked.

        Raises:
            RefusedError: (422) a value cannot be read, or a filter is given more than once.
        """
        given = [(name, value) for name, value in fields if name in cls.model_fields and value.strip()]
        cls.refuse_repeated(name for name, _ in given)
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise RefusedError(
                422, _("the filter {name} cannot be read: choose another value").format(name=name)
            ) from error

    @classmethod
    def refuse_repeated(cls, names: Iterable[str]) -> None:
        """Raise RefusedError (422) if a filter is named more than once; other names are not looked at."""
        for name, times in Counter(names).items():
            if times > 1 and name in cls.model_fields:
                raise RefusedError(422, _("the filter {name} is given more than once: give it once").format(name=name))

    @property
    def host(self) -> str:
        """The host that is asked for, in the form in which hosts are compared."""
        return self.source.strip().lower().strip(".")

    @property
    def columns(self) -> frozenset[str]:
        """The columns of an index that are needed."""
        asked = {
            "source": self.source,
            "width": self.min_width,
            "height": self.min_height,
            "date": self.since or self.until,
            "licence": self.licence,
            "group": self.fold,
        }
        return frozenset(name for name, value in asked.items() if value)

    def refuse_unknown(self, columns: frozenset[str]) -> None:
        """Raise RefusedError (422) if the data lack what is asked, or no picture can have it.

        Args:
            columns: those of the index.
        """
        if self.since and self.until and self.since > self.until:
            raise RefusedError(
                422, _("{since} is after {until}: exchange the two dates").format(since=self.since, until=self.until)
            )
        if self.source and not self.host:
            raise RefusedError(
                422,
                _("the source {source!r} names no host: give a host, as images.example.org").format(source=self.source),
            )
        lacking = [NAMES[name] for name in NAMES if name in self.columns - columns]
        if lacking:
            raise RefusedError(
                422,
                _("these pictures cannot be filtered, because the data lack: {names}").format(
                    names=joined(lacking, ", ")
                ),
            )
        if self.word and not search_forms([self.word])[0]:
            raise RefusedError(422, _("there is nothing to read in the word of the caption: give another"))


NO_FILTERS = Filters()


def folded(groups: Iterable[int]) -> list[int]:
    """Return the places of the first picture of each group, and of every picture whose group is not known.

    Args:
        groups: those of ranked pictures, as ``Selection.groups`` gives them.
    """
    first: dict[tuple[int, int], int] = {}
    for place, group in enumerate(groups):
        first.setdefault((group, place if group == _UNKNOWN else 0), place)
    return [*first.values()]


class Selection:
    """Says which pictures of an index pass a filter.

    Args:
        index: the index.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._columns: dict[str, Any] = {name: _arrow(column) for name, column in index.columns.items()}
        self._kept = lru_cache(_KEPT)(self._computed)

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the index has."""
        return frozenset(self._columns)

    @cached_property
    def licences(self) -> tuple[str, ...]:
        """The licences that the pictures have, the most frequent first, at most 50."""
        if "licence" not in self._columns:
            return ()
        counted = pc.value_counts(_plain(self._columns["licence"])).to_pylist()
        named = [each for each in counted if each["values"]]
        return tuple(each["values"] for each in sorted(named, key=lambda each: -each["counts"])[:_MOST_LICENCES])

    def allowed(self, filters: Filters) -> Mask | None:
        """Return which pictures pass, bool [pictures]; None if all do."""
        asks_nothing = not filters.columns - {"group"} and not filters.word
        return None if asks_nothing else self._kept(filters)

    def groups(self, rows: list[int]) -> list[int]:
        """Return the group of near-duplicates of some pictures, the same in all shards; -1 where it is not known."""
        found: list[int] = pc.take(self._columns["group"], pa.array(rows, pa.int64())).to_pylist()
        return found

    def _computed(self, filters: Filters) -> Mask:
        mask = np.ones(len(self._index.keys), np.bool_)

        def need(name: str, test: Callable[[Any], Any]) -> None:
            nonlocal mask
            mask &= _tested(self._columns[name], test)

        if host := filters.host:
            need("source", lambda column: pc.or_(
                pc.equal(pc.utf8_lower(column), host), pc.ends_with(pc.utf8_lower(column), f".{host}")
            ))  # fmt: skip
        if filters.min_width:
            need("width", lambda column: pc.greater_equal(column, filters.min_width))
        if filters.min_height:
            need("height", lambda column: pc.greater_equal(column, filters.min_height))
        if filters.since or filters.until:
            first, last = _days(filters.since or date.min), _days(filters.until or date.max)
            need("date", lambda column: pc.and_(
                pc.not_equal(column, _UNKNOWN), pc.and_(pc.greater_equal(column, first), pc.less_equal(column, last))
            ))  # fmt: skip
        if filters.licence:
            need("licence", lambda column: pc.equal(column, filters.licence))
        if filters.word:
            mask &= self._with_word(search_forms([filters.word])[0])
        return mask

    def _with_word(self, form: str) -> Mask:
        mask = np.zeros(len(self._index.keys), np.bool_)
        captions = pc.indices_nonzero(pc.match_substring(self._index.forms, form))
        mask[self._index.pictures_of.values(captions)] = True
        return mask


def _days(day: date) -> int:
    return (day - _EPOCH).days


def _arrow(column: Any) -> Any:
    return column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column)


def _plain(column: Any) -> Any:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _tested(column: Any, test: Callable[[Any], Any]) -> Mask:
    """Apply a test to each value; of a column with a dictionary to each distinct one. What is unknown does not pass."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    in_dictionary = pa.types.is_dictionary(whole.type)
    passed = pc.take(test(whole.dictionary), whole.indices) if in_dictionary else test(whole)
    mask: Mask = pc.fill_null(passed, False).to_numpy(zero_copy_only=False)
    return mask
