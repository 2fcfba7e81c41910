"""Answers query by query: what is stored gives the results back, and leads to the paired differences."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from wukong.errors import DataError
from wukong.evaluate import answers, interval, paired, retrieval
from wukong.evaluate.interval import Interval
from wukong.store import storage

RANDOM = np.random.default_rng(0)


def right(share: float, images: int = 400) -> answers.Answers:
    hits = RANDOM.random(images) < share
    return answers.of_images([str(i) for i in range(images)], RANDOM.integers(0, 4, images), {"top1": hits})


def test_a_retrieval_task_gives_its_recalls_back() -> None:
    images_of = [[0], [0], [1], [2], [2], [3]]
    scores = torch.from_numpy(RANDOM.random((4, 6))).float()
    pairs = retrieval.Pairs.of(images_of, 4)
    relevant = torch.zeros(6, 4, dtype=torch.bool)
    relevant[pairs.text, pairs.image] = True
    counted = [retrieval.hits(each, wanted) for each, wanted in ((scores.T, relevant), (scores, relevant.T))]
    found = retrieval.Found(counted[0], counted[1], (1, 5, 10))
    stored = answers.of_retrieval(found, pairs, list("uvwxyz"), list("abcd"), share=False)
    result = stored.intervals()
    assert stored.queries == (*"012345", *"abcd")
    assert stored.units.tolist() == [0, 0, 1, 2, 2, 3, 0, 1, 2, 3], "an image's captions are drawn with it"
    values = dict(zip(stored.scores().names, stored.scores().values(), strict=True))
    right_ones = scores.T.masked_fill(~relevant, -torch.inf).amax(1)
    assert values["text_to_image_r1"] == pytest.approx((right_ones == scores.T.amax(1)).float().mean().item())
    assert values["image_to_text_r1"] == pytest.approx(result["image_to_text_r1"].value)
    assert values["mean_recall"] == pytest.approx(result["mean_recall"].value)


def test_a_share_of_several_right_images_is_an_answer() -> None:
    pairs = retrieval.Pairs.of([[0, 1], [2]], 3)
    found = retrieval.Found(torch.tensor([[1, 2, 2], [0, 1, 1]]), None, (1, 5, 10))
    stored = answers.of_retrieval(found, pairs, list("xy"), list("abc"), share=True)
    assert stored.results["text_to_image_r1"].tolist() == [0.5, 0]
    assert stored.units.tolist() == [0, 1]
    whole = answers.of_retrieval(found, pairs, list("xy"), list("abc"), share=False)
    assert whole.results["text_to_image_r1"].tolist() == [1, 0]


def test_the_mean_over_classes_weighs_classes_equally() -> None:
    stored = answers.of_images(list("abcd"), [0, 0, 0, 1], {"top1": [1, 0, 0, 1], "mean_per_class": [1, 0, 0, 1]})
    assert stored.scores().values() == pytest.approx([2 / 4, (1 / 3 + 1) / 2])
    assert stored.scores().shares("mean_per_class").sum() == pytest.approx(2 / 3)


def test_a_table_gives_each_models_answers_back(tmp_path: Path) -> None:
    both = {"pretrained": right(0.4, 5), "finetuned": right(0.5, 5)}
    uri = storage.from_path(tmp_path / "a.parquet")
    storage.write_table(uri, answers.table(both, task="x", digest="d" * 64, protocol="own"))
    stored = storage.read_table(uri)
    assert answers.metadata(stored) == {"task": "x", "digest": "d" * 64, "protocol": "own"}
    for role, each in both.items():
        found = answers.read(stored, role)
        assert found.queries == each.queries and found.labels.tolist() == each.labels.tolist()
        assert found.results["top1"].tolist() == each.results["top1"].tolist()
    with pytest.raises(DataError, match="answers on x hold none of the other model"):
        answers.read(stored, "other")


def test_the_difference_of_one_result_is_that_of_the_other_implementation() -> None:
    first, second = right(0.5), right(0.55)
    (found,) = paired.differences(first.scores(), [second.scores()])
    gains = second.results["top1"] - first.results["top1"]
    known = stats.bootstrap((gains,), np.mean, n_resamples=5_000, rng=np.random.default_rng(1)).confidence_interval
    assert found["top1"].value == pytest.approx(gains.mean())
    assert (found["top1"].low, found["top1"].high) == pytest.approx((known.low, known.high), abs=0.004)


def test_a_paired_interval_covers_the_true_difference() -> None:
    """Answers of units of three captions each; the true difference is known because the answers are drawn."""
    covered, trials, units, captions = 0, 150, 150, 3
    for _ in range(trials):
        hard = RANDOM.random((units, 1))
        drawn = [RANDOM.random((units, captions)) < share - 0.4 * (hard - 0.5) for share in (0.5, 0.57)]
        scores = [
            answers.Answers(
                tuple(str(i) for i in range(units * captions)),
                np.repeat(np.arange(units), captions),
                np.full(units * captions, -1),
                {"text_to_image_r1": each.ravel().astype(float)},
            ).scores()
            for each in drawn
        ]
        found = paired.differences(scores[0], scores[1:])[0]["mean_recall"]
        covered += found.low <= 0.07 <= found.high
    assert stats.binomtest(covered, trials, 0.95).pvalue > 0.01, covered


def test_other_queries_are_refused() -> None:
    with pytest.raises(DataError, match="other queries"):
        paired.differences(right(0.5, 10).scores(), [right(0.5, 11).scores()])


def test_a_mean_over_tasks_counts_each_task_once() -> None:
    tasks = [right(0.5, 30).scores(), right(0.1, 300).scores()]
    mean = answers.mean_of(tasks, "top1")
    assert mean.values() == pytest.approx([np.mean([each.values()[0] for each in tasks])])
    assert mean.shares("top1").sum() == pytest.approx(mean.values()[0])


def test_independent_intervals_add_like_standard_errors() -> None:
    found = paired.unpaired(baseline=Interval(0.4, 0.36, 0.44, 0.95, 90), other=Interval(0.5, 0.47, 0.53, 0.95, 100))
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.05, 0.15))


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 49, 1999, 49_999])
@pytest.mark.parametrize("probability", [0.55, 0.95, 0.975, 0.9999])
def test_students_quantiles_are_scipys(degrees: int, probability: float) -> None:
    assert interval.student(degrees, probability) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9)
