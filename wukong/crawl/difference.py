"""What differs between two crawls, URL by URL, with the rows of one range of keys in memory at a time.

The parts of a crawl are sorted by key, and so are the rows in each (``wukong.crawl.plan``). So the same range of keys
is read of both crawls and compared. Besides a range, only the number of pairs of each query and of each host is held.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import polars as pl

from wukong.crawl import plan, previous
from wukong.crawl.status import Status
from wukong.curate.exchange import Source
from wukong.store import storage
from wukong.store.manifest import Manifest

ONLY_FIRST, ONLY_SECOND, SAME = "only_first", "only_second", "same"
OTHER_PICTURE, OTHER_CAPTIONS = "other_picture", "other_captions"
KINDS = (ONLY_FIRST, ONLY_SECOND, OTHER_PICTURE, OTHER_CAPTIONS, SAME)
"""What a URL that is a pair in one of two crawls can be. With another picture, its captions are not compared."""

NOT_FOUND = "not_found"
"""The result of a URL in the crawl that has no row for it: no search found it."""

_HOST = r"^[^:/?#]+://(?:[^/?#]*@)?(\[[^\]/?#]*\]|[^:/?#]*)"
_ROW = pl.Schema(
    {
        "key": pl.String(),
        "url": pl.String(),
        "caption": pl.String(),
        "captions": pl.List(pl.String),
        "queries": pl.List(pl.String),
        "sha256": pl.String(),
        "result": pl.String(),
        "is_pair": pl.Boolean(),
    }
)
_COUNTED = pl.Schema({"name": pl.String, "first": pl.Int64, "second": pl.Int64})


@dataclass(frozen=True)
class Change:
    """A number of each of two crawls: of URLs with a result, or of pairs of a query or a host."""

    name: str
    first: int
    second: int


@dataclass(frozen=True)
class Difference:
    """What differs between two crawls.

    Attributes:
        kinds: number of URLs by ``KINDS``.
        why: for ``only_first`` and ``only_second``, the number of these URLs by their result in the other crawl.
        results: number of URLs by status, of ``http_error`` also by HTTP code.
        queries: the queries whose number of pairs changes most.
        hosts: the hosts whose number of pairs changes most.
        examples: some URLs of each kind but ``same``, in the order of their keys: what each crawl has of the URL, None
            where it has no row.
    """

    kinds: dict[str, int]
    why: dict[str, dict[str, int]]
    results: list[Change]
    queries: list[Change]
    hosts: list[Change]
    examples: dict[str, list[dict[str, Any]]]


def between(first: Manifest, second: Manifest, top: int = 10, examples: int = 3) -> Difference:
    """Compare two crawls.

    Args:
        first: manifest of a crawl.
        second: manifest of another.
        top: the most queries, and hosts, that are named.
        examples: the most URLs that are shown of each kind.

    Raises:
        StorageError: a table of a crawl cannot be read.
    """
    kinds: Counter[str] = Counter()
    why: dict[str, Counter[str]] = {ONLY_FIRST: Counter(), ONLY_SECOND: Counter()}
    shown: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS if kind != SAME}
    results = queries = hosts = _COUNTED.to_frame()
    for left, right in _ranges(first, second):
        results = _add(results, left["result"], right["result"])
        mine, theirs = left.filter("is_pair"), right.filter("is_pair")
        queries = _add(queries, *(rows["queries"].explode().drop_nulls() for rows in (mine, theirs)))
        hosts = _add(hosts, *(rows["url"].str.extract(_HOST).str.to_lowercase() for rows in (mine, theirs)))
        compared = _compared(left, right)
        kinds.update(_counted(compared["kind"]))
        for kind, other in ((ONLY_FIRST, "result_second"), (ONLY_SECOND, "result")):
            why[kind].update(_counted(compared.filter(kind=kind)[other].fill_null(NOT_FOUND)))
        for kind, rows in shown.items():
            more = compared.filter(kind=kind).head(examples - len(rows))
            rows.extend(map(_example, more.iter_rows(named=True)))
    return Difference(
        kinds={kind: kinds[kind] for kind in KINDS},
        why={kind: dict(counted.most_common()) for kind, counted in why.items()},
        results=_changes(results.sort(-pl.max_horizontal("first", "second"), "name")),
        queries=_changes(_largest(queries, top)),
        hosts=_changes(_largest(hosts, top)),
        examples=shown,
    )


def _ranges(first: Manifest, second: Manifest) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield the rows of both crawls, range of keys by range of keys."""
    parts = _parts(first), _parts(second)
    urls = sum(crawl.counts.get("urls", 0) for crawl in (first, second))
    for low, high in pairwise([None, *plan.edges(plan.ranges_for(urls)), None]):
        left, right = (_rows(each, low, high) for each in parts)
        yield left, right


