"""A small corpus that trips every rule, and what a crawl of it looks like."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.crawl.part_writer import Spool, write_part
from wukong.crawl.url import key_of
from wukong.data.schema import CRAWLED
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

Row = Mapping[str, Any]

HOLDOUTS = [
    {"name": "new-style", "source": "*/fluent/*", "captions": "seen"},
    {"name": "new-style-new-word", "source": "*/fluent/*", "captions": "unseen"},
    {"name": "new-word", "source": "*/stamps/*", "captions": "unseen"},
]


def experiment(tmp_path: Path, **settings: object) -> Experiment:
    return documents.parse(
        {
            "name": "test",
            "storage": storage.from_path(tmp_path / "store"),
            "crawl": {"queries": "file:///none", "endpoint": "http://127.0.0.1:1"},
            "filter": {"shard_size": 60, "split": {"held_out_captions": 0.2, "holdouts": HOLDOUTS}} | settings,
        }
    )


def corpus() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    animals = [f"{colour}色的{animal}" for colour in "红橙黄绿青蓝紫黑白灰" for animal in "猫狗鸟鱼马牛羊鸡猪兔"]
    for source in ("stamps", "noto", "fluent"):
        rows += [{"url": f"http://x/{source}/{n}.png", "caption": text} for n, text in enumerate(animals)]
    rows += [{"url": f"http://x/noto/more{n}", "caption": "查看源网页"} for n in range(11)]
    rows += [
        {"url": "http://x/noto/small", "caption": "一只小猫", "width": 200},
        {"url": "http://x/noto/long", "caption": "一只长猫", "width": 1000, "height": 300},
        {"url": "http://x/noto/file", "caption": "000.jpg"},
        {"url": "http://x/noto/english", "caption": "a cat"},
        {"url": "http://x/noto/essay", "caption": "猫" * 32},
        {"url": "http://x/noto/bad", "caption": "免费 色情 影片"},
        {"url": "http://x/noto/gone", "caption": "不见了的猫", "status": "http_error", "width": None, "sha256": None},
        {"url": "http://x/noto/person", "caption": "摄影师张伟明在公园里拍照"},
    ]
    return rows


def picture_of(row: Row) -> bytes:
    """A small JPEG of the pair's own colour."""
    target = io.BytesIO()
    Image.new("RGB", (16, 12), f"#{row['sha256'][:6]}").save(target, "JPEG")
    return target.getvalue()


def complete(row: Row) -> dict[str, Any]:
    defaults: dict[str, Any] = dict.fromkeys(CRAWLED.names)
    defaults |= {
        "key": key_of(row["url"]),
        "queries": ["词"],
        "engine": "test",
        "status": "success",
        "width": 300,
        "height": 300,
        "mime": "image/jpeg",
        "sha256": hashlib.sha256(row["url"].encode()).hexdigest(),
        "stored_width": 256,
        "stored_height": 256,
    }
    return defaults | dict(row)


def write_crawl(
    folder: Path,
    rows: Sequence[Row],
    part_size: int = 50,
    root: str | None = None,
    name: str = "crawl",
    picture: Callable[[Row], bytes] = picture_of,
) -> Manifest:
    """Write a crawl's output: rows may leave out every column but ``url`` and ``caption``.

    Where a row has ``captions``, all have the column.
    """
    stage = Stage(root or storage.from_path(folder), name, {"rows": len(rows)})
    parts = []
    several = {"captions": None} if any("captions" in row for row in rows) else {}
    counts = {"more_captions": sum(bool(row.get("captions")) for row in rows)} if several else {}
    for number, start in enumerate(range(0, len(rows), part_size)):
        full = [{**several, **complete(row)} for row in rows[start : start + part_size]]
        with Spool() as pictures:
            for row in full:
                if row["status"] == "success":
                    pictures.add(row["key"], picture(row))
            write_part(stage.path(f"parts/{number:05d}"), full, pictures)
        parts += [stage.describe(f"parts/{number:05d}{suffix}", len(full)) for suffix in (".tar", ".parquet")]
    return stage.commit(parts, counts=counts)
