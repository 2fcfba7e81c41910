"""Units of the statistics: what hangs together by captions and images is drawn together. SciPy finds the components."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from wukong.evaluate import answers, interval, paired, retrieval
from wukong.evaluate.answers import Answers
from wukong.registry import promotion

ABOVE = np.array([0.0, 0.7, 1.2])  # by how much more is found among the first 5, and the first 10
OWN = 0.7  # spread of what two models do not have in common
SIMULATIONS, LEVEL = 300, promotion.level_of(1, 0.04)


def same_partition(first: npt.ArrayLike, second: npt.ArrayLike) -> bool:
    pairs = set(zip(np.asarray(first).tolist(), np.asarray(second).tolist(), strict=True))
    return len(pairs) == len(set(np.asarray(first).tolist())) == len(set(np.asarray(second).tolist()))


def by_scipy(edges: Sequence[tuple[int, int]], size: int) -> npt.NDArray[np.int32]:
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    found: npt.NDArray[np.int32] = connected_components(
        coo_array((np.ones(len(edges)), (rows, columns)), (size, size))
    )[1]
    return found


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(
    st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=80))))  # fmt: skip
def test_components_are_scipys(graph: tuple[int, list[tuple[int, int]]]) -> None:
    size, edges = graph
    first, second = np.array(edges, np.int64).reshape(-1, 2).T
    found = answers.components(first, second, size)
    assert same_partition(found, by_scipy(edges, size))
    assert all(found[node] == min(np.flatnonzero(found == found[node])) for node in range(size))


def test_a_long_chain_is_one_component_and_takes_no_step_for_each_node() -> None:
    order = np.random.default_rng(0).permutation(200_000)
    assert not answers.components(order[:-1], order[1:], 200_000).any()


def answered(
    images_of: Sequence[Sequence[int]], images: int, captions: Sequence[str], ids: Sequence[str], *, both: bool = True
) -> Answers:
    pairs = retrieval.Pairs.of(images_of, images, every_image=both)
    hits = [torch.zeros(count, 3, dtype=torch.int64) for count in (pairs.texts, pairs.images)]
    found = retrieval.Found(hits[0], hits[1] if both else None, (1, 5, 10))
    return answers.of_retrieval(found, pairs, captions, ids, share=False)


def test_what_has_a_caption_or_an_image_in_common_is_one_unit() -> None:
    one_shared = answered([[0, 3], [1], [2], [4]], 5, list("abcd"), list("01234"))
    assert one_shared.units.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 3]
    by_way_of_others = answered([[0, 1], [1, 2], [2, 3], [4]], 5, list("abcd"), list("01234"))
    assert by_way_of_others.units.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 1]
    # Each pair's caption is a query of its own, and two of them are equal.
    equal = answered([[0], [1], [2]], 3, ["猫", "狗", "猫"], list("012"))
    assert equal.units.tolist() == [0, 1, 0, 0, 1, 0]
    only_images_are_searched = answered([[0, 1], [1, 2], [3]], 5, list("abc"), list("01234"), both=False)
    assert only_images_are_searched.units.tolist() == [0, 0, 1]
    twice = answers.of_images(["k", "l", "m"], [0, 1, 1], {"top1": [1, 0, 1]}, ["same", "other", "same"])
    assert twice.units.tolist() == [0, 1, 0]


def test_units_of_several_hold_outs_that_have_a_caption_in_common_are_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        tasks, edges = [], []
        names: dict[str, int] = {}
        for task in range(3):
            captions = [f"word {n}" for n in rng.choice(12, 6, replace=False)]
            ids = [f"{n}" if rng.random() < 0.2 else f"{task} {n}" for n in range(8)]  # some are in several
            images_of = [sorted({n, int(rng.integers(8))}) for n in range(6)]
            tasks.append(answered(images_of, 8, captions, ids, both=False))
            for text, images in zip(captions, images_of, strict=True):
                for place in images:
                    ends = [names.setdefault(name, len(names)) for name in (f"t{text}", f"i{task} {ids[place]}")]
                    edges.append((ends[0], ends[1]))
        # Without image-to-text, images are no queries, and only captions tell what is in several tasks.
        mean = answers.mean_of([each.scores() for each in tasks], "mean_recall")
        units = by_scipy(edges, len(names))
        known = {unit for name, unit in zip(names, units, strict=True) if name.startswith("t")}
        assert len(mean.sums) == len(known)
        assert mean.weights.sum(0).tolist() == [6, 6, 6]


def test_five_units_or_one_large_one_show_nothing() -> None:
    def units(weights: Sequence[int], share: float) -> Answers:
        numbers = np.repeat(np.arange(len(weights)), weights)
        right = np.full(len(numbers), share)
        return Answers(tuple(map(str, numbers)), numbers, np.full(len(numbers), -1), {"text_to_image_r1": right})

    for weights, known in (([1], False), ([1] * 5, False), ([1] * 6, True), ([50] + [1] * 40, False)):
        first, second = units(weights, 0.4), units(weights, 0.5)
        found = paired.differences(first.scores(), [second.scores()])[0]["mean_recall"]
        alone = first.intervals()["mean_recall"]
        assert (found.low > -1, alone.low > 0) == (known, known), weights
        assert known or (found.low, found.high, alone.low, alone.high) == (-1, 1, 0, 1)


def searched(images_of: Sequence[Sequence[int]], rng: np.random.Generator, hard: list[npt.NDArray[np.float64]],
             start: int = 0) -> Answers:  # fmt: skip
    """Answers of a model for which some captions and images are hard, as they are for others, and some for it alone."""
    images = max(map(max, images_of)) + 1
    caption, image = (each + OWN * rng.normal(size=len(each)) for each in hard)
    owner = np.empty(images, np.int64)
    for number, of in enumerate(images_of):
        owner[list(of)] = number
    seen = [caption[:, None] + ABOVE, (0.9 * caption[owner] + 0.35 * image)[:, None] + ABOVE]
    found = retrieval.Found(*(torch.from_numpy((each > 0).astype(np.int64)) for each in seen), (1, 5, 10))
    captions, ids = [f"词{n}" for n in range(len(images_of))], [f"{start + n}" for n in range(images)]
    return answers.of_retrieval(found, retrieval.Pairs.of(images_of, images), captions, ids, share=False)


def hard(rng: np.random.Generator, images_of: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float64]]:
    return [rng.normal(size=len(images_of)), rng.normal(size=max(map(max, images_of)) + 1)]


ONE_SHARED = [[0, 239], *[[n] for n in range(1, 239)]]


@pytest.mark.long
@pytest.mark.parametrize(
    "images_of", [ONE_SHARED, *([[*range(n * per, (n + 1) * per)] for n in range(480 // per)] for per in (8, 20))],
    ids=["one shared caption", "8 images a word", "20 images a word"],
)  # fmt: skip
def test_equal_models_are_promoted_at_the_level_and_intervals_hold_the_true_recall(
    images_of: list[list[int]],
) -> None:
    """Whether a query is found is a normal variable above 0, so the true mean recall is a normal probability."""
    rng = np.random.default_rng(11)
    spread = 1 + OWN**2
    true = [stats.norm.cdf(ABOVE / np.sqrt(spread * part)).mean() for part in (1, 0.9**2 + 0.35**2)]
    promoted = covered = 0
    for number in range(SIMULATIONS):
        shared = hard(rng, images_of)
        first, second = (searched(images_of, rng, shared) for _ in range(2))
        gains = second.scores().shares("mean_recall") - first.scores().shares("mean_recall")
        promoted += interval.sign_flip(gains) <= LEVEL
        if number % 2:
            found = first.intervals()["mean_recall"]
            covered += found.low <= np.mean(true) <= found.high
    assert stats.binomtest(promoted, SIMULATIONS, LEVEL, alternative="greater").pvalue > 0.01, promoted
    assert stats.binomtest(covered, SIMULATIONS // 2, 0.95, alternative="less").pvalue > 0.01, covered


@pytest.mark.long
def test_equal_models_are_promoted_at_the_level_by_the_mean_over_hold_outs_of_the_same_words() -> None:
    rng = np.random.default_rng(12)
    images_of = [[2 * n, 2 * n + 1] for n in range(60)]
    promoted = 0
    for _ in range(SIMULATIONS):
        words = rng.normal(size=60)
        shared = [[words, rng.normal(size=120)] for _ in range(2)]
        scores = []
        for _ in range(2):
            own = OWN * rng.normal(size=60)  # a model's grasp of a word shows in both hold-outs
            each = [searched(images_of, rng, [one[0] + own, one[1]], 1000 * n) for n, one in enumerate(shared)]
            scores.append(answers.mean_of([one.scores() for one in each], "mean_recall"))
        assert len(scores[0].sums) == 60
        promoted += interval.sign_flip(scores[1].shares("mean_recall") - scores[0].shares("mean_recall")) <= LEVEL
    assert stats.binomtest(promoted, SIMULATIONS, LEVEL, alternative="greater").pvalue > 0.01, promoted
