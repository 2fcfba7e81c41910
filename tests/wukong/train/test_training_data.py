import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import torch
from PIL import Image

from wukong import storage
from wukong.config import ImageEncoder, Training
from wukong.data import images
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.model.dual import DualEncoder
from wukong.train import training_data
from wukong.train.loop import Epoch, train

COUNT, SIZE = 7, 24
TOWER = ImageEncoder(image_size=SIZE)


def encoded(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards of pairs, as the filter stage writes them."""
    folder = tmp_path_factory.mktemp("filter")
    (folder / "train").mkdir()
    for shard, numbers in (("00000", range(4)), ("00001", range(4, COUNT))):
        rows = [
            {"key": f"k{n}", "url": f"http://x/{n % 2}/{n}.jpg", "caption": f"图{n}", "sha256": str(n)} for n in numbers
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "train" / f"{shard}.parquet")
        with tarfile.open(folder / "train" / f"{shard}.tar", "w") as tar:
            for number in numbers:
                for suffix, content in (("jpg", encoded(number)), ("txt", f"图{number}".encode())):
                    entry = tarfile.TarInfo(f"k{number}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return storage.from_path(folder)


def pictures(prefix: str, **settings: object) -> tuple[pa.Table, training_data.Pictures]:
    training = Training.model_validate({"lock": "none", "loader_workers": 0, **settings})
    return training_data.load_pictures(prefix, "train", ["00000", "00001"], TOWER, training)


def test_an_image_is_the_view_of_its_pair_and_epoch(prefix: str) -> None:
    table, found = pictures(prefix)
    assert table["key"].to_pylist() == [f"k{number}" for number in range(COUNT)]
    (batch,) = found.batches([torch.tensor([5, 0])], epoch=2)
    for row, tensor in zip((5, 0), batch, strict=True):
        picture = images.decode(encoded(row))
        expected = images.augmented_view(picture, SIZE, images.view_seed(f"k{row}", 3))
        assert np.array_equal(tensor.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_without_augmentations_an_image_is_its_evaluation_view(prefix: str) -> None:
    training = Training.model_validate({"lock": "none", "loader_workers": 0, "augmentations": []})
    tower = ImageEncoder(image_size=SIZE, view="crop")
    _, found = training_data.load_pictures(prefix, "train", ["00000", "00001"], tower, training)
    (batch,) = found.batches([torch.tensor([1])], epoch=4)
    expected = images.evaluation_view(images.decode(encoded(1)), SIZE, "crop")
    assert np.array_equal(batch[0].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_only_the_configured_augmentations_are_applied(prefix: str) -> None:
    image = images.decode(encoded(1))
    whole = np.asarray(images.evaluation_view(image, SIZE))
    (plain,) = pictures(prefix, augmentations=[])[1].batches([torch.tensor([1])], epoch=4)
    assert np.array_equal(plain[0].permute(1, 2, 0).numpy(), whole)
    square = np.asarray(images.augmented_view(image, SIZE, 0, ["flip"]))
    flips = {images.augmented_view(image, SIZE, seed, ["flip"]).tobytes() for seed in range(20)}
    assert flips == {square.tobytes(), square[:, ::-1].tobytes()}
    crops = {images.augmented_view(image, SIZE, seed, ["crop"]).tobytes() for seed in range(5)}
    assert len(crops) == 5
    assert images.augmented_view(image, SIZE, 3).tobytes() not in crops


@pytest.mark.slow
def test_loader_processes_give_equal_images(prefix: str) -> None:
    """Also in a second epoch, in another order; and torch's global generator is not used."""
    captions = pictures(prefix)[0]["caption"].to_pylist()
    tokenizer = Tokenizer(packaged_vocabulary())
    (here, there) = (training_data.Pairs(pictures(prefix, loader_workers=n)[1], captions, tokenizer) for n in (0, 2))
    for epoch in (0, 1):
        torch.manual_seed(1)
        expected = list(here.batches(2, 0, epoch))
        drawn = torch.rand(())
        torch.manual_seed(1)
        found = list(there.batches(2, 0, epoch))
        assert torch.rand(()) == drawn
        assert len(found) == COUNT // 2
        for batch, other in zip(found, expected, strict=True):
            assert torch.equal(batch.features, other.features) and torch.equal(batch.rows, other.rows)
    shares = [list(here.batches(2, 0, 0, rank, 2)) for rank in (0, 1)]
    for first, second, batch in zip(*shares, here.batches(2, 0, 0), strict=True):
        assert torch.equal(torch.cat([first.features, second.features]), batch.features)


def test_only_pairs_of_some_sources_are_read(prefix: str) -> None:
    table, found = pictures(prefix, sources=["*/1/*"])
    assert table["key"].to_pylist() == ["k1", "k3", "k5"] and len(found) == 3
    with pytest.raises(DataError, match="no pair of train comes from"):
        pictures(prefix, sources=["*/2/*"])


def test_a_picture_that_is_missing_or_damaged_is_named(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    rows = [{"key": key, "url": "http://x/1.jpg", "caption": "图", "sha256": "0"} for key in ("whole", "damaged")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train" / "00000.parquet")

    def write(members: dict[str, bytes]) -> None:
        with tarfile.open(tmp_path / "train" / "00000.tar", "w") as tar:
            for key, content in members.items():
                entry = tarfile.TarInfo(f"{key}.jpg")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))

    def load() -> training_data.Pictures:
        settings = Training(lock="none", loader_workers=0)
        return training_data.load_pictures(storage.from_path(tmp_path), "train", ["00000"], TOWER, settings)[1]

    write({"whole": encoded(0)})
    with pytest.raises(DataError, match="lack the picture 'damaged'"):
        load()
    write({"whole": encoded(0), "damaged": encoded(1)[:300]})
    with pytest.raises(DataError, match=r"damaged\.jpg of .*00000\.tar cannot be decoded"):
        list(load().batches([torch.tensor([0, 1])], 0))


@pytest.mark.slow
def test_training_an_image_tower_can_be_interrupted_and_resumed(prefix: str, tmp_path: Path) -> None:
    """With pieces, bfloat16 and activation checkpointing, the weights are the same with and without interruption."""
    settings = Training(epochs=2, batch_size=6, learning_rate=0.02, lock=12, micro_batch=4, precision="bfloat16")
    captions = pictures(prefix)[0]["caption"].to_pylist()

    def run(after: Callable[[Epoch, Callable[[Path], None]], None], resume: Path | None = None) -> DualEncoder:
        model = small.with_tower(lock=12)
        assert model.image is not None
        model.text.checkpoint_activations = model.image.checkpoint_activations = True
        training = Training(lock="none", loader_workers=0)
        seen = training_data.load_pictures(prefix, "train", ["00000", "00001"], ImageEncoder(image_size=32), training)[
            1
        ]
        train(model, training_data.Pairs(seen, captions, Tokenizer(packaged_vocabulary())), settings, 0, after, resume)
        return model

    def keep_first(epoch: Epoch, write: Callable[[Path], None]) -> None:
        if epoch.epoch == 1:
            write(tmp_path)

    whole, given = run(keep_first).state_dict(), small.with_tower().state_dict()
    resumed = run(lambda _epoch, _write: None, tmp_path).state_dict()
    moved = {name for name, value in given.items() if not torch.equal(value, whole[name])}
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    trained = {name for name in moved if name.startswith("image.backbone")}
    assert "image.backbone.blocks.11.attn.qkv.weight" in trained
    assert all(name.startswith(("image.backbone.blocks.11", "image.backbone.norm")) for name in trained), trained
