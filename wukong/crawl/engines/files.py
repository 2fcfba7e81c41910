"""Pictures of one's own instead of a search engine: a folder or a list (``wukong/crawl/own_files.py``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from wukong.crawl.source import CrawlSettings, Listed, Wording
from wukong.runtime.language import _

if TYPE_CHECKING:
    import pyarrow as pa

    from wukong.crawl.source import Picture


def _check(uri: str) -> str:
    from wukong.store import storage

    if storage.exists(uri) or storage.list_files(uri):
        return ""
    return f"{uri} has nothing; name a folder of pictures or a list"


def _pictures(config: CrawlSettings) -> Iterator[Picture]:
    from wukong.crawl.own_files import pictures_of

    return pictures_of(config)


def _read(_uri: str, _number: int, config: CrawlSettings) -> Iterator[pa.Table]:
    from wukong.crawl.own_files import read_pictures

    return read_pictures(config)


def _count(config: CrawlSettings) -> int:
    from wukong.crawl.own_files import pictures_of

    return sum(1 for _ in pictures_of(config, quiet=True))


def _content(config: CrawlSettings) -> list[str]:
    from wukong.crawl.own_files import digest_of, pictures_of

    return [digest_of(pictures_of(config, quiet=True))]


def _bytes_read(sizes: Mapping[str, int]) -> int:
    """Those of a list; of a folder captions are read, and no picture."""
    return 0 if len(sizes) > 1 else sum(sizes.values())


SOURCE = Listed(
    name="files",
    wording=Wording(
        _("From picture to pair"),
        _("pictures named"),
        lambda rows: _("The data name {rows:,} pictures").format(rows=rows),
        _("pictures of one's own"),
    ),
    nothing=lambda config, _: f"crawl.endpoint = {config.endpoint!r} names no picture.",
    check=_check,
    lists=lambda config: [config.endpoint],
    read=_read,
    count=_count,
    content=_content,
    bytes_read=_bytes_read,
    reads_files=True,
    pictures=_pictures,
)