def _parts(crawl: Manifest) -> list[tuple[str, str, str]]:
    """The table of each part, with its first and its last key."""
    uri, sha256 = crawl.file(previous.INDEX)
    index = storage.read_table(uri, sha256=sha256).to_pydict()
    uris = [storage.join(crawl.uri, f"{part}.parquet") for part in index["part"]]
    return list(zip(uris, index["first_key"], index["last_key"], strict=True))


def _rows(parts: Sequence[tuple[str, str, str]], low: str | None, high: str | None) -> pl.DataFrame:
    """Read the rows with ``low <= key < high``, with the columns of ``_ROW``."""
    files = [uri for uri, begin, end in parts if (low is None or end >= low) and (high is None or begin < high)]
    if not files:
        return _ROW.to_frame()
    rows = Source(tuple(files), low, high).read()
    captions, status = pl.concat_list("caption"), pl.col("status")
    if "captions" in rows.columns:
        captions = pl.coalesce(pl.col("captions").list.eval(pl.element().struct.field("caption")), captions)
    with_code = pl.format("{} {}", status, "http_status")
    return rows.select(
        "key",
        "url",
        "caption",
        captions.list.sort().alias("captions"),
        "queries",
        "sha256",
        pl.when(status == Status.HTTP_ERROR.value)
        .then(pl.coalesce(with_code, status))
        .otherwise(status)
        .alias("result"),
        (status == Status.SUCCESS.value).alias("is_pair"),
    )


def _compared(left: pl.DataFrame, right: pl.DataFrame) -> pl.DataFrame:
    """The URLs that are a pair in one crawl at least, with what both have of them and their ``kind``, by key."""
    mine, theirs = (pl.col(name).fill_null(value=False) for name in ("is_pair", "is_pair_second"))
    captions = ("caption", "captions")
    other_captions = pl.any_horizontal(pl.col(name) != pl.col(f"{name}_second") for name in captions)
    kind = (
        pl.when(mine & ~theirs)
        .then(pl.lit(ONLY_FIRST))
        .when(theirs & ~mine)
        .then(pl.lit(ONLY_SECOND))
        .when(pl.col("sha256") != pl.col("sha256_second"))
        .then(pl.lit(OTHER_PICTURE))
        .when(other_captions)
        .then(pl.lit(OTHER_CAPTIONS))
        .otherwise(pl.lit(SAME))
    )
    joined = left.join(right, on="key", how="full", coalesce=True, suffix="_second")
    return joined.filter(mine | theirs).with_columns(kind=kind).sort("key")


def _example(row: dict[str, Any]) -> dict[str, Any]:
    def of(suffix: str) -> dict[str, Any] | None:
        names = ("result", "sha256", "caption", "captions")
        return {name: row[name + suffix] for name in names} if row[f"result{suffix}"] is not None else None

    return {"key": row["key"], "url": row["url"] or row["url_second"], "first": of(""), "second": of("_second")}


def _counted(names: pl.Series) -> dict[str, int]:
    return dict(names.value_counts().iter_rows())


def _add(counted: pl.DataFrame, first: pl.Series, second: pl.Series) -> pl.DataFrame:
    """Add the names of a range, each as often as it is there, to what was counted before."""
    new = [
        pl.DataFrame({"name": names}).select("name", first=pl.lit(mine), second=pl.lit(1 - mine))
        for names, mine in ((first, 1), (second, 0))
    ]
    return pl.concat([counted, *(each.cast(_COUNTED) for each in new)]).group_by("name").sum()


def _largest(counted: pl.DataFrame, top: int) -> pl.DataFrame:
    change = (pl.col("second") - pl.col("first")).abs()
    return counted.filter(change > 0).sort(-change, "name").head(top)


def _changes(counted: pl.DataFrame) -> list[Change]:
    return [Change(**row) for row in counted.iter_rows(named=True)]
