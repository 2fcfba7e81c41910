"""Lists of URLs instead of a search engine, such as the released Wukong data set (``wukong/crawl/url_list.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wukong.crawl.source import CrawlSettings, Listed, Wording
from wukong.runtime.language import _

if TYPE_CHECKING:
    import pyarrow as pa


def _check(uri: str) -> str:
    from wukong.crawl.url_list import SUFFIXES
    from wukong.store import storage

    if storage.exists(uri) or any(file.endswith(SUFFIXES) for file in storage.list_files(uri)):
        return ""
    return f"{uri} is no list of URLs; name a file, or a folder of files, of {', '.join(SUFFIXES)}"


def _lists(config: CrawlSettings) -> list[str]:
    from wukong.crawl.url_list import list_files

    return list_files(config.endpoint)


def _read(uri: str, number: int, config: CrawlSettings) -> Iterator[pa.Table]:
    from wukong.crawl.url_list import read_list

    return read_list(uri, number, config)


def _count(config: CrawlSettings) -> int:
    from wukong.crawl.url_list import count

    return count(config.endpoint)


SOURCE = Listed(
    name="urls",
    wording=Wording(
        _("From list to pair"),
        _("rows of the list"),
        lambda rows: _("The list has {rows:,} rows").format(rows=rows),
        _("a list of URLs"),
    ),
    nothing=lambda config, _: (
        f"the list at crawl.endpoint = {config.endpoint!r} holds no URL in the column that crawl.url_column names, "
        f"{config.url_column!r}."
    ),
    check=_check,
    lists=_lists,
    read=_read,
    count=_count,
    not_in_key=frozenset({"endpoint"}),  # what the lists say decides, not where they lie
)
