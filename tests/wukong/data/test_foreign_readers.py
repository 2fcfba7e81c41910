"""Shards are read by other libraries that are in common use, in a separate environment."""

import hashlib
import io
import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from PIL import Image

from wukong.crawl.part_writer import Spool, write_part
from wukong.crawl.url import key_of
from wukong.curate import repack
from wukong.curate.pairs import CAPTIONS, PAIRS, schema_of
from wukong.store import storage
from wukong.store.manifest import Stage

# open_clip 3.3 uses an option of webdataset that its versions after 0.2.86 do not have.
READERS = ("img2dataset==1.47.0", "open_clip_torch==3.3.0", "webdataset==0.2.86")
COUNT = 5

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the readers; torch and other packages come from this environment."""
    folder = tmp_path_factory.mktemp("readers")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    own = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    Path(own.strip(), "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *READERS]
    subprocess.run(install, check=True)
    return python


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """A JPEG for each caption; sizes and grey values differ."""
    made = {}
    for number in range(COUNT):
        stream = io.BytesIO()
        Image.new("RGB", (210 + number, 256), (40 * number,) * 3).save(stream, "JPEG", quality=95)
        made[f"第{number}张图片，带“引号”和 emoji 🐼"] = stream.getvalue()
    return made


def crawled(folder: Path, pictures: dict[str, bytes], *, several: bool = False) -> Path:
    """A part as the crawl writes it, with a row of a URL that failed; ``several``: some pairs have two captions."""
    with Spool() as spool:
        rows = []
        for number, (caption, picture) in enumerate(pictures.items()):
            url = f"http://pictures.test/图/{number}.jpg?a=1&b=2"
            row = {"key": key_of(url), "url": url, "caption": caption, "queries": ["图片"], "engine": "urls"}
            more = [{"caption": text, "count": 1, "query": "图片"} for text in (caption, "另一条")]
            row |= {"captions": more if number % 2 else None} if several else {}
            rows.append(row | {"status": "success", "sha256": hashlib.sha256(picture).hexdigest()})
            spool.add(row["key"], picture)
        lost = {"key": key_of("http://lost"), "url": "http://lost", "caption": "失", "queries": [], "engine": "urls"}
        write_part(storage.from_path(folder / "00000"), [*rows, lost | {"status": "timeout"}], spool)
    return folder / "00000"


def repacked(folder: Path, part: Path) -> Path:
    """The same pairs as a training shard."""
    tar = f"{storage.from_path(part)}.tar"
    pairs = (
        pl.read_parquet(f"{part}.parquet")
        .filter(pl.col("status") == "success")
        .with_columns(
            caption_original=pl.col("caption"),
            length=pl.lit(5),
            aspect_ratio=pl.lit(1.2),
            caption_count=1,
            image_hash=pl.lit(None, pl.UInt64),
            similarity=pl.lit(None, pl.Float32),
            split=pl.lit("train"),
            position=0,
        )
    )
    if "captions" in pairs.columns:
        more = {"length": 5, "caption_count": 1, "similarity": None}
        entries = [
            row and [each | more | {"caption_original": each["caption"]} for each in row]
            for row in pairs["captions"].to_list()
        ]
        kind = pl.DataFrame(pa.schema([CAPTIONS]).empty_table()).schema["captions"]
        pairs = pairs.with_columns(captions=pl.Series(entries, dtype=kind))
    stage = Stage(storage.from_path(folder), "filter", {})
    repack.write_shards(
        stage, [("train/00000", len(pairs))], repack.with_pictures([(tar, "", pairs)], len(pairs) << 20)
    )
    assert storage.read_table(stage.path("train/00000.parquet")).schema.equals(schema_of(pairs, PAIRS))
    return folder / "filter" / stage.key / "train" / "00000"


@pytest.fixture(scope="module")
def read(
    python: Path, pictures: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, bool], Any]:
    """What the libraries read of shards, by their kind and whether some pairs have several captions."""
    shards = {}
    for several in (False, True):
        shards["crawled", several] = part = crawled(tmp_path_factory.mktemp("part"), pictures, several=several)
        shards["repacked", several] = repacked(tmp_path_factory.mktemp("shard"), part)
    script = Path(__file__).with_name("foreign_readers.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, script, tmp_path_factory.mktemp("rows"), *shards.values()]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert answer.returncode == 0, answer.stderr
    seen = json.loads(answer.stdout.splitlines()[-1])
    return {of: seen[str(shard)] for of, shard in shards.items()}


@pytest.mark.parametrize("several", [False, True], ids=["one caption", "several captions"])
@pytest.mark.parametrize("kind", ["crawled", "repacked"])
def test_other_libraries_can_read_the_shards(
    read: dict[tuple[str, bool], Any], pictures: dict[str, bytes], kind: str, several: bool
) -> None:
    seen = read[kind, several]
    urls = {caption: f"http://pictures.test/图/{n}.jpg?a=1&b=2" for n, caption in enumerate(pictures)}
    digests = {caption: hashlib.sha256(picture).hexdigest() for caption, picture in pictures.items()}
    assert seen["webdataset"] == {key_of(urls[c]): [c, digests[c], urls[c]] for c in pictures}
    decoded = {c: np.asarray(Image.open(io.BytesIO(picture))) for c, picture in pictures.items()}
    assert {c: found[:2] for c, found in seen["open_clip"].items()} == {c: [*p.shape[:2]] for c, p in decoded.items()}
    assert {c: found[2] for c, found in seen["open_clip"].items()} == {c: round(p.mean()) for c, p in decoded.items()}
    rows = [[c, urls[c], digests[c]] for c in pictures]
    extra = [["失", "http://lost", None]] if kind == "crawled" else []
    assert sorted(seen["img2dataset"], key=str) == sorted([*rows, *extra], key=str)
