"""Reuse the searches and images of an earlier crawl instead of requesting them again."""

import bisect
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wukong.config.crawl import Crawl
from wukong.crawl.found import FOUND
from wukong.crawl.status import Status
from wukong.data import shards
from wukong.data.crawl_part import CrawlPart
from wukong.errors import ConfigError
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

log = logging.getLogger(__name__)

QUERIES = "queries.parquet"
INDEX = "index.parquet"

_QUERIES_SCHEMA = pa.schema([pa.field("query", pa.string(), nullable=False), pa.field("failed", pa.string())])
INDEX_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("part", "first_key", "last_key")])
_SEARCH_SETTINGS = ("engine", "endpoint", "max_results_per_query")
_PICTURE_SETTINGS = (
    "min_side",
    "max_aspect_ratio",
    "resize",
    "image_size",
    "jpeg_quality",
    "keep_small_jpegs",
    "max_bytes",
    "max_pixels",
)
_POLITE_SETTINGS = ("robots_txt", "respect_noai")
_PLAN_COLUMNS = frozenset({"key", "url", "caption", "queries", "engine", "page_url", "captions"})


def write_queries(uri: str, queries: Sequence[str], failed: Mapping[str, str]) -> None:
    """Write the queries of a crawl, with the error of each that failed."""
    columns = {"query": list(queries), "failed": [failed.get(query) for query in queries]}
    storage.write_table(uri, pa.table(columns, schema=_QUERIES_SCHEMA))


def manifest_of(config: Crawl) -> Manifest | None:
    """Return the manifest of the crawl that ``crawl.previous`` names; None if it is not set.

    Raises:
        ConfigError: ``crawl.previous`` is not a crawl, its images were stored with other settings, or it ignored wishes
            of owners that this one respects.
        DataError: the crawl has not finished.
    """
    if config.previous is None:
        if config.retry_failed:
            raise ConfigError("crawl.retry_failed needs crawl.previous, the URI of the crawl whose failures to retry")
        return None
    earlier = manifest.load(config.previous)
    if earlier.stage != "crawl":
        raise ConfigError(f"crawl.previous: {config.previous} is the manifest of a {earlier.stage!r} stage")
    settings = config.model_dump(mode="json")
    for name in _PICTURE_SETTINGS:
        if earlier.config.get(name) != settings[name]:
            raise ConfigError(
                f"crawl.previous: {config.previous} was made with crawl.{name} = {earlier.config.get(name)!r}, now "
                f"{settings[name]!r}; its pictures can be reused only with the same settings"
            )
    for name in _POLITE_SETTINGS:
        if settings["politeness"][name] and not earlier.config.get("politeness", {}).get(name, True):
            raise ConfigError(
                f"crawl.previous: {config.previous} was made with crawl.politeness.{name} = false, now true; it has "
                "pictures that this crawl would not fetch. Crawl anew, or set it to false here too"
            )
    return earlier


