"""Shards that vanish or are damaged while a run reads them.

The oracle is the undisturbed run: each of its pairs stands where it stood, and those of a lost shard are replaced by
the pairs at the same rows of the shard behind it.
"""

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import torch
import workers
from object_store import ObjectStore
from PIL import Image

from wukong.config.model import ImageEncoder
from wukong.config.training import Training
from wukong.data import feature_files
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError, StorageError
from wukong.model.dual import DualEncoder
from wukong.store import patience, storage
from wukong.train import checkpoint, stream
from wukong.train.batches import Batch
from wukong.train.corpus import Corpus
from wukong.train.feature_pairs import FeaturePairs
from wukong.train.looks import Look
from wukong.train.loop import train
from wukong.train.pairs import Loaded, Pairs
from wukong.train.picture_pairs import PicturePairs
from wukong.train.stream import Piece

SHARDS, ROWS, SIZE = 4, 6, 16
TOKENIZER = Tokenizer(packaged_vocabulary())
FEW = mock.patch.multiple(stream, WHOLE=0, WINDOW=2, LANE=2)  # so that few pairs have several lanes and windows


def written(folder: Path, rows: tuple[int, ...] = (ROWS,) * SHARDS) -> Corpus:
    """Shards as the filter stage writes them; the picture of pair n has the colour (n, 2n, 255 - n)."""
    (folder / "train").mkdir(parents=True)
    number = 0
    for shard, count in enumerate(rows):
        keys = [f"k{number + row:03d}" for row in range(count)]
        captions = [f"图{number + row}" for row in range(count)]
        table = {"key": keys, "url": keys, "caption": captions, "sha256": keys}
        pq.write_table(pa.table(table), folder / "train" / f"{shard:05d}.parquet", compression="none")
        with tarfile.open(folder / "train" / f"{shard:05d}.tar", "w") as tar:
            for row, key in enumerate(keys):
                picture = io.BytesIO()
                n = number + row
                Image.new("RGB", (20, 20), (n, 2 * n, 255 - n)).save(picture, "PNG")
                entry = tarfile.TarInfo(f"{key}.jpg")
                entry.size = len(picture.getvalue())
                tar.addfile(entry, io.BytesIO(picture.getvalue()))
        path = folder / feature_files.path_of("train", f"{shard:05d}", 0)
        values = torch.arange(number, number + count)[:, None].expand(-1, small.WIDTH).half()
        feature_files.write(storage.from_path(path), keys, values)
        number += count
    names = tuple(f"{n:05d}" for n in range(len(rows)))
    tables = tuple(hashlib.sha256((folder / "train" / f"{name}.parquet").read_bytes()).hexdigest() for name in names)
    return Corpus(storage.from_path(folder), names, rows, "digest", tables=tables)


def reading(kind: str, corpus: Corpus, limit: int, loaders: int = 0) -> Pairs:
    if kind == "features":
        return FeaturePairs(corpus, TOKENIZER, corpus.prefix, (0,), limit)
    settings = Training(lock="none", augmentations=(), loader_workers=loaders, max_lost_shards=limit)
    return PicturePairs(corpus, TOKENIZER, ImageEncoder(image_size=SIZE), settings)


def check(batches: list[Batch], expected: list[list[int]]) -> None:
    """Check that batches hold some pairs: their numbers, captions, and images or features."""
    assert [batch.rows.tolist() for batch in batches] == expected
    for batch in batches:
        rows = batch.rows
        assert torch.equal(batch.ids, TOKENIZER([f"图{row}" for row in rows.tolist()]))
        corner = batch.features.flatten(1)[:, 0] if batch.features.ndim == 4 else batch.features[:, -1]
        assert corner.tolist() == rows.tolist()


