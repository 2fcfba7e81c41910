"""An experiment whose crawl holds copies of one picture among others, changed as the web changes pictures."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from PIL import Image, ImageOps

from wukong.crawl.url import key_of
from wukong.data.schema import CRAWLED
from wukong.data.shards import END, packed
from wukong.publish import croissant, release
from wukong.store import storage
from wukong.store.manifest import Manifest, Part, Stage

OTHERS, A_PART = 30, 10
SHOWN = 1_000
"""Number of the picture that is shown to a takedown."""


def photo(number: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A picture with large and small forms, unlike those of other numbers."""
    generator, made = np.random.default_rng(number), np.zeros((size[1], size[0], 3))
    for cells, weight in ((4, 3.0), (9, 2.0), (24, 1.0)):
        layer = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), np.uint8))
        made += weight * np.asarray(layer.resize(size, Image.Resampling.BICUBIC), float)
    return Image.fromarray((made / made.max() * 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality)
    return target.getvalue()


COPIES: Mapping[str, Callable[[Image.Image], bytes]] = {
    "equal": jpeg,
    "re-encoded": lambda image: jpeg(image, 30),
    "half": lambda image: jpeg(image.resize((160, 120))),
    "mirror": lambda image: jpeg(ImageOps.mirror(image)),
    "turned": lambda image: jpeg(image.transpose(Image.Transpose.ROTATE_90)),
}


class Pair(NamedTuple):
    """A row of the crawl and what its tar holds; ``data`` is both the download and what is stored."""

    name: str
    url: str
    data: bytes

    @property
    def key(self) -> str:
        return key_of(self.url)

    @property
    def caption(self) -> str:
        return f"图片{self.name}的说明"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def row(self) -> dict[str, Any]:
        known = {"key": self.key, "url": self.url, "caption": self.caption, "sha256": self.sha256, "queries": ["词"]}
        return dict.fromkeys(CRAWLED.names) | known | {"engine": "test", "status": "success"}


@cache
def pairs() -> list[Pair]:
    """All pairs, sorted by key: the copies, and unlike pictures."""
    copies = [Pair(name, f"http://a.site.test/{name}.jpg", made(photo(SHOWN))) for name, made in COPIES.items()]
    others = [Pair(f"{n}", f"http://b.site.test/{n}.jpg", jpeg(photo(n))) for n in range(OTHERS)]
    return sorted([*copies, *others], key=lambda pair: pair.key)


def of_names(names: Sequence[str]) -> dict[str, Pair]:
    return {pair.name: pair for pair in pairs() if pair.name in names}


def write(stage: Stage, name: str, some: Sequence[Pair], schema: pa.Schema = CRAWLED) -> list[Part]:
    """A table, and the tar beside it."""
    storage.write_table(stage.path(f"{name}.parquet"), pa.Table.from_pylist([pair.row for pair in some], schema))
    storage.write_bytes(stage.path(f"{name}.tar"), b"".join(packed(f"{p.key}.jpg", p.data) for p in some) + END)
    return [stage.describe(f"{name}.{end}", len(some)) for end in ("tar", "parquet")]


def crawl(root: str, config: Mapping[str, Any], some: Sequence[Pair], finish: bool = True) -> Stage:
    """A crawl of some parts; one that was killed has no manifest."""
    stage, parts = Stage(root, "crawl", dict(config)), []
    for number, start in enumerate(range(0, len(some), A_PART)):
        parts += write(stage, f"parts/{number:05d}", some[start : start + A_PART])
    found = pl.DataFrame([{"key": p.key, "url": p.url, "caption": p.caption} for p in some]).to_arrow()
    for path in ("search/00000.parquet", "plan/00000.parquet"):
        storage.write_table(stage.path(path), found)
    parts.append(stage.describe("search/00000.parquet"))
    if finish:
        stage.commit(parts, counts={"results": len(some), "urls": len(some), "success": len(some)})
    return stage


def split_of(pair: Pair) -> str:
    return {"half": "dropped", "mirror": "held", "29": "dropped", "28": "held"}.get(pair.name, "train")


def experiment(folder: Path) -> tuple[str, dict[str, Manifest]]:
    """A crawl, a filtered set, its release, features of its pictures, and models that were trained on it.

    Returns:
        The experiment's URI, and manifests by name: ``pretrain`` was trained on all pairs, ``mirrored`` started from
        it, ``other`` was trained on the pairs of one host, and ``lost`` on data that are gone.
    """
    root = storage.from_path(folder / "store" / "test")
    some = pairs()
    crawled = _loaded(crawl(root, {}, some))
    of_split = {name: [pair for pair in some if split_of(pair) == name] for name in ("train", "held", "dropped")}
    stage = Stage(root, "filter", {"split": {"holdouts": [{"name": "held"}]}}, [crawled])
    parts = [part for name in ("train", "held") for part in write(stage, f"{name}/00000", of_split[name])]
    dropped = pa.Table.from_pylist([pair.row | {"dropped_by": "size"} for pair in of_split["dropped"]])
    storage.write_table(stage.path("dropped/00000.parquet"), dropped)
    parts.append(stage.describe("dropped/00000.parquet", len(of_split["dropped"])))
    kept = {name: len(of_split[name]) for name in ("train", "held")}
    counts = {"pairs": len(some), "kept": sum(kept.values()), **kept}
    filtered = stage.commit(parts, counts=counts, dropped={"size": len(of_split["dropped"])})

    published = Stage(root, "release", {}, [filtered])
    rows = pl.DataFrame([{"url": pair.url, "caption": pair.caption} for pair in of_split["train"]])
    release.write_csv(published.path("pairs-00000.csv"), rows)
    storage.write_json(published.path(croissant.PATH), {})
    files = [published.describe("pairs-00000.csv", len(rows)), published.describe(croissant.PATH)]
    storage.write_bytes(published.path(release.SUMS), release.sums(files))
    published.commit([*files, published.describe(release.SUMS)], counts={"pairs": len(rows)})

    models = {"pretrain": Stage(root, "pretrain", {"training": {}}, [filtered]).commit([])}
    models["mirrored"] = Stage(root, "finetune", {"training": {}}, [models["pretrain"]]).commit([])
    only = {"training": {"sources": ["http://b.*"]}}
    models["other"] = Stage(root, "pretrain", only, [filtered]).commit([])
    gone = Stage(root, "filter", {"gone": True}, [crawled]).commit([])
    models["lost"] = Stage(root, "pretrain", {"lost": True}, [gone]).commit([])
    storage.delete(gone.uri)
    storage.write_json(f"{root}/runs/a/examples.json", [{"image": pair.key, "caption": pair.caption} for pair in some])
    return root, models | {"crawl": crawled, "filter": filtered}


def _loaded(stage: Stage) -> Manifest:
    finished = stage.finished()
    assert finished is not None
    return finished
