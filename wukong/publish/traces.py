"""Find and remove what still names pairs that were taken down: in records, pages and answers, beside the tables.

A pair is named by its key, its URL, the digest of its image, or its caption if no other pair has that caption.

- JSON is rewritten: the record of an example, an alignment or an error that names such a pair goes.
- The ids of images in stored answers are replaced by ``taken-down-N``, the same for every model, so that answers can
  still be compared query by query.
- A page (HTML) that names a pair, or shows pictures and does not say of which pairs, is deleted.
"""

import html
import json
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from typing import Any

import ahocorasick_rs
import pyarrow as pa
import pyarrow.parquet as pq

from wukong.errors import DataError
from wukong.store import storage

TAKEN_DOWN = "taken-down"
"""What an id in stored answers is replaced by, with the number of its row."""

_GONE = object()
_CAPTIONS = {"caption", "caption_original", "text"}  # the fields of records that hold captions
_SHORT = 4
_SHOWN = 40  # characters of a caption that pages show


class Traces:
    """What names pairs that were taken down.

    Args:
        keys: keys of the pairs.
        words: their URLs and the digests of their images.
        captions: captions that no other pair has.
    """

    def __init__(self, keys: Collection[str], words: Collection[str] = (), captions: Collection[str] = ()) -> None:
        self._keys = frozenset(keys)
        self._words = tuple(sorted({*keys, *words} - {""}))
        self.captions = frozenset(captions) - {""}

    @cached_property
    def _in_records(self) -> Any:
        return ahocorasick_rs.AhoCorasick(self._words)

    @cached_property
    def _patterns(self) -> list[tuple[str, str]]:
        """What pages show of captions, each with its caption."""
        # A caption of one or two characters is part of many words; alone it stands between marks of HTML.
        patterns: list[tuple[str, str]] = []
        for caption in self.captions:
            shown = caption if len(caption) <= _SHOWN else caption[: _SHOWN - 1]
            alone = (f">{caption}<", f'"{caption}"', f" {caption}<", f"{caption}:")
            patterns += [(pattern, caption) for pattern in ([shown] if len(caption) > _SHORT else alone)]
        return patterns

    @cached_property
    def _in_pages(self) -> Any:
        return ahocorasick_rs.AhoCorasick([*self._words, *(pattern for pattern, _ in self._patterns)])

    def captions_in(self, name: str, data: bytes) -> set[str]:
        """Return the captions that a file shows where nothing else in it decides that it goes; answers show none.

        Args:
            name: name of the file; its end says what it is.
            data: its content.
        """
        if name.endswith(".json"):
            try:
                left = Traces(self._words).without(json.loads(data))
            except ValueError:
                return set()
            return {caption for caption in _fields_of_captions(left) if caption in self.captions}
        text = data.decode("utf-8", "replace")
        if not name.endswith(".html") or self.named_in(text) or self.named_in(html.unescape(text)):
            return set()
        finder = ahocorasick_rs.AhoCorasick([pattern for pattern, _ in self._patterns])
        matches = [finder.find_matches_as_indexes(each, overlapping=True) for each in (text, html.unescape(text))]
        return {self._patterns[number][1] for each in matches for number, _, _ in each}

    def named_in(self, text: str) -> bool:
        """Return whether a text holds a key, a URL or a digest."""
        return bool(self._words) and bool(self._in_records.find_matches_as_indexes(text))

    def in_page(self, page: bytes, *, unsaid: bool = True) -> bool:
        """Return whether a page names a pair.

        Args:
            page: HTML. The pages of this project have the key of each picture in an attribute ``data-key``.
            unsaid: the answer for a page that shows pictures and does not say of which pairs.
        """
        text = page.decode("utf-8", "replace")
        if unsaid and "data:image/" in text and "data-key=" not in text:
            return True
        return bool(self._in_pages.find_matches_as_indexes(text)) or bool(
            self._in_pages.find_matches_as_indexes(html.unescape(text))
        )

    def in_file(self, name: str, data: bytes) -> bool:
        """Return whether a record, a page or stored answers name a pair; other tables are not looked at.

        Args:
            name: name of the file; its end says what it is.
            data: its content.
        """
        return self.in_page(data) if name.endswith(".html") else self.without_in_file(name, data) is not None

    def without_in_file(self, name: str, data: bytes) -> bytes | None:
        """Return a record or stored answers without what names the pairs; None if nothing does."""
        return self.without_in_json(data) if name.endswith(".json") else self.without_in_answers(data)

    def without(self, value: Any) -> Any:
        """Return a JSON value without what names the pairs; equal to the value if nothing does.

        An object goes whole if a text of it names a pair, and so does a row (a list of texts and numbers). An entry
        whose name or value goes is left out.
        """
        left = self._left(value)
        return None if left is _GONE else left

    def _left(self, value: Any, field: str = "") -> Any:
        if isinstance(value, str):
            named = (field in _CAPTIONS and value in self.captions) or self.named_in(value)
            return _GONE if named else value
        if isinstance(value, list):
            left = [self._left(each, field) for each in value]
            if any(after is _GONE and isinstance(before, str) for before, after in zip(value, left, strict=True)):
                return _GONE
            return [each for each in left if each is not _GONE]
        if isinstance(value, dict):
            entries = {name: self._left(each, name) for name, each in value.items() if not self.named_in(name)}
            if any(each is _GONE and isinstance(value[name], str) for name, each in entries.items()):
                return _GONE
            return {name: each for name, each in entries.items() if each is not _GONE}
        return value

    def without_in_json(self, data: bytes) -> bytes | None:
        """Return the bytes of a JSON file without what names the pairs; None if nothing does.

        Raises:
            DataError: it names a pair and is not valid JSON.
        """
        text = data.decode("utf-8", "replace")
        try:
            value = json.loads(text)
        except ValueError as error:  # for instance an empty file, as of a lock
            if self.named_in(text):
                raise DataError(f"a file names pairs and is not valid JSON ({error}): {text[:80]!r}") from error
            return None
        left = self.without(value)
        return None if left == value else storage.json_bytes(left)

    def without_in_answers(self, data: bytes) -> bytes | None:
        """Return stored answers with other ids for the images of the pairs; None if there is none of them.

        Args:
            data: a Parquet file of ``wukong.evaluate.answers``.
        """
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        if "query" not in table.column_names:
            return None
        queries, shown = table["query"].to_pylist(), table["pictures"].to_pylist()
        names: dict[str, str] = {}
        for query, pictures, number in zip(queries, shown, _numbers_within(table["model"].to_pylist()), strict=True):
            for place, key in enumerate(dict.fromkeys([query, *(pictures or ())])):
                if key in self._keys:
                    names.setdefault(key, f"{TAKEN_DOWN}-{number}" + (f"-{place}" if place > 1 else ""))
        if not names:
            return None
        renamed = {
            "query": [names.get(query, query) for query in queries],
            "pictures": [pictures and [names.get(each, each) for each in pictures] for pictures in shown],
        }
        for column, field in enumerate(table.schema):
            if field.name in renamed:
                table = table.set_column(column, field, pa.array(renamed[field.name], field.type))
        target = pa.BufferOutputStream()
        pq.write_table(table, target, compression="zstd")
        return bytes(target.getvalue())


def _fields_of_captions(value: Any, field: str = "") -> Iterator[str]:
    if isinstance(value, str) and field in _CAPTIONS:
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _fields_of_captions(each, field)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _fields_of_captions(each, name)


def _numbers_within(groups: Iterable[str]) -> list[int]:
    """Return for each row its number among the rows of its group."""
    seen: dict[str, int] = {}
    numbers = []
    for group in groups:
        numbers.append(seen.get(group, 0))
        seen[group] = numbers[-1] + 1
    return numbers
