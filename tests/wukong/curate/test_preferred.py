"""Which of near pairs is kept."""

import io

import numpy as np
import polars as pl
from PIL import Image, ImageDraw, ImageFilter

from wukong.curate.preferred import scores, sharpness
from wukong.curate.rule import PictureBatch


def drawing(side=240):
    noise = np.random.default_rng(0).normal(128, 10, (side, side))
    image = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).convert("RGB")
    ImageDraw.Draw(image).ellipse((20, 40, 200, 220), fill="#a33", outline="#fff", width=5)
    return image.filter(ImageFilter.GaussianBlur(1))


def stored(image, quality=95):
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality)
    return target.getvalue()


def test_the_picture_with_the_most_detail_is_the_sharpest():
    original = drawing()
    half = original.resize((120, 120))
    changed = {
        "half": half, "enlarged": half.resize((240, 240)), "blurred": original.filter(ImageFilter.GaussianBlur(3)),
        "cut": original.crop((30, 30, 210, 210)), "flat": Image.new("RGB", (240, 240), "#777"),
    }  # fmt: skip
    pictures = [stored(original), stored(original, 30), *map(stored, changed.values())]
    found = sharpness(PictureBatch(pictures, [""] * len(pictures), [""] * len(pictures)), None)
    assert found.arg_max() == 0
    assert found[-1] == 0
    tiny = [stored(Image.new("RGB", size)) for size in ((1, 1), (2, 2), (1, 9))]
    assert sharpness(PictureBatch(tiny, [""] * 3, [""] * 3), None).to_list() == [0, 0, 0]


def test_each_way_has_its_scores():
    pairs = pl.DataFrame(
        {"similarity": [0.3, 0.1], "length": [4, 9], "sharpness": [2.0, 1.0]}, schema_overrides={"length": pl.Int32}
    )
    assert scores(pairs, "first").to_list() == [0, 0]
    assert scores(pairs, "sharpest").to_list() == [2, 1]
    assert scores(pairs, "best-caption").to_list() == [0.3, 0.1]
    assert scores(pairs.with_columns(similarity=pl.lit(None, pl.Float32)), "best-caption").to_list() == [4, 9]
    assert scores(pairs.clear(), "first").to_list() == []
