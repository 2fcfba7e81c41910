"""The search against Python's own integers, one pair after another."""

import numpy as np
import pytest

from wukong.curate import hash_search
from wukong.curate.hash_search import HashSearch


def turned_over(hashes, bits, random):
    """The same hashes with so many bits turned over, others in each."""
    numbers = np.unpackbits(hashes, axis=1)
    for row in numbers:
        row[random.permutation(256)[:bits]] ^= 1
    return np.packbits(numbers, axis=1)


def one_by_one(hashes, queries, distance):
    known, asked = ([int.from_bytes(row.tobytes()) for row in rows] for rows in (hashes, queries))
    return {
        (q, m): (a ^ b).bit_count()
        for q, a in enumerate(asked)
        for m, b in enumerate(known)
        if (a ^ b).bit_count() <= distance
    }


@pytest.fixture(params=["one by one", "by pieces"])
def many(request, monkeypatch):
    """Whether the hashes are few enough to be compared one by one."""
    monkeypatch.setattr(hash_search, "_MANY", 1 if request.param == "by pieces" else 10**9)
    monkeypatch.setattr(hash_search, "_AT_ONCE", 500)  # so that there are several blocks


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("distance", [0, 1, 15, 16, 31, 32, 47, 48, 60])
def test_all_that_is_near_is_found_and_nothing_else(distance):
    random = np.random.default_rng(distance)
    hashes = random.integers(0, 256, (300, 32), dtype=np.uint8)
    hashes[7] = hashes[3]
    queries = np.concatenate(
        [turned_over(hashes[:20], bits, random) for bits in (0, 1, 15, 16, 17, 31, 32, 33, 47, 48, 49)]
    )
    rows, others, distances = HashSearch(hashes).within(queries, distance)
    found = {(int(q), int(m)): int(far) for q, m, far in zip(rows, others, distances, strict=True)}
    assert found == one_by_one(hashes, queries, distance)
    assert len(found) == len(rows) and len(rows) >= 20
    assert sorted(zip(rows.tolist(), others.tolist(), strict=True)) == list(
        zip(rows.tolist(), others.tolist(), strict=True)
    )


@pytest.mark.usefixtures("many")
def test_the_nearest_is_the_first_of_the_nearest():
    random = np.random.default_rng(1)
    hashes = random.integers(0, 256, (200, 32), dtype=np.uint8)
    hashes[11] = hashes[5]
    hashes[12] = turned_over(hashes[5:6], 3, random)[0]
    queries = np.stack([hashes[12], hashes[5], ~hashes[0]])
    found, far = HashSearch(hashes).nearest(queries, 31)
    assert found.tolist() == [12, 5, -1]
    assert far.tolist() == [0, 0, -1]


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(("held", "asked"), [(0, 3), (5, 0), (0, 0)])
def test_nothing_is_found_among_nothing(held, asked):
    search = HashSearch(np.zeros((held, 32), np.uint8))
    rows, others, distances = search.within(np.zeros((asked, 32), np.uint8), 31)
    assert len(rows) == len(others) == len(distances) == 0
    assert search.nearest(np.zeros((asked, 32), np.uint8), 31)[0].tolist() == [-1] * asked


def test_equal_hashes_in_great_number_are_all_found(monkeypatch):
    monkeypatch.setattr(hash_search, "_MANY", 1)
    monkeypatch.setattr(hash_search, "_AT_ONCE", 1000)
    rows, others, distances = HashSearch(np.zeros((700, 32), np.uint8)).within(np.zeros((3, 32), np.uint8), 31)
    assert rows.tolist() == [0] * 700 + [1] * 700 + [2] * 700
    assert others.tolist() == [*range(700)] * 3
    assert not distances.any()
