"""The difference of two models on one task."""

import numpy as np
import pytest
from scipy import stats

from wukong.errors import DataError
from wukong.evaluate import answers, two_models
from wukong.evaluate.answers import Answers

RANDOM = np.random.default_rng(0)


def classified(hits: np.ndarray) -> Answers:
    labels = np.arange(len(hits)) % 4
    return answers.of_images([str(n) for n in range(len(hits))], labels, {"top1": hits, "mean_per_class": hits})


def test_top_1_has_the_paired_interval_and_the_exact_test() -> None:
    first = RANDOM.random(600) < 0.5
    second = first ^ (RANDOM.random(600) < np.where(first, 0.05, 0.15))
    by_role = {"finetuned": classified(second), "pretrained": classified(first)}
    assert two_models.compared("cifar10", by_role) == two_models.compared("cifar10", dict(reversed(by_role.items())))
    top1, per_class = two_models.compared("cifar10", by_role)
    assert (top1["task"], top1["result"], top1["first"], top1["second"]) == (
        "cifar10",
        "top1",
        "pretrained",
        "finetuned",
    )
    found, test = top1["difference"], top1["mcnemar"]
    change = second.astype(float) - first
    assert found["value"] == pytest.approx(change.mean())
    # Of so many items the bootstrap's interval is near the normal one.
    wide = 1.96 * change.std() / np.sqrt(600)
    assert (found["low"], found["high"]) == pytest.approx((change.mean() - wide, change.mean() + wide), abs=0.006)
    lost, won = int((first & ~second).sum()), int((second & ~first).sum())
    assert (test["only_first"], test["only_second"], test["exact"]) == (lost, won, True)
    assert test["p"] == pytest.approx(stats.binomtest(lost, lost + won).pvalue)
    assert per_class["result"] == "mean_per_class" and per_class["mcnemar"] is None


def test_captions_of_one_image_are_not_independent_so_they_have_no_test() -> None:
    units = np.array([0, 0, 1, 1, 0, 1])  # four captions of two images, and the images
    nan = np.nan
    of_texts, of_images = [1, 0, 1, 0, nan, nan], [nan, nan, nan, nan, 1, 0]
    results = {"text_to_image_r1": np.array(of_texts), "image_to_text_r1": np.array(of_images)}
    both = Answers(tuple("abcdef"), units, np.full(6, -1), results)
    found = {each["result"]: each for each in two_models.compared("coco-cn", {"pretrained": both, "finetuned": both})}
    assert set(found) == {"text_to_image_r1", "image_to_text_r1", "mean_recall"}
    assert {name for name, each in found.items() if each["mcnemar"]} == {"image_to_text_r1"}


def test_a_share_of_right_images_has_no_test() -> None:
    share = answers.of_images(["a", "b"], [0, 1], {"text_to_image_r1": [0.5, 1.0]})
    (found, *_) = two_models.compared("muge", {"pretrained": share, "finetuned": share})
    assert found["mcnemar"] is None


def test_models_that_answered_other_queries_are_not_compared() -> None:
    one, other = classified(np.ones(8)), classified(np.ones(9))
    with pytest.raises(DataError, match="food101: the two models did not answer the same queries"):
        two_models.compared("food101", {"pretrained": one, "finetuned": other})


def test_one_model_alone_is_compared_with_nothing() -> None:
    assert two_models.compared("food101", {"finetuned": classified(np.ones(8))}) == []
