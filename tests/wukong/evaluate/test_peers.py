"""The same numbers as other evaluators, to the last digit; ``peers.json`` is recorded by ``make bench NAME=eval``.

``benchmarks/eval/peers.py`` runs Chinese-CLIP's scripts, CLIP_benchmark's metrics and MTEB's hit_rate on random scores,
on scores with many ties and on equal scores, in an environment of their own, and writes scores and results.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wukong.evaluate import classification, retrieval
from wukong.evaluate.protocol import PROTOCOLS

RECORDED = json.loads((Path(__file__).parent / "peers.json").read_text())
SAME_TORCH = RECORDED["versions"]["torch"].split(".")[:2] == torch.__version__.split(".")[:2]


def directions(case: dict[str, Any]) -> dict[str, tuple[torch.Tensor, torch.Tensor, list[str]]]:
    scores = torch.tensor(case["scores"])
    right = torch.zeros(scores.shape, dtype=torch.bool)
    for text, images in enumerate(case["images_of_texts"]):
        right[text, images] = True
    return {
        "text_to_image": (scores, right, [str(each) for each in case["image_ids"]]),
        "image_to_text": (scores.T, right.T, [str(each) for each in case["text_ids"]]),
    }


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_recall_is_that_of_chinese_clip(name: str) -> None:
    case = RECORDED["cases"][name]
    for direction, (scores, right, _) in directions(case).items():
        found = (retrieval.hits(scores, right, PROTOCOLS["cn-clip"].retrieval_ties) > 0).double().mean(0) * 100
        assert found.tolist() == case["peers"]["chinese_clip"][direction]


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_recall_is_that_of_clip_benchmark(name: str) -> None:
    if not (SAME_TORCH or name.startswith("random")):
        pytest.skip("torch.topk may order equal scores differently in another version")
    case = RECORDED["cases"][name]
    for direction, (scores, right, _) in directions(case).items():
        found = (retrieval.hits(scores, right, PROTOCOLS["clip-benchmark"].retrieval_ties) > 0).float().mean(0)
        assert found.tolist() == case["peers"]["clip_benchmark"][direction]


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_accuracy_is_that_of_clip_benchmark(name: str) -> None:
    if not (SAME_TORCH or name.startswith("random")):
        pytest.skip("torch.topk may order equal scores differently in another version")
    case = RECORDED["cases"][name]
    scores, labels = torch.tensor(case["class_scores"]), torch.tensor(case["labels"])
    rules = PROTOCOLS["clip-benchmark"]
    judged = classification.judged(scores, labels, rules, "made up")
    found = classification.measured(judged, scores.shape[1], rules, "made up")
    top5 = found.top5
    assert top5 is not None
    assert [found.top1.value, top5.value] == case["peers"]["clip_benchmark"]["classes"][:2]
    assert found.mean_per_class.value == pytest.approx(case["peers"]["clip_benchmark"]["classes"][2], abs=1e-15)


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_recall_is_mtebs_hit_rate_and_recall(name: str) -> None:
    case = RECORDED["cases"][name]
    for direction, (scores, right, ids) in directions(case).items():
        found = retrieval.hits(scores, right, "id", ids)
        rates = (found > 0).double().mean(0)
        shares = (found / right.sum(1, keepdim=True)).double().mean(0)
        assert [round(each, 5) for each in rates.tolist()] == case["peers"]["mteb"][direction]
        assert [round(each, 5) for each in shares.tolist()] == case["peers"]["mteb"][f"{direction}_share"]


def test_the_peers_differ_where_scores_are_equal() -> None:
    """Otherwise nothing above would show that a rule is theirs."""
    rates = {
        peer: [case["peers"][peer][name] for case in RECORDED["cases"].values() for name in directions(case)]
        for peer in ("chinese_clip", "clip_benchmark", "mteb")
    }
    rounded = {
        peer: [[round(each / (100 if peer == "chinese_clip" else 1), 4) for each in row] for row in rows]
        for peer, rows in rates.items()
    }
    one, two, three = rounded.values()
    assert all(a != b for a, b in ((one, two), (two, three), (one, three)))
    assert one[:4] == two[:4] == three[:4]  # without ties they agree
