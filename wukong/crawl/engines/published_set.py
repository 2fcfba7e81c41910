"""The train part of a published retrieval set instead of a search engine (``wukong/crawl/set_pairs.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wukong.crawl.source import CrawlSettings, Listed, Wording
from wukong.runtime.language import _

if TYPE_CHECKING:
    import pyarrow as pa

SETS = ("aic-icc", "coco-cn", "flickr30k-cn", "flickr8k-cn", "muge")
"""The published sets with captions, whose owners publish a train part. Reading their files needs more libraries."""


def _name(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]


def _check(uri: str) -> str:
    from wukong.store import storage

    if storage.list_files(uri):
        return ""
    return f"{uri} has nothing; docs/evaluation-sets.md says what to download and what the folder of a set holds"


def _problems(config: CrawlSettings) -> Iterator[str]:
    name = _name(config.endpoint)
    if name not in SETS:
        yield (
            f"crawl.endpoint: {config.endpoint!r} ends in {name!r}, which is no set with a train part of pictures and "
            f"captions; those are {', '.join(SETS)}: name the folder of one, FOLDER/{SETS[1]}"
        )


def _read(uri: str, _number: int, _config: CrawlSettings) -> Iterator[pa.Table]:
    from wukong.crawl import set_pairs
    from wukong.crawl.own_files import tables_of

    return tables_of(set_pairs.read(uri))


def _count(config: CrawlSettings) -> int:
    from wukong.crawl import set_pairs

    return set_pairs.count(config.endpoint.rstrip("/"))


def _content(config: CrawlSettings) -> list[str]:
    from wukong.evaluate import set_folders

    root, _, name = config.endpoint.rstrip("/").rpartition("/")
    return [set_folders.digest_of(root, name)]


SOURCE = Listed(
    name="published_set",
    wording=Wording(
        _("From caption to pair"),
        _("pictures with a caption"),
        lambda rows: _("The train part has {rows:,} pictures with a caption").format(rows=rows),
        _("a set"),
    ),
    nothing=lambda config, _: f"the train part of the set at crawl.endpoint = {config.endpoint!r} has no caption.",
    check=_check,
    lists=lambda config: [config.endpoint.rstrip("/")],
    read=_read,
    count=_count,
    content=_content,
    bytes_read=lambda _sizes: 0,  # lists and captions alone are read
    reads_files=True,
    problems=_problems,
)
