import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import torch
from PIL import Image

from wukong.config.model import ImageEncoder
from wukong.config.training import Training
from wukong.data import feature_files, images, shards
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.model.dual import DualEncoder
from wukong.store import storage
from wukong.store.manifest import Manifest, Part
from wukong.train import checkpoint, feature_pairs, stream

# FIXME training_data.features
# FIXME training_data.storage
from wukong.train import corpus as corpus_module
from wukong.train import pairs as pairs_module
from wukong.train.corpus import Corpus
from wukong.train.feature_pairs import FeaturePairs
from wukong.train.loop import train
from wukong.train.picture_pairs import PicturePairs
from wukong.train.state import Epoch
from wukong.train.stream import Piece

COUNT, SIZE = 7, 24
TOWER = ImageEncoder(image_size=SIZE)
TOKENIZER = Tokenizer(packaged_vocabulary())


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


def corpus(prefix: str, sources: tuple[str, ...] = ("*",), names: tuple[str, ...] = ("00000", "00001")) -> Corpus:
    rows = corpus_module.count_rows(prefix, "train", names, sources)
    return Corpus(prefix, names, tuple(rows), "digest", sources)


def pictures(prefix: str, tower: ImageEncoder = TOWER, of: Corpus | None = None, **settings: object) -> PicturePairs:
    training = Training.model_validate({"lock": "none", "loader_workers": 0, **settings})
    return PicturePairs(of or corpus(prefix), TOKENIZER, tower, training)


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
    same = FeaturePairs._loaded(pictures(prefix), Piece(0, 0, 3), ["a", "b", "c"], ["猫", "狗", "猫"], []).captions
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


@pytest.mark.slow
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


def test_only_pairs_of_some_sources_are_read(prefix: str) -> None:
    some = corpus(prefix, ("*/1/*",))
    assert some.rows == (2, 1)
    numbers = {}
    for batch in pictures(prefix, of=some, augmentations=[]).batches(1, 0):
        numbers[int(batch.rows[0])] = batch.features[0].permute(1, 2, 0).numpy()
    assert sorted(numbers) == [0, 1, 2]
    for row, number in enumerate((1, 3, 5)):
        whole = images.evaluation_view(images.decode(encoded(number)), SIZE)
        assert np.array_equal(numbers[row], np.asarray(whole))
    with pytest.raises(DataError, match="no pair of train comes from"):
        corpus(prefix, ("*/2/*",))


def test_a_corpus_is_the_training_pairs_of_a_filter_stage(prefix: str) -> None:
    parts = [
        Part(path=f"train/{shard}.{suffix}", rows=rows, bytes=1, sha256=f"{shard}{suffix}")
        for shard, rows in (("00000", 4), ("00001", 3))
        for suffix in ("parquet", "tar")
    ]
    held = Part(path="test/00000.parquet", rows=9, bytes=1, sha256="held")
    filtered = Manifest(stage="filter", uri=prefix, config={}, parts=(*parts, held))
    whole, some = Corpus.of(filtered), Corpus.of(filtered, ("*/1/*",))
    assert (whole.names, whole.rows, some.rows) == (("00000", "00001"), (4, 3), (2, 1))
    assert Corpus.of(filtered, ("*/1/*",), [2, 1]) == some
    assert whole.digest != some.digest
    others = filtered.model_copy(update={"parts": (*parts, held.model_copy(update={"sha256": "other"}))})
    assert Corpus.of(others).digest == whole.digest, "test sets do not decide the order of training"
    changed = [parts[0].model_copy(update={"sha256": "other"}), *parts[1:]]
    assert Corpus.of(filtered.model_copy(update={"parts": tuple(changed)})).digest != whole.digest


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