@dataclass(frozen=True)
class Previous:
    """An earlier crawl.

    Attributes:
        manifest: its manifest.
        queries: its queries whose results can be reused.
        index: table of its parts with their first and last keys, in the order of the keys.
        retry_failed: whether URLs that failed because of the network or a server are requested again.
    """

    manifest: Manifest
    queries: frozenset[str]
    index: pa.Table
    retry_failed: bool

    @classmethod
    def open(cls, config: Crawl) -> "Previous | None":
        """Open the crawl that ``crawl.previous`` names; return None if it is not set.

        Raises:
            ConfigError: ``crawl.previous`` is not a crawl, or its images were stored with other settings.
            DataError: the crawl has not finished.
        """
        earlier = manifest_of(config)
        if earlier is None:
            return None
        settings = config.model_dump(mode="json")
        same_engine = all(earlier.config.get(name) == settings[name] for name in _SEARCH_SETTINGS)
        return cls._of(earlier, same_engine, config.retry_failed)

    @classmethod
    def of_failed(cls, attempt: Manifest) -> "Previous":
        """Reuse a failed attempt at the same crawl, except for URLs and queries that may succeed if retried."""
        return cls._of(attempt, bool(attempt.counts["urls"]), retry_failed=True)

    @classmethod
    def _of(cls, earlier: Manifest, usable: bool, retry_failed: bool) -> "Previous":
        digest, there = earlier.parts.sha256, {*storage.list_files(storage.join(earlier.uri, "search"))}
        searched = storage.read_table(storage.join(earlier.uri, QUERIES), sha256=digest(QUERIES))
        if usable and not there.issuperset(earlier.part_uris("search/", ".parquet")):
            log.warning("results of searches are gone from %s: all words are searched again", earlier.uri)
            usable = False
        asked = searched["query"].to_pylist() if usable else []
        failed = searched["failed"].to_pylist()
        answered = [query for query, why in zip(asked, failed, strict=False) if why is None or not retry_failed]
        index = storage.read_table(storage.join(earlier.uri, INDEX), sha256=digest(INDEX)).combine_chunks()
        return cls(earlier, frozenset(answered), index, retry_failed)

    def search_files(self) -> list[tuple[str, str]]:
        """Return the URIs and digests of its search results."""
        return [self.manifest.file(path) for path in self.manifest.parts.below("search/", ".parquet").paths]

    def parts_between(self, first: str, last: str) -> list[CrawlPart]:
        """Return its parts that may hold keys from ``first`` to ``last``."""
        numbers = range(self.index.num_rows)
        start = bisect.bisect_left(numbers, first, key=lambda number: self.index["last_key"][number].as_py())
        end = bisect.bisect_right(numbers, last, key=lambda number: self.index["first_key"][number].as_py())
        parts = self.index["part"].slice(start, max(0, end - start)).to_pylist()
        digest = self.manifest.parts.sha256
        return [
            CrawlPart(storage.join(self.manifest.uri, part), digest(f"{part}.parquet"), digest(f"{part}.tar"))
            for part in parts
        ]


def reuse_results(uri: str, sha256: str, positions: Mapping[str, int], results_per_query: int) -> pa.Table:
    """Read the search results of queries from an earlier crawl, and renumber them for the new query list.

    Args:
        uri: a search file of the earlier crawl.
        sha256: its digest.
        positions: query -> position in the new query list, for the queries to reuse.
        results_per_query: maximum number of results of a query, the same in both crawls.
    """
    table = storage.read_table(uri, sha256=sha256)
    table = table.filter(pc.is_in(table["query"], pa.array(list(positions), pa.string())))
    ranks = (order % results_per_query for order in table["order"].to_pylist())
    orders = [
        positions[query] * results_per_query + rank
        for query, rank in zip(table["query"].to_pylist(), ranks, strict=True)
    ]
    column = FOUND.get_field_index("order")
    return table.set_column(column, FOUND.field(column), pa.array(orders, pa.int64()))


def outcomes(
    parts: Sequence[CrawlPart], keys: Collection[str], retry_failed: bool
) -> Iterator[tuple[str, dict[str, Any], bytes | None]]:
    """Iterate over the results of URLs in an earlier crawl; one whose part is gone has none.

    Args:
        parts: the earlier parts that may hold the URLs.
        keys: the URLs' keys.
        retry_failed: leave out URLs that failed but may succeed if retried.

    Yields:
        The key, the columns that a download fills, and the stored image or None.
    """
    wanted = set(keys)
    for part in parts:
        if not part.is_there:  # deleted as damaged, or by the attempt that finished
            log.warning("%s is gone: its URLs are requested again", part.uri)
            continue
        rows = {}
        for row in storage.read_table(part.table, sha256=part.table_sha256).to_pylist():
            if row["key"] in wanted and not (retry_failed and Status(row["status"]).may_be_retried):
                rows[row["key"]] = {name: value for name, value in row.items() if name not in _PLAN_COLUMNS}
        pictures = {key for key, row in rows.items() if row["status"] == Status.SUCCESS}
        yield from ((key, row, None) for key, row in rows.items() if key not in pictures)
        if pictures:
            for member in shards.members(part.tar, sha256=part.tar_sha256):
                if member.suffix == "jpg" and member.key in pictures:
                    yield member.key, rows[member.key], member.read()
