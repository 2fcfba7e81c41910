from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pair_files
import pytest
import small
import torch
from pair_files import COUNT, SIZE, TOKENIZER, corpus, encoded, pictures, write

from wukong.config.model import ImageEncoder
from wukong.config.training import Training
from wukong.data import images, shards
from wukong.errors import DataError
from wukong.model.dual import DualEncoder
from wukong.store import storage
from wukong.train import checkpoint, stream
from wukong.train.loop import train
from wukong.train.picture_pairs import PicturePairs
from wukong.train.state import Epoch
from wukong.train.stream import Piece


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven pairs in two shards."""
    return pair_files.seven_pairs(tmp_path_factory.mktemp("filter"))


def shown(pairs: PicturePairs, number: int, epoch: int) -> np.ndarray:
    """The view of one pair in an epoch, as height x width x 3."""
    steps = len(pairs)
    for batch in pairs.batches(1, 0, epoch * steps, last=(epoch + 1) * steps):
        if int(batch.rows[0]) == number:
            return batch.features[0].permute(1, 2, 0).numpy()
    raise AssertionError(f"pair {number} was not seen")


def test_an_image_is_the_view_of_its_pair_and_epoch(prefix: str) -> None:
    pairs = pictures(prefix)
    assert len(pairs) == COUNT
    for number in (5, 0):
        expected = images.augmented_view(images.decode(encoded(number)), SIZE, images.view_seed(f"k{number}", 3))
        assert np.array_equal(shown(pairs, number, epoch=2), np.asarray(expected))


def test_captions_stand_beside_their_images(prefix: str) -> None:
    batches = list(pictures(prefix).batches(7, 0))
    ids = TOKENIZER([f"图{number}" for number in batches[0].rows.tolist()])
    assert torch.equal(batches[0].ids, ids)
    same = pictures(prefix).loaded(Piece(0, 0, 3), ["a", "b", "c"], ["猫", "狗", "猫"], []).captions
    assert same[0] == same[2] != same[1]


def test_without_augmentations_an_image_is_its_evaluation_view(prefix: str) -> None:
    pairs = pictures(prefix, ImageEncoder(image_size=SIZE, view="crop"), augmentations=[])
    expected = images.evaluation_view(images.decode(encoded(1)), SIZE, "crop")
    assert np.array_equal(shown(pairs, 1, epoch=4), np.asarray(expected))


def test_only_the_configured_augmentations_are_applied(prefix: str) -> None:
    image = images.decode(encoded(1))
    whole = np.asarray(images.evaluation_view(image, SIZE))
    assert np.array_equal(shown(pictures(prefix, augmentations=[]), 1, epoch=4), whole)
    square = np.asarray(images.augmented_view(image, SIZE, 0, ["flip"]))
    flips = {images.augmented_view(image, SIZE, seed, ["flip"]).tobytes() for seed in range(20)}
    assert flips == {square.tobytes(), square[:, ::-1].tobytes()}
    crops = {images.augmented_view(image, SIZE, seed, ["crop"]).tobytes() for seed in range(5)}
    assert len(crops) == 5
    assert images.augmented_view(image, SIZE, 3).tobytes() not in crops


@pytest.mark.long
def test_loader_processes_give_equal_images(prefix: str) -> None:
    """Also in a second epoch, in another order; and torch's global generator is not used."""
    here, there = (pictures(prefix, loader_workers=n) for n in (0, 2))
    torch.manual_seed(1)
    expected = list(here.batches(2, 0, last=6))
    drawn = torch.rand(())
    torch.manual_seed(1)
    found = list(there.batches(2, 0, last=6))
    assert torch.rand(()) == drawn
    assert len(found) == 2 * (COUNT // 2)
    for batch, other in zip(found, expected, strict=True):
        assert torch.equal(batch.features, other.features) and torch.equal(batch.rows, other.rows)
    shares = [list(here.batches(2, 0, 0, rank, 2)) for rank in (0, 1)]
    for first, second, batch in zip(*shares, here.batches(2, 0, 0), strict=True):
        assert torch.equal(torch.cat([first.features, second.features]), batch.features)


@mock.patch.multiple(stream, WHOLE=0, WINDOW=2, LANE=1)  # so that few pairs have several lanes and windows
def test_pairs_of_many_windows_are_their_images_after_any_cut(prefix: str) -> None:
    pairs = pictures(prefix, augmentations=[])
    whole = list(pairs.batches(2, 0, last=6))
    for epoch in (0, 1):
        numbers = [row for batch in whole[3 * epoch : 3 * epoch + 3] for row in batch.rows.tolist()]
        assert len(set(numbers)) == 6
    for batch in whole:
        assert torch.equal(batch.ids, TOKENIZER([f"图{row}" for row in batch.rows.tolist()]))
        for row, view in zip(batch.rows.tolist(), batch.features, strict=True):
            expected = images.evaluation_view(images.decode(encoded(row)), SIZE)
            assert np.array_equal(view.permute(1, 2, 0).numpy(), np.asarray(expected))
    for cut in range(6):
        rest = [batch.rows.tolist() for batch in pairs.batches(2, 0, cut, last=6)]
        assert rest == [batch.rows.tolist() for batch in whole[cut:]]


def test_a_picture_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    keys = ["whole", "damaged"]
    with pytest.raises(DataError, match=r"00000\.tar lacks the picture of the pair damaged"):
        list(write(tmp_path, {"whole": encoded(0)}, keys).batches(2, 0))
    swapped = {"damaged": encoded(0), "whole": encoded(1)}
    with pytest.raises(DataError, match=r"00000\.tar lacks the picture of the pair whole"):
        list(write(tmp_path, swapped, keys).batches(2, 0))
    pairs = write(tmp_path, {"whole": encoded(0), "damaged": encoded(1)[:300]}, keys)
    with pytest.raises(DataError, match=r"damaged\.jpg of .*00000\.tar cannot be decoded"):
        list(pairs.batches(2, 0))
    (tmp_path / "train" / "00000.tar").unlink()
    with pytest.raises(DataError, match=r"00000\.tar: there is nothing at that address"):
        list(pairs.batches(2, 0))


def test_a_pair_takes_the_place_of_one_whose_picture_is_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = {f"p{number}": encoded(number) for number in range(6)} | {"p2": b"no picture", "p4": b"none"}
    write(tmp_path, members, list(members))
    prefix = storage.from_path(tmp_path)
    data = corpus(prefix, names=("00000",))
    (plain,) = pictures(prefix, data=data, max_broken_pictures=9, augmentations=[]).batches(6, 0)
    assert plain.broken == 2
    assert set(plain.rows.tolist()) == {0, 1, 3, 5}
    for row, view in zip(plain.rows.tolist(), plain.features, strict=True):
        expected = images.evaluation_view(images.decode(encoded(row)), SIZE)
        assert np.array_equal(view.permute(1, 2, 0).numpy(), np.asarray(expected))
    assert torch.equal(plain.ids, TOKENIZER([f"p{row}" for row in plain.rows.tolist()]))
    assert sum("p2.jpg" in message for message in caplog.messages) == 1


def test_too_many_broken_pictures_end_the_run(tmp_path: Path) -> None:
    members = {f"p{number}": encoded(number) for number in range(5)} | {"p2": b"no picture"}
    write(tmp_path, members, list(members))
    prefix = storage.from_path(tmp_path)
    settings = Training(epochs=3, workers=1, batch_size=5, learning_rate=0.02, max_broken_pictures=2, loader_workers=0)
    seen = pictures(prefix, ImageEncoder(image_size=32), data=corpus(prefix, names=("00000",)), max_broken_pictures=2)
    model = small.with_tower(lock=12)
    with pytest.raises(DataError, match=r"3 pictures could not be decoded up to step 3, and max_broken_pictures is 2"):
        train(model, seen, settings, 0)


def test_a_shard_is_read_in_pieces_that_follow_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {f"p{number}": encoded(number) for number in range(9)}
    pairs = write(tmp_path, members, list(members))
    begins: list[int] = []
    original = shards.members

    def counted(uri: str, start: int = 0) -> Iterator[shards.Member]:
        begins.append(start)
        return original(uri, start)

    monkeypatch.setattr(shards, "members", counted)
    found = [pairs.load(Piece(0, start, start + 3)) for start in (0, 3, 6)]
    assert [len(piece.pictures) for piece in found] == [3, 3, 3]
    assert [data for piece in found for data in piece.pictures] == [encoded(number) for number in range(9)]
    assert begins[0] == 0 < begins[1] < begins[2]
    assert pairs.load(Piece(0, 4, 5)).pictures == [encoded(4)]  # in any order
    assert begins[3] == 0


@pytest.mark.long
def test_training_an_image_tower_can_be_interrupted_and_resumed(prefix: str, tmp_path: Path) -> None:
    """With pieces, bfloat16 and activation checkpointing, the weights are the same with and without interruption."""
    settings = Training(epochs=2, batch_size=6, learning_rate=0.02, lock=12, micro_batch=4, precision="bfloat16")
    settings = settings.model_copy(update={"checkpoint": small.EACH})
    # A folder each: a writer keeps the newest checkpoints of its folder only.
    cut_short, undisturbed, continued = (storage.from_path(tmp_path / name) for name in ("cut", "whole", "continued"))

    def run(epochs_until_cut: int, uri: str, resume: str | None = None) -> DualEncoder:
        model = small.with_tower(lock=12)
        assert model.image is not None
        model.text.checkpoint_activations = model.image.checkpoint_activations = True
        writer = checkpoint.Writer(uri)

        def cut(epoch: Epoch) -> None:
            if epoch.epoch > epochs_until_cut:
                raise KeyboardInterrupt

        seen = pictures(prefix, ImageEncoder(image_size=32))
        try:
            train(model, seen, settings, 0, cut, checkpoints=writer, resume=resume)
        except KeyboardInterrupt:
            writer.wait()
        writer.close()
        return model

    run(1, cut_short)
    after_first = checkpoint.newest(cut_short)
    assert after_first is not None and "checkpoint_000000001-" in after_first
    whole, given = run(2, undisturbed).state_dict(), small.with_tower().state_dict()
    resumed = run(2, continued, after_first).state_dict()
    moved = {name for name, value in given.items() if not torch.equal(value, whole[name])}
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    trained = {name for name in moved if name.startswith("image.backbone")}
    assert "image.backbone.blocks.11.attn.qkv.weight" in trained
    assert all(name.startswith(("image.backbone.blocks.11", "image.backbone.norm")) for name in trained), trained
