from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pair_files import TOKENIZER, corpus, write

from wukong.data import feature_files
from wukong.errors import DataError
from wukong.store import storage
from wukong.train import feature_pairs, stream
from wukong.train import pairs as pairs_module
from wukong.train.corpus import Corpus
from wukong.train.feature_pairs import FeaturePairs
from wukong.train.stream import Piece


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
    data = Corpus(prefix, tuple(names), (each,) * len(names), "digest")
    reads: list[str] = []
    for module, name in ((storage, "read_table"), (feature_files, "read_rows")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda uri, *rest, _real=real: reads.append(uri) or _real(uri, *rest))

    pairs = FeaturePairs(data, TOKENIZER, prefix, (0,))
    batches = list(pairs.batches(8, 0, last=60))  # two epochs of 240 pairs, two lanes
    for batch in batches:
        shards, rows = batch.rows // each, batch.rows % each
        assert torch.equal(batch.features[:, 0], 100.0 * shards + rows)
    # Each table and each file once an epoch for a thread, of which two read the first of a shard's five windows.
    assert len(reads) <= 2 * 2 * 2 * len(names)
    monkeypatch.setattr(feature_pairs, "_BLOCK_BYTES", 0)
    again = FeaturePairs(data, TOKENIZER, prefix, (0,)).batches(8, 0, last=60)
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
    data = corpus(prefix, sources, tuple(names))
    plain = list(FeaturePairs(data, TOKENIZER, prefix, (0, 1)).batches(16, 0))
    monkeypatch.setattr(feature_pairs, "_KEPT_FEATURES", most)
    monkeypatch.setattr(pairs_module, "_KEPT_TABLES", most)
    pairs = FeaturePairs(data, TOKENIZER, prefix, (0, 1))
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
    data = corpus(prefix, names=("00000",))
    pairs = FeaturePairs(data, TOKENIZER, storage.from_path(tmp_path), (0, 1))
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
