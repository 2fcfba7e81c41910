"""The order of the stream and its reading. The oracle is the definition: numbers of rows, counted one by one."""

import threading
from collections import Counter
from itertools import chain
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.train import stream
from wukong.train.stream import Order, Piece

MANY = [1000] * 40
"""Shards of a corpus that is more than one window."""


def seen(
    order: Order,
    rows: list[int],
    first: int,
    last: int,
    rank: int = 0,
    workers: int = 1,
    reads: list[Piece] | None = None,
) -> list[list[int]]:
    """Global row numbers of each step; a loaded piece is the list of its rows' numbers."""
    begins = np.cumsum([0, *rows]).tolist()

    def load(piece: Piece) -> range:
        if reads is not None:
            reads.append(piece)
        return range(begins[piece.shard] + piece.start, begins[piece.shard] + piece.stop)

    steps = stream.read(order, load, first, last, rank, workers)
    return [[sample.piece[sample.row] for sample in samples] for samples in steps]


@mock.patch.multiple(stream, WHOLE=100, WINDOW=16, LANE=4)  # so that few samples have many lanes and windows
@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(0, 50), min_size=1, max_size=12),
    share=st.integers(1, 7),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_each_sample_is_seen_once_by_any_workers_after_any_cut(
    rows: list[int], share: int, seed: int, data: st.DataObject
) -> None:
    order = Order(rows, "digest", seed, 4 * share)
    last = 2 * order.steps
    whole = seen(order, rows, 0, last)
    for epoch in range(2):
        numbers = Counter(n for batch in whole[epoch * order.steps : (epoch + 1) * order.steps] for n in batch)
        assert len(numbers) == order.steps * 4 * share and set(numbers.values()) <= {1}
        assert set(numbers) <= set(range(sum(rows)))
    assert order.steps == sum(rows) // (4 * share)
    cut = data.draw(st.integers(0, last))
    for workers in (1, 2, 4):
        shares = [seen(Order(rows, "digest", seed, 4 * share), rows, cut, last, r, workers) for r in range(workers)]
        assert [list(chain(*batch)) for batch in zip(*shares, strict=True)] == whole[cut:]


def test_the_order_depends_on_the_data_the_seed_and_the_epoch() -> None:
    def batches(data: str, seed: int) -> list[list[int]]:
        return seen(Order(MANY, data, seed, 256), MANY, 0, 2 * 156)

    first = batches("a", 0)
    assert first == batches("a", 0)
    others = [batches("b", 0)[:156], batches("a", 1)[:156], first[156:]]
    assert all(other != first[:156] for other in others)


def test_the_order_is_the_same_in_every_version() -> None:
    """Worked out by hand from SHA-256 and the raw numbers of Philox, whose stream numpy keeps."""
    import hashlib

    key = int.from_bytes(hashlib.sha256(b"d:3:window:0:0:0").digest()[:16], "little")
    expected = np.argsort(np.random.Philox(key=key).random_raw(20)[:10], kind="stable")
    assert seen(Order([4, 6], "d", 3, 5), [4, 6], 0, 2) == [expected[:5].tolist(), expected[5:].tolist()]


@pytest.mark.parametrize("rows", [[250] * 200, [40] * 1200])
def test_samples_move_as_far_as_in_a_uniform_shuffle(rows: list[int]) -> None:
    """A uniform shuffle of n samples moves one by n / 3 on average."""
    order = Order(rows, "digest", 0, 256)
    total, last = sum(rows), order.steps
    first, second = (np.concatenate(seen(order, rows, begin, begin + last)).astype(np.int64) for begin in (0, last))
    places = np.full(total, -1)
    places[first] = np.arange(len(first))
    again = places[second]
    for moved in (np.abs(first - np.arange(len(first))), np.abs(again - np.arange(len(again)))[again >= 0]):
        assert moved.mean() > 0.9 * total / 3
    # And a batch comes from many parts of the corpus, at most a lane's places from each.
    for batch in first.reshape(-1, 256)[::97]:
        assert Counter((batch // stream.WINDOW).tolist()).most_common(1)[0][1] <= 2 * stream.LANE


def test_workers_read_different_pieces_and_nothing_is_read_twice() -> None:
    order = Order(MANY, "digest", 0, 256)
    reads: list[list[Piece]] = [[] for _ in range(4)]
    for rank in range(4):
        seen(order, MANY, 0, order.steps, rank, 4, reads[rank])
    rows = Counter((piece.shard, row) for pieces in reads for piece in pieces for row in range(piece.start, piece.stop))
    assert set(rows.values()) == {1} and len(rows) == order.steps * 256


def test_a_small_corpus_is_read_once() -> None:
    rows = [100] * 20
    order, reads = Order(rows, "digest", 0, 64), []
    seen(order, rows, 5, 4 * order.steps, reads=reads)
    assert sorted(reads, key=lambda piece: piece.shard) == [Piece(shard, 0, 100) for shard in range(20)]


def test_little_is_read_before_the_first_batch_of_a_corpus_of_100_million() -> None:
    rows = [1000] * 100_000
    order = Order(rows, "digest", 0, 10_240)
    reads: list[Piece] = []
    lock = threading.Lock()

    def load(piece: Piece) -> Piece:
        with lock:
            reads.append(piece)
        return piece

    samples = stream.read(order, load, 123_456, 10**6, 7, 40)
    batch = next(samples)
    samples.close()
    assert len(batch) == 256
    assert len(reads) <= 2 * 8  # of its 8 lanes the window in use and the next
    assert all(piece.stop - piece.start <= stream.WINDOW for piece in reads)


def test_what_reading_raised_is_raised_where_the_sample_is_needed() -> None:
    def load(piece: Piece) -> Piece:
        if piece.shard == 3:
            raise FileNotFoundError("shard 3")
        return piece

    with pytest.raises(FileNotFoundError, match="shard 3"):
        list(stream.read(Order(MANY, "digest", 0, 256), load, 0, 156))
