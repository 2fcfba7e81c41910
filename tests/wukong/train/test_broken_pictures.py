"""Pictures that cannot be decoded: what stands in their places depends on the order of the pairs alone.

The oracle is the order of an undisturbed run, and the corpus: the next whole picture that was read with a broken one.
"""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from wukong.config.model import ImageEncoder
from wukong.config.training import Training
from wukong.data import images
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.store import storage
from wukong.train import stream
from wukong.train.batches import Batch
from wukong.train.corpus import Corpus
from wukong.train.picture_pairs import PicturePairs

SIDE, ROWS = 16, 12
TOKENIZER = Tokenizer(packaged_vocabulary())
WINDOWS = mock.patch.multiple(stream, WHOLE=0, WINDOW=4, LANE=2)
WHOLE = mock.patch.multiple(stream, WHOLE=10_000)


def encoded(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def corpus(folder: Path, broken: set[int], shards: int = 8) -> Corpus:
    (folder / "train").mkdir(parents=True)
    for shard in range(shards):
        numbers = range(shard * ROWS, (shard + 1) * ROWS)
        keys = [f"k{number:03d}" for number in numbers]
        pq.write_table(pa.table({"key": keys, "caption": keys, "url": keys}), folder / "train" / f"{shard:05d}.parquet")
        with tarfile.open(folder / "train" / f"{shard:05d}.tar", "w") as tar:
            for number, key in zip(numbers, keys, strict=True):
                content = b"no picture" if number in broken else encoded(number)
                entry = tarfile.TarInfo(f"{key}.jpg")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    names = tuple(f"{shard:05d}" for shard in range(shards))
    return Corpus(storage.from_path(folder), names, (ROWS,) * shards, "digest")


def pairs(
    of: Corpus, most: int = 99, loaders: int = 0, augmentations: tuple[str, ...] = ("crop", "flip")
) -> PicturePairs:
    settings = Training.model_validate(
        {"lock": "none", "augmentations": augmentations, "max_broken_pictures": most, "loader_workers": loaders}
    )
    return PicturePairs(of, TOKENIZER, ImageEncoder(image_size=SIDE), settings)


def joined(of: Corpus, workers: int, first: int = 0, loaders: int = 0) -> list[list[tuple[int, bytes]]]:
    """Of each step of two epochs all workers' pairs in rank order: their numbers, and their views' bytes."""
    last = 2 * ROWS * len(of.rows) // 8
    shares = [list(pairs(of, loaders=loaders).batches(8, 0, first, rank, workers, last)) for rank in range(workers)]

    def shown(batch: Batch) -> list[tuple[int, bytes]]:
        assert torch.equal(batch.ids, TOKENIZER([f"k{row:03d}" for row in batch.rows.tolist()]))
        return [(row, view.numpy().tobytes()) for row, view in zip(batch.rows.tolist(), batch.features, strict=True)]

    return [[pair for batch in step for pair in shown(batch)] for step in zip(*shares, strict=True)]


@pytest.mark.parametrize("patch", [WINDOWS, WHOLE], ids=["windows", "whole"])
def test_one_two_and_four_workers_train_on_the_same_pairs(patch: Callable[..., object], tmp_path: Path) -> None:
    broken = {0, 1, 2, 3, 11, 17, 30, 31, 40, 52, 60, 61, 77, 95}  # the first four are a whole window
    undisturbed, damaged = corpus(tmp_path / "whole", set()), corpus(tmp_path / "damaged", broken)
    with patch:  # type: ignore[attr-defined]
        plain, found = joined(undisturbed, 1), joined(damaged, 1)
        assert joined(damaged, 2) == found and joined(damaged, 4) == found
        assert joined(damaged, 4, first=5) == found[5:], "after a resume too"
        window = 4 if stream.WHOLE == 0 else ROWS
    stand_ins = 0
    for epoch_step, (step, expected) in enumerate(zip(found, plain, strict=True)):
        for (number, view), (wanted, whole_view) in zip(step, expected, strict=True):
            if wanted not in broken:
                assert (number, view) == (wanted, whole_view)
                continue
            begin = wanted // window * window
            order = [begin + (wanted - begin + step) % window for step in range(1, window)]
            beyond = [n % 96 for n in range(wanted // ROWS * ROWS, wanted // ROWS * ROWS + 96)]
            assert number == next(n for n in (*order, *beyond) if n not in broken)
            picture, seed = images.decode(encoded(number)), images.view_seed(f"k{number:03d}", epoch_step // 12 + 1)
            expected_view = images.to_tensor([images.augmented_view(picture, SIDE, seed, ["crop", "flip"])])[0]
            assert view == expected_view.numpy().tobytes()
            stand_ins += 1
    assert stand_ins == 2 * len(broken)


@pytest.mark.long
def test_loader_processes_change_no_stand_in(tmp_path: Path) -> None:
    damaged = corpus(tmp_path, {5, 6, 20, 90})
    with WINDOWS:
        assert joined(damaged, 2, loaders=1) == joined(damaged, 1)


def test_each_broken_picture_is_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = corpus(tmp_path, {5, 6})
    with WINDOWS:
        batches = list(pairs(damaged).batches(8, 0))
    assert sum(batch.broken for batch in batches) == 2
    assert [sum(f"k00{n}.jpg" in message for message in caplog.messages) for n in (5, 6)] == [1, 1]


def test_where_no_picture_is_whole_the_search_ends(tmp_path: Path) -> None:
    damaged = corpus(tmp_path, {*range(96)})
    with WINDOWS, pytest.raises(DataError, match=r"k\d+\.jpg of .* and of the 8 pairs behind it none .*is 7"):
        list(pairs(damaged, most=7).batches(8, 0))
    only = corpus(tmp_path / "only", {*range(12)}, shards=1)
    with pytest.raises(DataError, match="of the 23 pairs behind it none"):
        list(pairs(only).batches(8, 0))
