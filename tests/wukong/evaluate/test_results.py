"""The document of an evaluation: the paper's numbers stand beside those measured here, in the paper's order."""

import json
from typing import Any

import pytest

from wukong.evaluate import paper, results
from wukong.evaluate.interval import Interval
from wukong.evaluate.results import ClassResult, MeasuredModel, Outcome

BOTH = (MeasuredModel("pretrained", "a", "1" * 64, False), MeasuredModel("finetuned", "b", "2" * 64, False))


def interval(value: float) -> Interval:
    return Interval(value, value - 0.01, value + 0.01, 0.95, 100)


def classified(task: str, value: float, split: str = "test") -> Outcome:
    values = {"top1": interval(value), "mean_per_class": interval(value / 2), "top5": interval(0.9)}
    classes = (ClassResult("猫", 60, value, "狗"), ClassResult("狗", 40, value))
    sizes = {"images": 100, "classes": 2}
    return Outcome(
        task, task, "classification", split, "d" * 64, "paper", sizes, "top1", values, {"top1": 0.5}, classes
    )


def searched(task: str, value: float, both: bool = True, split: str = "test") -> Outcome:
    ways = ("text_to_image", "image_to_text")[: 2 if both else 1]
    values = {f"{way}_r{k}": interval(value + k / 100) for way in ways for k in (1, 5, 10)}
    sizes = {"images": 100, "captions": 500}
    return Outcome(
        task, task, "retrieval", split, "e" * 64, "paper", sizes, "mean_recall",
        {**values, "mean_recall": interval(value)}, {"text_to_image_r1": 0.01},
    )  # fmt: skip


def document(outcomes: dict[str, list[Outcome]], models: tuple[MeasuredModel, ...] = BOTH) -> dict[str, Any]:
    entries = [outcome.as_json(role) for role, each in outcomes.items() for outcome in each]
    return results.document(models, {"paper": ["Protocol paper."]}, entries, {"dtd": "Download it"})


def test_table_5_has_both_models_beside_the_papers() -> None:
    found = document({"pretrained": [classified("imagenet", 0.4)], "finetuned": [classified("imagenet", 0.3)]})
    rows = {row["set"]: row for row in found["tables"]["5"]["rows"]}
    assert list(rows) == list(paper.TABLE_5)
    assert rows["imagenet"]["paper"]["Wukong ViT"] == 54.0 and rows["imagenet"]["paper"]["Wukong Swin"] == 58.5
    assert {role: each["value"] for role, each in rows["imagenet"]["ours"].items()} == pytest.approx(
        {"pretrained": 40, "finetuned": 30}
    )
    assert rows["imagenet"]["ours"]["pretrained"]["low"] == pytest.approx(39)
    assert rows["imagenet"]["ours"]["pretrained"]["protocol"] == "paper"
    assert rows["dtd"]["ours"] == {} and found["tables"]["5"]["average"]["ours"] == {}


def test_an_average_is_that_of_all_17_sets() -> None:
    all_sets = [classified(name, number / 20) for number, name in enumerate(paper.TABLE_5, 1)]
    found = document({"pretrained": all_sets}, BOTH[:1])["tables"]["5"]["average"]
    assert found["ours"]["pretrained"]["value"] == pytest.approx(100 * sum(range(1, 18)) / 20 / 17)
    assert found["paper"]["Wukong ViT-500M"] == 61.5
    assert document({"pretrained": all_sets[1:]}, BOTH[:1])["tables"]["5"]["average"]["ours"] == {}


def test_table_6_is_of_the_zero_shot_model_and_table_7_of_the_fine_tuned_one() -> None:
    found = document({"pretrained": [searched("coco-cn", 0.4)], "finetuned": [searched("coco-cn", 0.6)]})["tables"]
    rows = {number: {row["set"]: row for row in found[number]["rows"]} for number in ("6", "7")}
    for number, value in (("6", 40), ("7", 60)):
        ours = rows[number]["coco-cn"]["ours"]
        assert ours["mean_recall"]["value"] == pytest.approx(value)
        assert [each["value"] for each in ours["text_to_image"]] == pytest.approx([value + k for k in (1, 5, 10)])
        assert rows[number]["muge"]["ours"] is None
    assert rows["6"]["coco-cn"]["paper"][0] == {
        "method": "Wukong ViT",
        "image_to_text": (56.9, 82.4, 90.9),
        "text_to_image": (52.7, 79.9, 88.6),
        "mean_recall": 75.2,
        "other_split": False,
    }
    assert rows["6"]["aic-icc"]["paper"] == [] and len(rows["7"]["aic-icc"]["paper"]) == 4


def test_a_set_that_is_only_searched_by_text_has_one_direction() -> None:
    found = document({"pretrained": [searched("muge", 0.4, both=False)]}, BOTH[:1])["tables"]["6"]["rows"]
    (ours,) = [row["ours"] for row in found if row["set"] == "muge"]
    assert ours["image_to_text"] is None and len(ours["text_to_image"]) == 3


def test_a_hold_out_of_the_same_name_is_not_the_papers_set() -> None:
    held = document({"pretrained": [classified("imagenet", 0.4, results.HOLDOUT)]}, BOTH[:1])
    assert all(not row["ours"] for row in held["tables"]["5"]["rows"])


def test_the_document_is_json_and_holds_every_number() -> None:
    found = json.loads(json.dumps(document({"finetuned": [classified("imagenet", 0.3)]})))
    (entry,) = found["tasks"]
    assert entry["results"]["top1"] == {"value": 0.3, "low": 0.29, "high": 0.31, "level": 0.95, "units": 100}
    assert (entry["model"], entry["protocol"], entry["digest"]) == ("finetuned", "paper", "d" * 64)
    assert entry["classes"][0] == {"name": "猫", "images": 60, "top1": 0.3, "mistaken_for": "狗"}
    assert found["missing"] == {"dtd": "Download it"} and found["protocols"] == {"paper": ["Protocol paper."]}


def test_metrics_have_stable_names_and_no_chance_or_intervals() -> None:
    outcomes = [
        searched("mine", 0.4, split=results.HOLDOUT),
        searched("yours", 0.6, split=results.HOLDOUT),
        classified("kinds", 0.5, results.HOLDOUT),
        classified("imagenet", 0.3),
    ]
    entries = [each.as_json("finetuned") for each in outcomes]
    found = results.metrics_of(entries, "finetuned")
    recalls = [f"{way}_r{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    assert set(found) == {
        *(f"eval/retrieval/{task}/{name}" for task in ("mine", "yours") for name in [*recalls, "mean_recall"]),
        *(f"eval/classification/{task}/{name}" for task in ("kinds", "imagenet") for name in outcomes[2].results),
        "eval/retrieval/holdouts/mean_recall",
        "eval/classification/holdouts/top1",
    }
    assert found["eval/retrieval/holdouts/mean_recall"] == pytest.approx(0.5)
    assert found["eval/classification/holdouts/top1"] == 0.5, "a published set is no hold-out"
    assert results.metrics_of(entries, "pretrained") == {}
    few = results.headlines_of({"tasks": entries})
    assert few == {name: found[name] for name in few}
    assert {name.removeprefix("eval/") for name in few} == {
        *(f"retrieval/{task}/mean_recall" for task in ("mine", "yours", "holdouts")),
        *(f"classification/{task}/top1" for task in ("kinds", "imagenet", "holdouts")),
    }