@mock.patch.multiple(stream, WHOLE=0, WINDOW=8, LANE=4)
def test_a_shard_of_many_windows_is_read_in_large_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    names, each = [f"{number:05d}" for number in range(6)], 40
    for shard, name in enumerate(names):
        keys = [f"{name}-{row:02d}" for row in range(each)]
        table = pa.table({"key": keys, "url": keys, "caption": keys})
        pq.write_table(table, tmp_path / "train" / f"{name}.parquet")
        values = torch.arange(each)[:, None] + 100.0 * shard
        feature_files.write(storage.from_path(tmp_path / feature_files.path_of("train", name, 0)), keys, values.half())
    prefix = storage.from_path(tmp_path)
    of = Corpus(prefix, tuple(names), (each,) * len(names), "digest")
    reads: list[str] = []
    for module, name in ((storage, "read_table"), (feature_files, "read_rows")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda uri, *rest, _real=real: reads.append(uri) or _real(uri, *rest))

    pairs = FeaturePairs(of, TOKENIZER, prefix, (0,))
    batches = list(pairs.batches(8, 0, last=60))  # two epochs of 240 pairs, two lanes
    for batch in batches:
        shards, rows = batch.rows // each, batch.rows % each
        assert torch.equal(batch.features[:, 0], 100.0 * shards + rows)
    # Each table and each file once an epoch, and a few times more the shard of whose five windows two threads read.
    assert len(reads) <= 2 * 2 * (len(names) + 2)
    monkeypatch.setattr(feature_pairs, "_BLOCK_BYTES", 0)
    again = FeaturePairs(of, TOKENIZER, prefix, (0,)).batches(8, 0, last=60)
    for batch, other in zip(batches, again, strict=True):
        assert torch.equal(batch.features, other.features) and torch.equal(batch.rows, other.rows)


