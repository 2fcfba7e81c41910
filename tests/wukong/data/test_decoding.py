"""Which formats the readers of pictures open, whatever a file is called."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from wukong.curate.phash import perceptual_hash
from wukong.data import decoding
from wukong.errors import DataError
from wukong.evaluate.formats import pictures
from wukong.runs import describe
from wukong.store import storage

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
READERS: list[Callable[[bytes], object]] = [
    decoding.decode,
    lambda data: pictures.decode(data, "one.jpg"),
    perceptual_hash,
]


@pytest.mark.parametrize("read", READERS)
def test_postscript_that_is_called_a_jpeg_starts_no_program(
    read: Callable[[bytes], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(program))
    with pytest.raises(DataError, match="cannot be decoded"):
        read(EPS)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", [*decoding.FORMATS, "MPO"])
def test_the_usual_formats_are_read(kind: str) -> None:
    colours = np.full((32, 40, 3), (200, 60, 20), np.uint8)
    stream = io.BytesIO()
    more = {"save_all": True, "append_images": [Image.fromarray(colours)]} if kind == "MPO" else {}
    Image.fromarray(colours).save(stream, kind, **more)
    for read in READERS[:2]:
        image = read(stream.getvalue())
        assert isinstance(image, Image.Image) and image.size == (40, 32)
        assert np.abs(np.asarray(image).astype(int) - colours).max() < 12
    perceptual_hash(stream.getvalue())


def test_what_is_shown_of_an_address_opens_no_other_format(tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(EPS)
    with pytest.raises(DataError, match="not what its name says"):
        describe.describe(storage.from_path(tmp_path / "one.jpg"))
