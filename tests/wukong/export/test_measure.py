import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from wukong.errors import DataError
from wukong.export import measure, parts
from wukong.export.measure import Exported
from wukong.model.dual import Texts
from wukong.model.saved_model import SavedModel
from wukong.store import storage
from wukong.store.manifest import Stage

CAPTIONS = ["红色的苹果", "一只猫", "雪", "山上的树", "海", "两只鸟", "一本书", "汽车", "房子", "花"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures with captions beside them, and one without."""
    made = tmp_path / "pictures"
    made.mkdir()
    for number, (picture, caption) in enumerate(zip(parts.sample_pictures(10), CAPTIONS, strict=True)):
        picture.save(made / f"{number}.png")
        (made / f"{number}.txt").write_text(caption, encoding="utf-8")
    Image.new("RGB", (20, 20)).save(made / "bare.png")
    return made


def stage(root: Path, split: dict[str, list[dict[str, str]]], shards: dict[str, Sequence[str]]) -> str:
    """The output of a filter stage: a shard for each split, whose pairs have the captions given, and grey pictures."""
    made = Stage(storage.from_path(root), "filter", {"split": split})
    described = []
    for name, captions in shards.items():
        keys = [f"{name}-{number}" for number in range(len(captions))]
        columns = {"key": keys, "url": keys, "caption": list(captions), "sha256": keys}
        storage.write_table(made.path(f"{name}/00000.parquet"), pa.table(columns))
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, key in enumerate(keys):
                data = io.BytesIO()
                Image.new("RGB", (8, 8), (number,) * 3).save(data, "PNG")
                info = tarfile.TarInfo(f"{key}.jpg")
                info.size = data.tell()
                tar.addfile(info, io.BytesIO(data.getvalue()))
        storage.write_bytes(made.path(f"{name}/00000.tar"), packed.getvalue())
        described += [made.describe(f"{name}/00000.{end}", len(keys)) for end in ("tar", "parquet")]
    return made.commit(described).uri


def test_of_a_filter_stage_the_hold_outs_are_measured(tmp_path: Path) -> None:
    split = {"holdouts": [{"name": "new-word"}, {"name": "new-style"}, {"name": "empty"}]}
    uri = stage(tmp_path, split, {"train": CAPTIONS[:6], "new-word": CAPTIONS[6:8], "new-style": CAPTIONS[8:]})
    data = measure.read(uri)
    assert sorted(caption.text for caption in data.captions) == sorted(CAPTIONS[6:])
    assert data.title == f"the hold-outs of {uri}"
    assert sorted(data.ids) == ["new-style-0", "new-style-1", "new-word-0", "new-word-1"]
    assert data.image(1).getpixel((0, 0)) == (1, 1, 1)
    seen = [each.getpixel((0, 0)) for each in measure.calibration(uri, 3)]
    assert seen == [(0, 0, 0), (1, 1, 1), (2, 2, 2)], "those of the training"


def test_without_hold_outs_it_is_the_training(tmp_path: Path) -> None:
    uri = stage(tmp_path, {"holdouts": []}, {"train": CAPTIONS})
    data = measure.read(f"{uri}/manifest.json", most=4)
    assert data.ids == [f"train-{number}" for number in range(4)]
    assert data.title.startswith("the pairs of the training of ")


def test_of_a_folder_those_with_captions_are_measured(folder: Path) -> None:
    data = measure.read(str(folder), most=7)
    assert [caption.text for caption in data.captions] == CAPTIONS[:7]
    assert data.image(2).size == parts.sample_pictures(10)[2].size
    last = [each.size for each in measure.calibration(str(folder), 2)]
    assert last == [each.size for each in parts.sample_pictures(10)[-2:]]


def test_a_picture_that_cannot_be_decoded_is_left_out_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "3.png").write_bytes(b"no picture")
    assert [caption.text for caption in measure.read(str(folder), most=5).captions] == [*CAPTIONS[:3], *CAPTIONS[4:6]]
    assert "3.png" in caplog.text and "left out of what is measured" in caplog.text


def test_what_cannot_be_measured_on_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "bare.png")
    with pytest.raises(DataError, match="holds fewer than two pictures with captions"):
        measure.read(str(tmp_path))


@pytest.mark.slow
def test_the_loss_is_that_of_recalls_counted_by_hand(clip_vit: SavedModel, folder: Path) -> None:
    turned = torch.randperm(10, generator=torch.Generator().manual_seed(1))

    def pictures(given: Sequence[Image.Image]) -> torch.Tensor:
        """One picture in two gets the vector of its own caption."""
        vectors = clip_vit.encode_text([CAPTIONS[place] for place in turned]).vectors
        own = clip_vit.encode_text(CAPTIONS).vectors
        return torch.where(torch.arange(10)[:, None] % 2 == 0, own, vectors)

    def captions(given: Sequence[str]) -> Texts:
        return clip_vit.encode_text(given)

    checks = measure.loss(clip_vit, Exported(clip_vit, pictures, captions), str(folder), "by hand")
    found = {(each.of.split(" on ")[0], each.measure): each.value for each in checks}

    def recall(scores: np.ndarray) -> float:
        """Share of the rows whose own column is above all others."""
        others = np.where(np.eye(10, dtype=bool), -np.inf, scores).max(1)
        return float((scores.diagonal() > others).mean())

    images = clip_vit.encode_image([str(folder / f"{number}.png") for number in range(10)])
    texts = clip_vit.encode_text(CAPTIONS).vectors
    before, after = (images @ texts.T).numpy(), (pictures([]) @ texts.T).numpy()
    for name, one, other in (
        ("R@1 image to text", before, after),
        ("R@1 text to image", before.T, after.T),
    ):
        assert found[name, "before"] == pytest.approx(recall(one))
        assert found[name, "after"] == pytest.approx(recall(other))
        assert found[name, "difference"] == pytest.approx(recall(other) - recall(one))
        assert found[name, "difference, 95 % interval from"] < found[name, "difference, 95 % interval to"]
