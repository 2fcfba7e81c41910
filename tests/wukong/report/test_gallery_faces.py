"""Faces are blurred in previews where the filter was asked for it, and nothing else is touched."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from wukong.data.shards import END, packed
from wukong.errors import StorageError
from wukong.report import gallery
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

NOISE = np.random.default_rng(3).integers(0, 256, (100, 100, 3), np.uint8)
BOX = {"x": 0.3, "y": 0.4, "width": 0.2, "height": 0.1, "score": 0.9}
AREA = (slice(38, 52), slice(26, 54))  # rows and columns: a fifth of the face's sides around it


def pixels(src: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))).convert("RGB")).astype(float)


def test_a_face_is_blurred_with_a_margin_and_the_rest_stays() -> None:
    image = Image.fromarray(NOISE)
    gallery.blur(image, BOX)
    after = np.asarray(image)
    outside = np.ones((100, 100), bool)
    outside[AREA] = False
    assert (after[outside] == NOISE[outside]).all()
    assert after[AREA].std() < NOISE[AREA].std() / 3
    # A cell of the 4 x 4 colours is 7 pixels wide: what its pixels show in another order gives the same picture.
    swapped = Image.fromarray(NOISE)
    block = NOISE[AREA].copy()
    block[:3, :7] = block[:3, :7][::-1, ::-1]
    swapped.paste(Image.fromarray(block), (26, 38))
    gallery.blur(swapped, BOX)
    assert (np.asarray(swapped) == after).all()


@pytest.mark.parametrize("moved", [{"x": -0.1}, {"x": 0.95}, {"y": 0.99, "height": 0.5}, {"width": 0.0}, {"x": 2.0}])
def test_a_face_at_the_edge_or_beyond_raises_nothing(moved: dict[str, float]) -> None:
    image = Image.fromarray(NOISE)
    gallery.blur(image, BOX | moved)
    assert image.size == (100, 100)


def filtered(folder: Path, *, blur: bool, faces: list[Any] | None) -> Manifest:
    stage = Stage(storage.from_path(folder), "filter", {"faces": {"blur_in_previews": blur}})
    keys = [f"{number:020x}" for number in range(3)]
    columns: dict[str, Any] = {"key": keys, "caption": ["猫"] * 3, "url": ["http://x/y"] * 3, "sha256": ["0"] * 3}
    table = pl.DataFrame(columns | ({"faces": faces} if faces is not None else {}))
    part = stage.write_table("train/00000.parquet", table.to_arrow())
    target = io.BytesIO()
    Image.fromarray(NOISE).save(target, "PNG")
    with stage.output("train/00000.tar") as output:
        for key in keys:
            output.write(packed(f"{key}.jpg", target.getvalue()))
        output.write(END)
        tar = output.part(3)
    return stage.commit([part, tar], counts={"pairs": 3, "train": 3})


def shown(manifest: Manifest) -> dict[str, np.ndarray[Any, Any]]:
    return {each["key"][-1]: pixels(each["src"]) for each in gallery.contact_sheet(manifest, 0)}


def test_a_card_blurs_the_faces_of_the_shards(tmp_path: Path) -> None:
    faces = [[], [BOX], None]
    plain = shown(filtered(tmp_path / "plain", blur=False, faces=faces))
    assert set(plain) == {"0", "1", "2"}
    blurred = shown(filtered(tmp_path / "blurred", blur=True, faces=faces))
    assert set(blurred) == {"0", "1"}, "a picture that the model could not read is not shown"
    assert (blurred["0"] == plain["0"]).all()
    assert blurred["1"][AREA].std() < plain["1"][AREA].std() / 2


def test_a_set_without_the_column_shows_no_face_by_mistake(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="faces"):
        shown(filtered(tmp_path, blur=True, faces=None))
