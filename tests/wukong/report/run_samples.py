"""What a small run has stored: two splits with pictures, what was left out, what was validated and measured."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.crawl.url import key_of
from wukong.curate.pairs import DROPPED, PAIRS
from wukong.store import storage
from wukong.store.manifest import Manifest, Part, Stage

NASTY = '<script>alert("猫")</script>&"\''
_COLOURS = {"train": "red", "new": "blue"}


def _rows(split: str, count: int) -> Iterator[dict[str, Any]]:
    for n in range(count):
        url = f"http://x/{split}/{n}"
        yield dict.fromkeys(PAIRS.names) | {
            "key": key_of(url),
            "url": url,
            "caption": NASTY if n == 0 else f"{split}{n}号猫",
            "queries": [],
            "engine": "t",
            "status": "success",
            "caption_original": "猫",
            "length": 1,
            "aspect_ratio": 1.0,
            "caption_count": 1,
            "split": split,
        }


def stored_run(folder: Path) -> tuple[Experiment, dict[str, Manifest], dict[str, Any]]:
    """Store the stages of a run in a folder; return its experiment, its manifests by stage, and its evaluation."""
    root = storage.from_path(folder)
    counts = {"results": 90, "urls": 50, "success": 40}
    crawl = Stage(root, "crawl", {}).commit([], counts=counts, dropped={"timeout": 7, "corrupt": 3})
    stage = Stage(root, "filter", {}, [crawl])
    parts: list[Part] = []
    kept: dict[str, list[dict[str, Any]]] = {}
    for split in ("train", "new"):
        kept[split] = list(_rows(split, 12))
        path = folder / f"{split}.tar"
        with tarfile.open(path, "w") as tar:
            for row in kept[split]:
                data = io.BytesIO()
                Image.new("RGB", (300, 200), _COLOURS[split]).save(data, "JPEG")
                info = tarfile.TarInfo(f"{row['key']}.jpg")
                info.size = len(data.getvalue())
                tar.addfile(info, io.BytesIO(data.getvalue()))
        storage.upload(path, stage.path(f"{split}/00000.tar"))
        storage.write_table(stage.path(f"{split}/00000.parquet"), pa.Table.from_pylist(kept[split], schema=PAIRS))
        parts += [stage.describe(f"{split}/00000.tar", 12), stage.describe(f"{split}/00000.parquet", 12)]
    dropped = [
        {**row, "dropped_by": reason}
        for reason, row in zip(["size"] * 6 + ["sensitive"] * 4 + ["held_back"] * 6, _rows("gone", 16), strict=True)
    ]
    storage.write_table(stage.path("dropped/00000.parquet"), pa.Table.from_pylist(dropped, schema=DROPPED))
    parts.append(stage.describe("dropped/00000.parquet", 16))
    counts = {"pairs": 40, "kept": 30, "train": 12, "new": 12}
    filtered = stage.commit(parts, counts=counts, dropped={"size": 6, "sensitive": 4, "held_back": 6, "length": 0})
    validate = Stage(root, "validate", {}, [filtered])
    checks = [
        {"name": "sides", "severity": "fail", "success": True, "observed": "0 of 24 rows (0.00 %)"},
        {"name": "chinese", "severity": "warn", "success": False, "observed": "3 of 24 rows (12.50 %)"},
    ]
    storage.write_json(validate.path("results.json"), {"expectations": checks})
    validated = validate.commit([validate.describe("results.json")])
    experiment = documents.parse(
        {
            "name": "demo",
            "about": "Human-written names, not web captions.",
            "storage": root,
            "sources": [{"name": "Red ones", "pattern": "*/train/*", "licence": "MIT"}],
            "crawl": {"queries": "file:///q", "endpoint": "http://x"},
        }
    )
    ways = ("text_to_image", "image_to_text")
    recalls = {f"{way}_r{k}": {"value": value} for way in ways for k, value in ((1, 0.25), (5, 0.5), (10, 0.75))}
    hits = [{"image": row["key"], "caption": row["caption"], "right": n == 2} for n, row in enumerate(kept["new"][:5])]
    evaluation = {
        "overlaps": [],
        "trained_on": [],
        "tasks": [
            {
                "model": "finetuned",
                "kind": "retrieval",
                "task": "new",
                "title": "New pictures",
                "split": "holdout",
                "sizes": {"images": 12, "captions": 12},
                "results": recalls,
                "chance": {f"{way}_r{k}": k / 12 for way in ways for k in (1, 5, 10)},
                "examples": [{"caption": NASTY, "rank": 2, "images": hits}],
            },
            {
                "model": "finetuned",
                "kind": "classification",
                "task": "kinds",
                "title": "Kinds",
                "split": "holdout",
                "sizes": {"images": 12, "classes": 2},
                "results": {"top1": {"value": 0.5}},
                "chance": {"top1": 0.5},
                "classes": [{"name": "猫", "images": 6, "top1": 0.9}, {"name": "狗", "images": 6, "top1": 0.1}],
            },
        ],
        "training": {"pretrain": [{"epoch": n, "loss": 5.0 / (n + 1), "broken": float("nan")} for n in range(4)]},
    }
    return experiment, {"crawl": crawl, "filter": filtered, "validate": validated}, evaluation
