from pathlib import Path

import numpy as np
import pair_files
import pytest
from pair_files import SIZE, corpus, encoded, pictures, write

from wukong.data import images
from wukong.errors import DataError
from wukong.store.manifest import Manifest, Part
from wukong.train.corpus import Corpus


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven pairs in two shards."""
    return pair_files.seven_pairs(tmp_path_factory.mktemp("filter"))


def test_only_pairs_of_some_sources_are_read(prefix: str) -> None:
    some = corpus(prefix, ("*/1/*",))
    assert some.rows == (2, 1)
    numbers = {}
    for batch in pictures(prefix, data=some, augmentations=[]).batches(1, 0):
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


def test_a_shard_that_was_replaced_is_named(tmp_path: Path) -> None:
    pairs = write(tmp_path, {"a": encoded(0)}, ["a"])
    write(tmp_path, {"a": encoded(0), "b": encoded(1)}, ["a", "b"])
    with pytest.raises(DataError, match=r"00000\.parquet has 2 pairs to train on and had 1"):
        list(pairs.batches(1, 0))