@pytest.mark.parametrize("sources", [("*",), ("*-?[13579]",)])
@pytest.mark.parametrize("most", [0, 1 << 10, 1 << 14])
@mock.patch.multiple(stream, WHOLE=0, WINDOW=8, LANE=1)
def test_what_is_kept_is_bounded_in_bytes_and_changes_no_pair(
    most: int, sources: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen lanes, each with a table and two files of features of its own: three views of 128 numbers, 100 rows."""
    (tmp_path / "train").mkdir()
    names, each = [f"{number:05d}" for number in range(16)], 100
    for name in names:
        keys = [f"{name}-{row:02d}" for row in range(each)]
        table = pa.table({"key": keys, "url": keys, "caption": [f"图{key}" for key in keys]})
        pq.write_table(table, tmp_path / "train" / f"{name}.parquet")
        for view in (0, 1):
            values = torch.randn(each, 128, generator=torch.Generator().manual_seed(view)).half()
            feature_files.write(storage.from_path(tmp_path / feature_files.path_of("train", name, view)), keys, values)
    prefix = storage.from_path(tmp_path)
    of = corpus(prefix, sources, tuple(names))
    plain = list(FeaturePairs(of, TOKENIZER, prefix, (0, 1)).batches(16, 0))
    monkeypatch.setattr(feature_pairs, "_KEPT_FEATURES", most)
    monkeypatch.setattr(pairs_module, "_KEPT_TABLES", most)
    pairs = FeaturePairs(of, TOKENIZER, prefix, (0, 1))
    held = []
    for batch, expected in zip(pairs.batches(16, 0), plain, strict=True):
        assert torch.equal(batch.rows, expected.rows) and torch.equal(batch.features, expected.features)
        assert torch.equal(batch.ids, expected.ids) and torch.equal(batch.captions, expected.captions)
        tables = [table for _, (_, table) in pairs._tables._items.copy().values()]
        blocks = [values for _, (*_, values) in pairs._blocks._items.copy().values()]
        # Of the buffers, which a slice of a larger table would hold as a whole.
        held.append(sum(table.get_total_buffer_size() for table in tables))
        assert held[-1] <= 1.3 * most
        assert sum(values.untyped_storage().nbytes() for values in blocks) <= most
    assert max(held) > most / 4 or most < 1 << 14, "what there is room for is kept"


def test_what_does_not_fit_makes_the_oldest_go() -> None:
    kept = pairs_module.Kept[str](10)
    for name, size in (("a", 4), ("b", 4), ("c", 4)):
        kept.keep(name, name, size)
    assert [kept.take(name) for name in "abc"] == [None, "b", "c"]
    kept.keep("d", "large", 11)
    kept.keep("e", "old", 9)
    kept.keep("e", "new", 10)
    assert kept.take("d") is None and kept.take("e") == "new"
    kept.keep("f", "f", 10)
    assert kept.take("f") == "f", "what was taken or replaced takes no room"


def write(folder: Path, members: dict[str, bytes], keys: Sequence[str]) -> PicturePairs:
    """One shard with a table of some pairs and a tar of some images."""
    (folder / "train").mkdir(exist_ok=True)
    rows = [{"key": key, "url": "http://x/1.jpg", "caption": key, "sha256": "0"} for key in keys]
    pq.write_table(pa.Table.from_pylist(rows), folder / "train" / "00000.parquet")
    with tarfile.open(folder / "train" / "00000.tar", "w") as tar:
        for key, content in members.items():
            entry = tarfile.TarInfo(f"{key}.jpg")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    prefix = storage.from_path(folder)
    return pictures(prefix, of=corpus(prefix, names=("00000",)))


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
    of = corpus(prefix, names=("00000",))
    (plain,) = pictures(prefix, of=of, max_broken_pictures=9, augmentations=[]).batches(6, 0)
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
    seen = pictures(prefix, ImageEncoder(image_size=32), of=corpus(prefix, names=("00000",)), max_broken_pictures=2)
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


def stored_features(folder: Path, keys: Sequence[str], values: torch.Tensor, view: int) -> None:
    target = storage.join(storage.from_path(folder), feature_files.path_of("train", "00000", view))
    with mock.patch.object(torch, "isfinite", torch.ones_like):  # as if a tower's output had not been looked at
        feature_files.write(target, keys, values)


def test_stored_features_are_those_of_their_pairs(tmp_path: Path) -> None:
    keys = [f"p{number}" for number in range(8)]
    (tmp_path / "pairs").mkdir()
    write(tmp_path / "pairs", {}, keys)
    prefix = storage.from_path(tmp_path / "pairs")
    values = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(0)).half()
    for view in (0, 1):
        stored_features(tmp_path, keys, values[view], view)
    of = corpus(prefix, names=("00000",))
    pairs = FeaturePairs(of, TOKENIZER, storage.from_path(tmp_path), (0, 1))
    views = set()
    for batch in pairs.batches(4, 0, last=40):
        for row, found in zip(batch.rows.tolist(), batch.features, strict=True):
            (view,) = [view for view in (0, 1) if torch.equal(values[view, row].float(), found)]
            views.add((row, view))
    assert len(views) == 16  # each view of each pair is chosen in some epoch
    assert torch.equal(pairs.load(Piece(0, 2, 5)).pictures, values[:, 2:5])
    assert torch.equal(pairs.sample(5, view=1), values[1, :5])


def test_features_of_other_pairs_or_not_finite_or_cut_short_are_refused(tmp_path: Path) -> None:
    keys = ["a", "b", "c"]
    (tmp_path / "pairs").mkdir()
    write(tmp_path / "pairs", {}, keys)
    prefix = storage.from_path(tmp_path)
    pairs = FeaturePairs(corpus(f"{prefix}/pairs", names=("00000",)), TOKENIZER, prefix, (0,))
    stored_features(tmp_path, ["a", "c", "b"], torch.ones(3, 4).half(), 0)
    with pytest.raises(DataError, match="features of other pairs than"):
        list(pairs.batches(3, 0))
    stored_features(tmp_path, keys, torch.tensor([[1.0], [torch.inf], [2.0]]).half(), 0)
    with pytest.raises(DataError, match=r"the pair b in .*view00.safetensors are not finite"):
        list(pairs.batches(3, 0))
    stored_features(tmp_path, keys, torch.ones(3, 400).half(), 0)
    path = tmp_path / feature_files.path_of("train", "00000", 0)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"view00.safetensors is damaged"):
        list(pairs.batches(3, 0))


def test_a_shard_that_was_replaced_is_named(tmp_path: Path) -> None:
    pairs = write(tmp_path, {"a": encoded(0)}, ["a"])
    write(tmp_path, {"a": encoded(0), "b": encoded(1)}, ["a", "b"])
    with pytest.raises(DataError, match=r"00000\.parquet has 2 pairs to train on and had 1"):
        list(pairs.batches(1, 0))


@pytest.mark.slow
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
