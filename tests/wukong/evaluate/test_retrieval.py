import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wukong.evaluate import retrieval


@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 10_000))
def test_recall_is_its_definition(queries: int, candidates: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(queries, candidates, generator=generator)
    relevant = torch.rand(queries, candidates, generator=generator) < 0.3
    relevant[:, seed % candidates] = True
    found = retrieval.recall(retrieval.ranks(scores, relevant), (1, 2, 5))
    for k in (1, 2, 5):
        hits = 0
        for row, right in zip(scores.tolist(), relevant.tolist(), strict=True):
            first = sorted(range(candidates), key=lambda place, row=row: -row[place])[:k]
            hits += any(right[place] for place in first)
        assert found[k] == pytest.approx(hits / queries)


def test_a_model_that_tells_nothing_apart_finds_nothing() -> None:
    relevant = torch.eye(20, dtype=torch.bool)
    assert retrieval.recall(retrieval.ranks(torch.ones(20, 20), relevant))[10] == 0.0


def test_chance_is_the_mean_over_all_orders() -> None:
    counts, candidates = [1, 2, 3], 5
    expected = {}
    for k in (1, 2, 5):
        hits = [
            any(place < count for place in order[:k])  # the first ``count`` candidates are the right ones
            for count in counts
            for order in itertools.permutations(range(candidates))
        ]
        expected[k] = sum(hits) / len(hits)
    assert retrieval.chance(counts, candidates, (1, 2, 5)) == pytest.approx(expected)


def test_pictures_with_the_same_caption_are_all_right() -> None:
    texts, relevant = retrieval.distinct(["猫", "狗", "猫"])
    assert texts == ["猫", "狗"]
    assert relevant.tolist() == [[True, False, True], [False, True, False]]
