"""Blurred pictures hold 12 x 12 pixels and no more, and are found in the crawl by their keys."""

import base64
import io
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from wukong.data.shards import END, packed
from wukong.report import blurred
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

RANDOM = np.random.default_rng(2)
PICTURES = {f"{number:020x}": RANDOM.integers(0, 256, (120, 240, 3), np.uint8) for number in range(6)}
DAMAGED = f"{9:020x}"


def decoded(src: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    data = base64.b64decode(src.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def test_only_the_means_of_144_areas_are_left() -> None:
    picture = PICTURES[f"{0:020x}"]
    left = decoded(blurred.blurred(Image.fromarray(picture)))
    assert left.shape == (12, 12, 3)
    means = picture.reshape(12, 10, 12, 20, 3).mean(axis=(1, 3))
    assert np.abs(left - means).max() <= 1
    assert len(blurred.blurred(Image.fromarray(picture))) < 1_000


def crawled(folder: Path) -> Manifest:
    stage, parts = Stage(storage.from_path(folder), "crawl", {}), []
    keys = [*PICTURES, DAMAGED]
    for number, some in enumerate((keys[:3], keys[3:])):
        with stage.output(f"parts/{number:05d}.tar") as output:
            for key in some:
                target = io.BytesIO()
                if key != DAMAGED:
                    Image.fromarray(PICTURES[key]).save(target, "PNG")
                output.write(packed(f"{key}.jpg", target.getvalue() or b"no picture"))
                output.write(packed(f"{key}.txt", b"x"))
            output.write(END)
            parts.append(output.part(len(some)))
        parts.append(stage.write_table(f"parts/{number:05d}.parquet", pl.DataFrame({"key": some}).to_arrow()))
    return stage.commit(parts)


def test_pictures_are_found_by_their_keys_and_damaged_ones_left_out(tmp_path: Path) -> None:
    crawl = crawled(tmp_path)
    first, second, last = (f"{number:020x}" for number in (4, 1, 5))
    chosen = [("size", first), ("length", second), ("length", DAMAGED), ("unsafe", last), ("size", "f" * 20)]
    shown = blurred.examples(crawl, chosen)
    assert [(each.rule, each.key) for each in shown] == [("size", first), ("length", second), ("unsafe", last)]
    assert [each.src for each in shown] == [
        blurred.blurred(Image.fromarray(PICTURES[key])) for key in (first, second, last)
    ]
    assert blurred.examples(crawl, []) == []