def replaced(batches: list[list[int]], shard: int, by: int) -> list[list[int]]:
    return [[n + (by - shard) * ROWS if n // ROWS == shard else n for n in batch] for batch in batches]


def shortened(path: Path) -> None:
    data = path.read_bytes()
    # A tar is cut in the middle of its first picture.
    path.write_bytes(data[:560] if path.suffix == ".tar" else data[: len(data) // 2])


def renamed(path: Path) -> None:
    """Alter the keys, which a table has once or twice, a tar once for each file."""
    path.write_bytes(path.read_bytes().replace(b"k0", b"x0"))


def altered(path: Path) -> None:
    """Alter a bit: of a caption, or of the last pair's features, which stay a number."""
    data = bytearray(path.read_bytes())
    place = data.index("图".encode()) + 2 if path.suffix == ".parquet" else len(data) - 2
    data[place] ^= 1
    path.write_bytes(data)


def emptied(path: Path) -> None:
    """A file of features whose header has 0 rows."""
    header = {"__metadata__": {"keys": "[]", "crc32": ""}}
    header |= {"features": {"dtype": "F16", "shape": [0, small.WIDTH], "data_offsets": [0, 0]}}  # type: ignore[dict-item]
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)


DAMAGES: list[tuple[str, str, Callable[[Path], None]]] = [
    (kind, file, damage)
    for kind, files in (("features", ("parquet", "view00.safetensors")), ("pictures", ("parquet", "tar")))
    for file in files
    for damage in (Path.unlink, shortened, renamed, *([] if file == "tar" else [altered]))
] + [("features", "view00.safetensors", emptied)]


@FEW
@pytest.mark.parametrize(("kind", "file", "damage"), DAMAGES)
def test_the_pairs_of_the_next_shard_stand_in_the_places_of_a_lost_one(
    tmp_path: Path, kind: str, file: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    corpus = written(tmp_path)
    whole = [batch.rows.tolist() for batch in reading(kind, corpus, 0).batches(4, 0, last=12)]
    assert len(whole) == 12
    damage(tmp_path / "train" / f"00001.{file}")
    expected = replaced(whole, 1, by=2)
    found = list(reading(kind, corpus, 1).batches(4, 0, last=12))
    check(found, expected)
    for batch, before in zip(found, whole, strict=True):
        assert batch.lost == ({1} if any(n // ROWS == 1 for n in before) else frozenset())
    assert sum("00001." in message for message in caplog.messages) == 1
    # The same for any number of workers, after any cut.
    for cut in (0, 5, 11):
        for count in (2, 4):
            shares = [list(reading(kind, corpus, 1).batches(4, 0, cut, rank, count, 12)) for rank in range(count)]
            joined = [[n for batch in step for n in batch.rows.tolist()] for step in zip(*shares, strict=True)]
            assert joined == expected[cut:]
    with pytest.raises(DataError, match=r"00001\..*cannot be read: 1; max_lost_shards allows 0"):
        list(reading(kind, corpus, 0).batches(4, 0))


@FEW
@pytest.mark.parametrize("kind", ["features", "pictures"])
def test_a_shard_that_vanishes_in_the_middle_of_an_epoch(tmp_path: Path, kind: str) -> None:
    corpus = written(tmp_path, (ROWS,) * 40)
    whole = [batch.rows.tolist() for batch in reading(kind, corpus, 0).batches(4, 0)]
    late = whole[-1][0] // ROWS
    batches, strict = (reading(kind, corpus, limit).batches(4, 0) for limit in (1, 0))
    found = [next(batches) for _ in range(10)]
    assert next(strict).rows.tolist() == whole[0]
    for file in (tmp_path / "train").glob(f"{late:05d}.*"):
        file.unlink()
    found += list(batches)
    expected, numbers = replaced(whole, late, by=(late + 1) % 40), [batch.rows.tolist() for batch in found]
    assert numbers[:10] == whole[:10] and numbers[-1] == expected[-1] != whole[-1]
    # What was read before stays as it was.
    check(found, [w if n == w else e for n, w, e in zip(numbers, whole, expected, strict=True)])
    assert frozenset.union(*(batch.lost for batch in found)) == {late}
    with pytest.raises(DataError, match=rf"{late:05d}\.parquet: there is nothing at that address"):
        list(strict)


@pytest.mark.long
def test_loader_processes_do_not_hang_when_a_shard_vanishes(tmp_path: Path) -> None:
    for limit in (1, 0):
        corpus = written(tmp_path / str(limit))
        with FEW:
            whole = [batch.rows.tolist() for batch in reading("pictures", corpus, 0).batches(4, 0, last=12)]
            batches = reading("pictures", corpus, limit, loaders=1).batches(4, 0, last=12)
            found = [next(batches)]
            (tmp_path / str(limit) / "train" / "00001.tar").unlink()
            if limit:
                found += list(batches)
                assert len(found) == 12
                check(found[-6:], replaced(whole, 1, by=2)[-6:])
            else:
                with pytest.raises(DataError, match=r"00001\.tar: there is nothing at that address"):
                    list(batches)


def test_a_smaller_shard_is_repeated_and_empty_ones_are_passed_over(tmp_path: Path) -> None:
    corpus = written(tmp_path, (0, 3, 0, 7, 0))
    pairs = reading("pictures", corpus, 1)
    (tmp_path / "train" / "00003.tar").unlink()
    found = pairs.load_or_replace(Piece(3, 0, 7))
    assert list(found.numbers) == [0, 1, 2, 0, 1, 2, 0] and found.lost == (3,)
    assert list(found.keys) == [f"k{n:03d}" for n in (0, 1, 2, 0, 1, 2, 0)]
    assert [len(each) for each in (found.ids, found.captions, found.pictures)] == [7, 7, 7]
    # Of rows that the other shard does not have, its last ones.
    assert list(pairs.load_or_replace(Piece(3, 5, 7)).numbers) == [1, 2]
    (tmp_path / "train" / "00001.parquet").unlink()
    with pytest.raises(DataError, match="cannot be read: 2; max_lost_shards allows 1"):
        pairs.load_or_replace(Piece(3, 0, 7))
    with pytest.raises(DataError, match="none of the 2 shards can be read"):
        reading("pictures", corpus, 9).load_or_replace(Piece(3, 0, 7))


def test_a_shard_that_was_put_back_is_read_again(tmp_path: Path) -> None:
    corpus = written(tmp_path)
    pairs, path = reading("features", corpus, 1), tmp_path / "train" / "00001.parquet"
    data = path.read_bytes()
    path.unlink()
    assert list(pairs.load_or_replace(Piece(1, 2, 4)).numbers) == [14, 15]
    path.write_bytes(data)
    assert list(pairs.load_or_replace(Piece(1, 2, 4)).numbers) == [8, 9]


def test_features_are_sampled_from_the_shards_that_are_there(tmp_path: Path) -> None:
    corpus = written(tmp_path)
    (tmp_path / feature_files.path_of("train", "00000", 0)).unlink()
    pairs = reading("features", corpus, 1)
    assert isinstance(pairs, FeaturePairs)
    assert pairs.sample(8)[:, 0].tolist() == [6, 7, 8, 9, 10, 11, 12, 13]
    with pytest.raises(DataError, match="max_lost_shards allows 0"):
        FeaturePairs(corpus, TOKENIZER, corpus.prefix, (0,)).sample(8)


@pytest.mark.parametrize("away", [patience.AwayError("gone"), StorageError("cannot read")])
def test_a_store_that_is_away_has_lost_no_shard(tmp_path: Path, away: StorageError) -> None:
    class Away(FeaturePairs):
        def load(self, piece: Piece) -> Loaded:
            raise away from (None if isinstance(away, patience.AwayError) else patience.AwayError("gone"))

    with pytest.raises(StorageError) as caught:
        list(Away(written(tmp_path), TOKENIZER, "", (0,), 9).batches(4, 0))
    assert caught.value is away


@pytest.mark.long
def test_objects_that_are_deleted_and_a_store_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, here = ObjectStore(tmp_path / "weed"), written(tmp_path / "data", (ROWS,) * 40)
    for name, value in (server.variables() | {patience.VARIABLE: "1"}).items():
        monkeypatch.setenv(name, value)
    server.start()
    try:
        server.wait_ready("bucket")
        for file in (tmp_path / "data" / "train").iterdir():
            storage.upload(file, f"s3://bucket/data/train/{file.name}")
        corpus = replace(here, prefix="s3://bucket/data")
        with FEW:
            whole = [batch.rows.tolist() for batch in reading("pictures", here, 0).batches(4, 0)]
            late = whole[-1][0] // ROWS
            for suffix in (".tar", ".parquet"):
                batches = reading("pictures", corpus, 1).batches(4, 0)
                found = [next(batches) for _ in range(10)]
                storage.delete(corpus.uri(late, suffix))
                found += list(batches)
                assert len(found) == len(whole) and found[-1].lost == {late}
                check(found[-1:], replaced(whole, late, by=(late + 1) % 40)[-1:])
            batches = reading("pictures", corpus, 40).batches(4, 0)
            next(batches)
            server.kill()
            with pytest.raises(StorageError, match="the object store is away"):
                list(batches)
            for thread in threading.enumerate():  # which would wait for longer once the variable is gone
                if thread.name.startswith("read_"):
                    thread.join(30)
                    assert not thread.is_alive()
    finally:
        server.kill()


class CutError(Exception):
    pass


def trained(corpus: Corpus, limit: int, looks: list[Look], uri: str = "", until: int = 99) -> DualEncoder:
    """A model trained on stored features, with a checkpoint at each step, up to a cut."""

    def look(found: Look) -> None:
        looks.append(found)
        if found.step == until:
            raise CutError

    settings = small.SETTINGS.model_copy(update={"epochs": 2, "log_every": 1, "max_lost_shards": limit})
    settings = settings.model_copy(update={"checkpoint": settings.checkpoint.model_copy(update={"steps": 1})})
    model, _ = small.make()
    writer = checkpoint.Writer(uri) if uri else None
    resume = checkpoint.newest(uri) if uri else None
    try:
        pairs = reading("features", corpus, limit)
        train(model, pairs, settings, 0, after_look=look, checkpoints=writer, resume=resume)
    finally:
        if writer:
            writer.wait()
            writer.close()
    return model


@FEW
def test_a_run_without_a_shard_resumes_exactly_and_goes_on_counting(tmp_path: Path) -> None:
    corpus, looks, resumed = written(tmp_path / "data"), list[Look](), list[Look]()
    (tmp_path / "data" / "train" / "00002.parquet").unlink()
    whole = trained(corpus, 1, looks)
    counts = [look.lost_shards for look in looks]
    assert counts == sorted(counts) and counts[-1] == 1 and len(counts) == 6
    uri = storage.from_path(tmp_path / "checkpoints")
    for cut in (2, 4):
        with pytest.raises(CutError):
            trained(corpus, 1, [], uri, cut)
    again = trained(corpus, 1, resumed, uri)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert [look.lost_shards for look in resumed] == counts[-len(resumed) :]
    with pytest.raises(DataError, match=r"00002\.parquet.*max_lost_shards allows 0"):
        trained(corpus, 0, [])


def _two_workers(rank: int, _workers: int, prefix: str, rows: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """What one of two workers has counted, and whether a lower limit has ended the run in an error."""
    corpus = Corpus(prefix, tuple(f"{n:05d}" for n in range(len(rows))), rows, "digest")
    looks: list[Look] = []
    with mock.patch.multiple(stream, WHOLE=0, WINDOW=2, LANE=4):
        trained(corpus, 2, looks)
        with pytest.raises(DataError) as caught:
            trained(corpus, 1, [])
    return {
        "counts": torch.tensor([look.lost_shards for look in looks]),
        "too many": torch.tensor("2 shards could not be read up to step" in str(caught.value)),
    }


@pytest.mark.long
def test_workers_agree_on_the_number_of_lost_shards(tmp_path: Path) -> None:
    """Each finds the shards of its own lanes; the limit is for all of them together."""
    rows = (ROWS,) * 12
    corpus = written(tmp_path / "data", rows)
    with mock.patch.multiple(stream, WHOLE=0, WINDOW=2, LANE=4):
        order = stream.Order(rows, "digest", 0, 8)
        of_lane = [{window.pieces[0].shard for window in order.windows(0, lane)} for lane in (0, 1)]
    for shard in (min(of_lane[0] - of_lane[1]), min(of_lane[1] - of_lane[0])):
        (tmp_path / "data" / "train" / f"{shard:05d}.parquet").unlink()
    first, second = workers.run(2, tmp_path, _two_workers, corpus.prefix, rows)
    assert first["counts"].tolist() == second["counts"].tolist()
    assert first["counts"][-1] == 2 and len(first["counts"]) == 18
    assert first["too many"] and second["too many"]
