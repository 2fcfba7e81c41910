"""Crawls of rows that a test gives, without their pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from wukong.crawl import previous
from wukong.crawl.url import key_of
from wukong.data.schema import CAPTIONS, CRAWLED
from wukong.store.manifest import Manifest, Stage


def crawl(root: str, rows: Sequence[Mapping[str, Any]], part_size: int = 10, **config: Any) -> Manifest:
    """A finished crawl: parts in the order of the keys, and their index.

    Args:
        root: the experiment's prefix.
        rows: columns of each URL; those that are left out are null, or of a picture that was stored.
        part_size: URLs of a part.
        config: is in the manifest.
    """
    stage = Stage(root, "crawl", {"name": root.rsplit("/", 1)[1], **config})
    usual = {"caption": "图", "queries": ["词"], "engine": "searxng", "status": "success"}
    full = sorted(({**usual, "key": key_of(row["url"]), **row} for row in rows), key=lambda row: row["key"])
    schema = CRAWLED.append(CAPTIONS) if any("captions" in row for row in full) else CRAWLED
    parts, index = [], []
    for number, start in enumerate(range(0, len(full), part_size)):
        some, name = full[start : start + part_size], f"parts/{number:05d}"
        parts.append(stage.write_table(f"{name}.parquet", pa.Table.from_pylist(some, schema=schema)))
        index.append({"part": name, "first_key": some[0]["key"], "last_key": some[-1]["key"]})
    parts.append(stage.write_table(previous.INDEX, pa.Table.from_pylist(index, schema=previous.INDEX_SCHEMA)))
    return stage.commit(parts, counts={"urls": len(full)})
