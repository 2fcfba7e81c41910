"""The URLs and files of a crawl that gave no picture, each with its reason."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import unquote, urlsplit

from wukong.crawl.status import Status
from wukong.errors import DataError
from wukong.runs.run import Run
from wukong.stages import places
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

PAGE_ROWS = 50
_COLUMNS = ["url", "status", "error"]


def page(uri: str, number: int) -> dict[str, Any]:
    """Return a page of what a crawl did not get: ``reasons``, the number by reason, and ``rows``.

    Args:
        uri: URI of a run's folder, of a crawl, or of a stage that was made from a crawl.
        number: the page's, from 1; a page has ``PAGE_ROWS`` rows.

    Raises:
        DataError: there is no crawl; none of the run has ended yet.
        StorageError: a table of the crawl is gone.
    """
    crawled = _crawl_of(uri)
    rows = islice(_rows(crawled), PAGE_ROWS * (number - 1), PAGE_ROWS * number)
    reasons = {reason: count for reason, count in crawled.dropped.items() if count}
    return {"uri": crawled.uri, "kind": "failed", "page": number, "reasons": reasons, "rows": list(rows)}


def _crawl_of(uri: str) -> Manifest:
    if storage.exists(storage.join(uri, "manifest.json")) or uri.endswith("/manifest.json"):
        made = manifest.load(uri)
        crawl = made.uri if made.stage == "crawl" else next((p.uri for p in made.parents if p.stage == "crawl"), None)
        if crawl is None:
            raise DataError(f"{uri} was not made from a crawl: name the run, or the output of its crawl")
        return manifest.load(crawl)
    run = Run(uri)
    if finished := run.output("crawl"):
        return manifest.load(finished)
    last = places.crawl(run.experiment).last  # a crawl that has failed leaves no manifest in the record
    if last is None:
        raise DataError(f"no crawl of {uri} has ended yet: there is nothing to list")
    return last


def _rows(crawled: Manifest) -> Iterator[Mapping[str, Any]]:
    import pyarrow.compute as pc

    for uri in crawled.part_uris("parts/", ".parquet"):
        table = storage.read_table(uri, _COLUMNS)
        for row in table.filter(pc.field("status") != Status.SUCCESS.value).to_pylist():
            yield {"what": _readable(row["url"]), "reason": row["status"], "error": row["error"] or ""}


def _readable(url: str) -> str:
    """Return the path of a file of this machine as people write it; other URLs as they are."""
    return unquote(urlsplit(url).path) if url.startswith("file://") and "#" not in url else url
