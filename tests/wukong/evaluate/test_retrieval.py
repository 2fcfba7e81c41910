import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wukong.errors import DataError
from wukong.evaluate import retrieval


def recall(scores: torch.Tensor, relevant: torch.Tensor, k: int) -> float:
    """The share of queries with a right candidate among the first K."""
    return (retrieval.hits(scores, relevant, cutoffs=(k,)) > 0).double().mean().item()


@given(st.integers(1, 6), st.integers(2, 7), st.integers(0, 10_000))
def test_recall_equals_its_definition(queries: int, candidates: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(queries, candidates, generator=generator)
    relevant = torch.rand(queries, candidates, generator=generator) < 0.3
    relevant[:, seed % candidates] = True
    for k in (1, 2, 5):
        hits = 0
        for row, right in zip(scores.tolist(), relevant.tolist(), strict=True):
            first = sorted(range(candidates), key=lambda place, row=row: -row[place])[:k]
            hits += any(right[place] for place in first)
        assert recall(scores, relevant, k) == pytest.approx(hits / queries)


def test_a_model_with_equal_scores_finds_nothing() -> None:
    relevant = torch.eye(20, dtype=torch.bool)
    assert recall(torch.ones(20, 20), relevant, 10) == 0.0


def test_chance_equals_the_mean_over_all_orders() -> None:
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


def test_all_images_with_the_same_caption_are_right() -> None:
    task = retrieval.task("ABC", ["猫", "狗", "猫"])
    assert task.texts == ["猫", "狗"]
    assert task.relevant.tolist() == [[True, False, True], [False, True, False]]
    assert task.pictures.tolist() == [0, 1, 2]


def test_each_protocol_takes_its_captions() -> None:
    pictures, captions = "ABAB", ["猫", "猫", "一只猫", "狗"]
    every = retrieval.task(pictures, captions, "all")
    assert every.texts == captions
    assert every.pictures.tolist() == [0, 1]
    assert every.relevant.tolist() == [[True, False], [False, True], [True, False], [False, True]]
    first = retrieval.task(pictures, captions, "first")
    assert first.texts == ["猫", "猫"]
    assert first.relevant.tolist() == [[True, False], [False, True]]
    distinct = retrieval.task(pictures, captions)
    assert distinct.texts == ["猫", "一只猫", "狗"]
    assert distinct.relevant.tolist() == [[True, True], [True, False], [False, True]]


def by_hand(
    image: np.ndarray, text: np.ndarray, pictures: list[int], captions: list[int], taken: str, k: int
) -> tuple[float, float]:
    """Recall@K of both directions, text to image first, from its definition: loops and sorting."""
    names = sorted(set(pictures), key=pictures.index)
    if taken == "distinct":
        queries = [(captions.index(c), {p for p, its in zip(pictures, captions, strict=True) if its == c})
                   for c in sorted(set(captions), key=captions.index)]  # fmt: skip
    elif taken == "all":
        queries = [(row, {picture}) for row, picture in enumerate(pictures)]
    else:
        queries = [(pictures.index(picture), {picture}) for picture in names]
    to_image = to_text = 0
    for row, right in queries:
        score = {name: float(text[row] @ image[pictures.index(name)]) for name in names}
        # An equal score is ranked before.
        order = sorted(names, key=lambda name: (-score[name], name in right))
        to_image += any(name in right for name in order[:k])
    for name in names:
        score = {row: float(text[row] @ image[pictures.index(name)]) for row, _ in queries}
        order = sorted(queries, key=lambda query: (-score[query[0]], name in query[1]))
        to_text += any(name in right for _, right in order[:k])
    return to_image / len(queries), to_text / len(names)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=14),
    st.sampled_from(["distinct", "all", "first"]),
    st.integers(0, 10_000),
)
def test_recall_over_distinct_images_equals_the_definition(
    pairs: list[tuple[int, int]], taken: retrieval.Captions, seed: int
) -> None:
    """Images with several captions, captions with several images, repeated pairs; few distinct scores, so many ties."""
    numbers = np.random.default_rng(seed)
    pictures, captions = [picture for picture, _ in pairs], [caption for _, caption in pairs]
    of_picture, of_caption = numbers.integers(-2, 3, (6, 2)), numbers.integers(-2, 3, (7, 2))
    image, text = of_picture[pictures], of_caption[captions]
    task = retrieval.task([str(p) for p in pictures], [str(c) for c in captions], taken)
    rows = [[str(c) for c in captions].index(t) for t in task.texts]
    scores = torch.from_numpy(text[rows] @ image[task.pictures.numpy()].T).float()
    for k in (1, 2, 5):
        found = recall(scores, task.relevant, k), recall(scores.T, task.relevant.T, k)
        assert found == pytest.approx(by_hand(image, text, pictures, captions, taken, k))


@given(st.integers(2, 6), st.integers(2, 7), st.integers(0, 10_000), st.data())
def test_a_nan_score_is_refused_at_any_position(queries: int, candidates: int, seed: int, data: st.DataObject) -> None:
    scores = torch.rand(queries, candidates, generator=torch.Generator().manual_seed(seed))
    relevant = torch.zeros(queries, candidates, dtype=torch.bool)
    relevant[:, 0] = True
    row, column = data.draw(st.integers(0, queries - 1)), data.draw(st.integers(0, candidates - 1))
    scores[row, column] = torch.nan
    with pytest.raises(DataError, match=f"1 of {queries * candidates} .* query {row} to candidate {column}"):
        retrieval.hits(scores, relevant)
