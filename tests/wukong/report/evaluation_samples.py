"""An evaluation of two models: of a set of each kind that the paper has, and of a hold-out."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from wukong.evaluate import examples, results, sets
from wukong.evaluate.data_set import ClassificationData, RetrievalData
from wukong.evaluate.interval import Interval
from wukong.evaluate.published import Caption
from wukong.evaluate.results import Candidate, Classified, ClassResult, MeasuredModel, Outcome, Query

NASTY = '<script>alert("猫")</script>&"\''
_MODELS = (MeasuredModel("pretrained", "mine, zero-shot", "1" * 64, True),
           MeasuredModel("finetuned", "mine, fine-tuned", "2" * 64, True))  # fmt: skip


class _Colours:
    """Image ``i`` is of the colour ``i``."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def image(self, i: int) -> Image.Image:
        return Image.new("RGB", (300, 200), (20 * i, 0, 0))

    def digest(self, i: int) -> None:
        return None


def _interval(value: float) -> Interval:
    return Interval(value, value - 0.015, value + 0.015, 0.95, 100)


def outcomes(value: float) -> tuple[Outcome, Outcome, Outcome]:
    """Return the outcomes of a model that is right as often as this."""
    names = [f"类{n:02d}" for n in range(20)]
    classes = tuple(ClassResult(name, 5, (20 - n) / 20, "猫") for n, name in enumerate(names))
    examples = (Classified("a", "猫", "猫", right=True), Classified("b", NASTY, "狗", right=False))
    top = {"top1": _interval(value), "top5": _interval(0.9), "mean_per_class": _interval(value)}
    kinds = Outcome("imagenet", "ImageNet", "classification", "val", "d" * 64, "paper", {"images": 100, "classes": 20},
                    "top1", top, {"top1": 0.05}, classes, examples=examples)  # fmt: skip
    recalls = {
        f"{way}_r{k}": _interval(value + k / 50) for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)
    }
    queries = (
        Query("一只猫", 0, (Candidate("a", "一只猫", right=True), Candidate("b", NASTY, right=False))),
        Query(NASTY, 1233, (Candidate("b", "一只狗", right=False),)),
    )
    pairs = Outcome("coco-cn", "COCO-CN", "retrieval", "test", "e" * 64, "paper", {"images": 2, "captions": 2},
                    "mean_recall", {**recalls, "mean_recall": _interval(value)}, {"text_to_image_r1": 0.5},
                    examples=queries)  # fmt: skip
    held = Outcome("new", "New pictures", "retrieval", "holdout", "f" * 64, "own", {"images": 2, "captions": 2},
                   "mean_recall", {**recalls, "mean_recall": _interval(0.25)}, {}, examples=queries)  # fmt: skip
    return kinds, pairs, held


def data(name: str) -> ClassificationData | RetrievalData:
    """Return the data of a set with two images."""
    if name == "imagenet":
        return ClassificationData(name, "val", ("x",), ["a", "b"], np.array([0, 0]), _Colours(2), name)
    return RetrievalData(name, "test", ["a", "b"], [Caption("一只猫", (0,))], False, _Colours(2), name)


def overlaps() -> list[dict[str, Any]]:
    """Return the entries of overlap with the training data: some of ImageNet, all of the rest left out or none."""

    def of(task: str, role: str, **entry: Any) -> dict[str, Any]:
        nothing = {"pictures": 1000, "overlap": 0, "by": dict.fromkeys(("file", "hash", "vector"), 0), "left_out": 0,
                   "compared": True, "queries": 0, "results": {}}  # fmt: skip
        return {"task": task, "model": role, **nothing, **entry}

    results = {
        "top1": {"overlap": asdict(_interval(0.9)), "clean": asdict(_interval(0.48)), "p": 0.0031,
                 "difference": asdict(Interval(0.02, 0.011, 0.034, 0.95, 100))},
        "mean_per_class": {"overlap": asdict(_interval(0.8)), "clean": None, "difference": None, "p": None},
    }  # fmt: skip
    by = {"file": 5, "hash": 6, "vector": 1}
    return [
        of("imagenet", "pretrained", left_out=4),
        of("imagenet", "finetuned", overlap=12, by=by, queries=12, left_out=3, results=results),
        of("new", "finetuned"),
    ]


def evaluated() -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Return the document of an evaluation of two models, read from a file, and its small images by task."""
    both = {"pretrained": outcomes(0.4), "finetuned": outcomes(0.5)}
    shown: dict[str, dict[str, str]] = {}
    for outcome in both["finetuned"]:
        shown[outcome.task] = examples.pictures(data(outcome.task), outcome)
    aligned = {"task": "coco-cn", "model": "finetuned", "image": "a", "text": NASTY, "tokens": ["[CLS]", "猫", "[SEP]"],
               "highlighted": [1], "best": [[0, 1, 1], [0, 1, 1], [2, 2, 2]]}  # fmt: skip
    shown["coco-cn"]["square of a"] = shown["coco-cn"]["a"]
    entries = [outcome.as_json(role) for role, each in both.items() for outcome in each]
    protocols = {"paper": ["Protocol paper: Wukong."], "own": ["Protocol own: ours."]}
    missing = sets.missing({"imagenet", "coco-cn"})
    compared = {"task": "coco-cn", "result": "mean_recall", "first": "pretrained", "second": "finetuned",
                "difference": asdict(Interval(0.1, 0.042, 0.158, 0.95, 2)), "mcnemar": None}  # fmt: skip
    tested = {**compared, "result": "image_to_text_r1",
              "mcnemar": {"only_first": 31, "only_second": 57, "p": 0.0072, "exact": True}}  # fmt: skip
    made = results.document(_MODELS, protocols, entries, missing, [aligned], [compared, tested])
    return json.loads(json.dumps(made)), shown
