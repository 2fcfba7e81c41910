"""Fingerprints of sets and folders, by the library and by ``wukong hashes``."""

import json

import numpy as np
import pdqhash
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

from wukong.commands.app import app
from wukong.curate import hash_files
from wukong.errors import ConfigError, DataError
from wukong.evaluate import fingerprints
from wukong.evaluate.data_set import ClassificationData, RetrievalData
from wukong.evaluate.published import Caption
from wukong.store import storage


class Drawn:
    """Pictures of coloured squares, of which some cannot be decoded."""

    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def image(self, i):
        if i in self.broken:
            raise DataError(f"the picture {i} cannot be decoded; download it again")
        pixels = np.random.default_rng(i).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        return Image.fromarray(pixels).resize((200, 160), Image.Resampling.BICUBIC)

    def digest(self, i):
        return None


CAPTIONS = [Caption("一只猫", (0, 1)), Caption("狗", ()), Caption("一只猫", (2,))]


def retrieval(count=3, broken=(), captions=CAPTIONS):
    return RetrievalData(
        "boxes", "test", [f"{n}.jpg" for n in range(count)], captions, False, Drawn(count, broken), "Boxes"
    )


def pdq_of(image):
    bits, quality = pdqhash.compute(np.asarray(image))
    return np.packbits(bits), quality


def test_pictures_and_captions_of_a_set_are_hashed_and_the_unreadable_are_counted(caplog):
    data = retrieval(130, broken=(1, 129))
    made = fingerprints.of_set(data)
    assert (made.name, made.split, made.digest) == ("boxes", "test", data.digest)
    assert list(made.pictures) == [f"{n}.jpg" for n in range(130) if n not in (1, 129)]
    assert made.unread == 2 and "the picture 129 cannot be decoded" in caplog.text
    expected = [pdq_of(data.image(n)) for n in range(130) if n not in (1, 129)]
    assert np.bitwise_count(made.hashes ^ np.stack([bits for bits, _ in expected])).sum(axis=1).max() <= 8
    assert np.abs(made.quality - np.array([quality for _, quality in expected])).max() <= 1
    assert set(made.captions.tolist()) == set(hash_files.caption_hashes(pl.Series(["一只猫", "狗"])).tolist())
    assert made.vectors is None and made.made_by == ""


def test_a_classification_set_has_no_captions():
    data = ClassificationData("boxes", "test", ["a"], ["x", "y"], np.zeros(2, np.int64), Drawn(2), "Boxes")
    made = fingerprints.of_set(data)
    assert list(made.pictures) == ["x", "y"] and not len(made.captions)


def test_vectors_are_those_of_the_model_in_the_order_of_the_pictures():
    def brightness(images):
        return np.array([[np.asarray(image).mean() / 255, 1] for image in images], dtype=np.float16)

    data = retrieval(70, broken=(3,))
    made = fingerprints.of_set(data, brightness, "m" * 64)
    expected = brightness([data.image(n) for n in range(70) if n != 3])
    assert np.array_equal(made.vectors, expected) and made.made_by == "m" * 64


def test_a_set_of_which_nothing_can_be_read_is_refused():
    with pytest.raises(DataError, match="none of the 2 pictures of boxes can be read; the first: the picture 0"):
        fingerprints.of_set(retrieval(2, broken=(0, 1), captions=()))


@pytest.fixture
def folder(tmp_path):
    """Two pictures, one of them in a folder of its own, a file that is none, and one that is damaged."""
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    Drawn(9).image(0).save(root / "b.png")
    Drawn(9).image(1).save(root / "more" / "a.JPG", format="JPEG")
    (root / "notes.txt").write_text("x")
    (root / "broken.webp").write_bytes(b"RIFF")
    return root


def test_the_command_makes_the_file_of_a_folder(folder, tmp_path):
    result = CliRunner().invoke(app, ["hashes", str(folder), "--output", str(tmp_path / "made.parquet"), "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    made = hash_files.read(storage.from_path(tmp_path / "made.parquet"))
    assert list(made.pictures) == ["b.png", "more/a.JPG"] and made.unread == 1 and made.name == "pictures"
    assert printed == {
        "set": "pictures", "split": "", "digest": made.digest, "file": storage.from_path(tmp_path / "made.parquet"),
        "pictures": 2, "unread": 1, "poor": 0, "captions": 0,
    }  # fmt: skip
    shown = CliRunner().invoke(app, ["hashes", str(folder), "-o", str(tmp_path / "again.parquet")]).stdout
    assert "2 pictures" in shown and "1 pictures could not be read" in shown
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "made.parquet").read_bytes()


def test_the_digest_of_a_folder_is_of_names_and_content(folder):
    first = fingerprints.of_folder(folder).digest
    (folder / "notes.txt").write_text("y")
    assert fingerprints.of_folder(folder).digest == first
    (folder / "b.png").rename(folder / "c.png")
    assert fingerprints.of_folder(folder).digest != first


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        (["no-such-set"], ConfigError, "no-such-set is neither an evaluation set nor a folder"),
        (["FOLDER", "--split", "test"], ConfigError, "a folder of pictures, which has no splits"),
        (["EMPTY"], DataError, "holds no picture"),
        (["imagenet", "--sets", "EMPTY"], DataError, "is not there"),
    ],
)
def test_what_cannot_be_hashed_is_refused_with_the_remedy(folder, tmp_path, arguments, kind, says):
    (tmp_path / "empty").mkdir()
    places = {"FOLDER": str(folder), "EMPTY": str(tmp_path / "empty")}
    arguments = ["hashes", *(places.get(each, each) for each in arguments), "-o", str(tmp_path / "made.parquet")]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, kind) and says in str(result.exception)
    assert not (tmp_path / "made.parquet").exists()
