"""Near duplicates by comparing every vector with every other, in float64, whatever the clusters, blocks and orders."""

import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate import near_duplicates
from wukong.curate.near_duplicates import COSINE, LOWEST, NEAREST
from wukong.errors import DataError

ROUNDING = 0.0006


def mixture(count, width=64, topics=12, seed=0):
    """Vectors around some directions; a third of them are copies of another, at cosines of 0.75 to 1."""
    generator = np.random.default_rng(seed)
    middles = generator.standard_normal((topics, width))
    vectors = middles[generator.integers(0, topics, count)] + 0.8 * generator.standard_normal((count, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for row in generator.choice(count, count // 3, replace=False):
        original, cosine = vectors[generator.integers(count)], generator.uniform(0.75, 1)
        aside = generator.standard_normal(width)
        aside -= aside @ original * original
        vectors[row] = cosine * original + np.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside)
    return vectors


def table(vectors, seed=0, score=None):
    generator = np.random.default_rng(seed)
    keys = [generator.bytes(10).hex() for _ in vectors]
    score = np.zeros(len(vectors)) if score is None else score
    column = near_duplicates.packed(near_duplicates.whole(vectors))
    return pl.DataFrame({"key": keys, "score": pl.Series(score, dtype=pl.Float64), "vector": column})


def searched(rows, clusters=1, ranges=1):
    sample = rows.sort("key")["vector"]
    centres = near_duplicates.centres(near_duplicates.unpacked(sample), clusters)
    divided = near_duplicates.divided(rows, centres)
    pieces = divided["cluster"].to_numpy() // np.uint64(-(-(2**64 - 1) // ranges))
    found = [near_duplicates.nearest(divided.filter(pl.Series(pieces == piece))) for piece in range(ranges)]
    return near_duplicates.best(pl.concat(found))


def by_hand(vectors, rows):
    """By key, the highest cosine with a vector of higher score, or of equal score and an earlier key."""
    cosines = vectors @ vectors.T
    order = sorted(range(len(rows)), key=lambda row: (-rows["score"][row], rows["key"][row]))
    return {rows["key"][row]: max((cosines[row, other] for other in order[:at]), default=-1)
            for at, row in enumerate(order)}  # fmt: skip


@given(st.integers(1, 120), st.integers(0, 1000), st.sampled_from([0, 1, 3]))
@settings(deadline=None, max_examples=60)
def test_one_cluster_tells_the_nearest_that_is_preferred(count, seed, scores):
    vectors = mixture(count, width=16, topics=5, seed=seed)
    rows = table(vectors, seed, np.random.default_rng(seed).integers(0, scores + 1, count))
    expected = by_hand(vectors, rows)
    found = searched(rows)
    told = dict(found.select("key", COSINE).iter_rows())
    surely = {key for key, cosine in expected.items() if cosine >= LOWEST + ROUNDING}
    assert surely <= told.keys() <= {key for key, cosine in expected.items() if cosine >= LOWEST - ROUNDING}
    assert all(abs(cosine - expected[key]) <= ROUNDING for key, cosine in told.items())
    of = {key: row for row, key in enumerate(rows["key"])}
    for key, near, cosine in found.select("key", NEAREST, COSINE).iter_rows():
        assert abs(vectors[of[key]] @ vectors[of[near]] - cosine) <= ROUNDING
        assert (-rows["score"][of[near]], near) < (-rows["score"][of[key]], key)


def test_borders_of_clusters_hide_few_pairs_and_make_up_none():
    vectors = mixture(4_000)
    rows = table(vectors)
    expected = by_hand(vectors, rows)
    told = dict(searched(rows, clusters=60).select("key", COSINE).iter_rows())
    assert all(cosine <= expected[key] + ROUNDING for key, cosine in told.items())
    for lowest, share in (0.8, 0.97), (0.9, 0.98), (0.95, 0.99):
        near = {key for key, cosine in expected.items() if cosine >= lowest}
        found = {key for key in near if told.get(key, -1) >= expected[key] - ROUNDING}
        assert len(near) > 200
        assert len(found) / len(near) >= share


def test_without_visitors_more_pairs_would_be_hidden(monkeypatch):
    rows = table(mixture(4_000))
    visited = len(searched(rows, clusters=60))
    monkeypatch.setattr(near_duplicates, "_VISITS", 0)
    assert len(searched(rows, clusters=60)) < 0.95 * visited


def test_order_ranges_and_blocks_change_nothing(monkeypatch):
    rows = table(mixture(2_000))
    whole = searched(rows, clusters=25)
    shuffled = rows.sample(fraction=1, shuffle=True, seed=1)
    kept = ["key", NEAREST, COSINE]
    assert searched(shuffled, clusters=25, ranges=7).select(kept).equals(whole.select(kept))
    for name, size in ("_ROWS", 7), ("_COLUMNS", 11), ("_BLOCK", 13):
        monkeypatch.setattr(near_duplicates, name, size)
    assert searched(shuffled, clusters=25).select(kept).equals(whole.select(kept))


def test_many_equal_vectors_take_no_square_of_time():
    rows = table(np.tile(mixture(3, seed=5), (30_000, 1)))
    started = time.process_time()
    found = searched(rows)
    assert time.process_time() - started < 20, "the square of 90,000 takes minutes"
    assert len(found) >= 90_000 - 3
    assert found[COSINE].min() == 1 or len(found) > 90_000 - 3


def test_a_longer_vector_is_the_same_direction():
    vectors = mixture(50)
    lengths = np.random.default_rng(0).uniform(1e-3, 1e3, (50, 1))
    assert (near_duplicates.whole(vectors) == near_duplicates.whole(lengths * vectors)).mean() > 0.999
    halves = near_duplicates.of_column(pl.Series(vectors.astype(np.float16), dtype=pl.Array(pl.Float16, 64)))
    exact = near_duplicates.unpacked(halves).astype(float) / near_duplicates.LENGTH
    assert np.abs(np.einsum("ij,ij->i", exact, vectors) - 1).max() < 0.001


def test_products_are_exact_in_float32_whatever_the_width():
    for width in 8, 256, 2_048:
        rows = near_duplicates.whole(np.random.default_rng(0).standard_normal((200, width))).astype(np.int64)
        rows = np.concatenate([rows, near_duplicates.whole(np.ones((1, width))).astype(np.int64)])
        assert (np.abs(rows[:, None] * rows[None]).sum(axis=2)).max() < 2**24


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_a_vector_without_direction_is_refused(bad):
    vectors = np.ones((3, 4))
    vectors[1] = bad
    with pytest.raises(DataError, match="not finite"):
        near_duplicates.whole(vectors)


def test_nothing_to_compare():
    empty = table(np.ones((0, 4)))
    assert searched(empty).is_empty()
    assert searched(table(np.ones((1, 4)))).is_empty()
    nothing = near_duplicates.divided(table(np.ones((0, 4))), near_duplicates.centres(np.ones((0, 4), np.int16), 0))
    assert near_duplicates.nearest(nothing).is_empty()


def test_the_sample_is_that_of_all_groups_and_large_enough():
    rows = table(np.ones((50_000, 2)))
    together = near_duplicates.sample(rows, 50_000)
    apart = [near_duplicates.sample(rows[low : low + 7_000], 50_000) for low in range(0, 50_000, 7_000)]
    assert pl.concat(apart).equals(together)
    wanted = near_duplicates.SAMPLED * near_duplicates.clusters_for(50_000)
    assert wanted == pytest.approx(len(together), rel=0.05)
    assert len(near_duplicates.sample(rows, 1_000)) == pytest.approx(50_000 * near_duplicates.SAMPLED / 1_000, rel=0.1)
    assert near_duplicates.sample(rows, 10).equals(rows)
