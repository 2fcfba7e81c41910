"""The paper's tables with several models: whose numbers stand where, what exceeds noise, and what is missing."""

import json
import math
from typing import Any

import pytest
from english import english

from wukong.evaluate import paper, paper_tables, results
from wukong.evaluate.interval import Interval
from wukong.evaluate.paper_tables import Evaluated
from wukong.evaluate.results import MeasuredModel, Outcome
from wukong.report import paper as page


def interval(value: float, half: float = 0.01) -> Interval:
    return Interval(value, value - half, value + half, 0.95, 100)


def classified(task: str, value: float, half: float = 0.01, protocol: str = "paper") -> Outcome:
    values = {"top1": interval(value, half), "mean_per_class": interval(0.1)}
    return Outcome(task, task, "classification", "test", "d" * 64, protocol, {"images": 9}, "top1", values, {})


def searched(task: str, value: float, ways: tuple[str, ...] = ("text_to_image", "image_to_text")) -> Outcome:
    recalls = {f"{way}_r{k}": interval(value + k / 100) for way in ways for k in (1, 5, 10)}
    recalls["mean_recall"] = interval(value)
    return Outcome(task, task, "retrieval", "test", "e" * 64, "paper", {"images": 9}, "mean_recall", recalls, {})


def evaluated(label: str, column: str | None = None, **roles: list[Outcome]) -> Evaluated:
    models = [MeasuredModel(role, f"{label}, {role}", role[0] * 64, False) for role in roles]
    entries = [outcome.as_json(role) for role, each in roles.items() for outcome in each]
    document = results.document(models, {"paper": ["Protocol paper."]}, entries, {})
    return Evaluated(label, json.loads(json.dumps(document)), column)


def rows_of(document: dict[str, Any]) -> dict[str, Any]:
    return {row["set"]: row for row in document["rows"]}


def test_table_5_has_each_models_zero_shot_number_beside_its_column() -> None:
    made = paper_tables.table(
        "5",
        [
            evaluated(
                "a", "ResNet50", pretrained=[classified("imagenet", 0.3)], finetuned=[classified("imagenet", 0.9)]
            ),
            evaluated("b", "Wukong ViT", pretrained=[classified("imagenet", 0.54)]),
            evaluated("c", None, pretrained=[classified("imagenet", 0.5)]),
        ],
    )
    rows = rows_of(made)
    assert list(rows) == list(paper.TABLE_5) and rows["imagenet"]["paper"]["Wukong ViT"] == 54.0
    ours = rows["imagenet"]["ours"]
    assert ours["a"]["value"] == pytest.approx(30) and ours["a"]["paper"] == 28.3
    assert ours["a"]["difference"] == pytest.approx(1.7) and ours["a"]["verdict"] == "better"
    assert ours["b"]["verdict"] == "noise" and ours["c"].keys().isdisjoint({"paper", "difference", "verdict"})
    assert made["protocols"] == {"paper": ["Protocol paper."]}
    assert [each["label"] for each in made["models"]] == ["a", "b", "c"] and made["models"][0]["digest"] == "p" * 64


def test_the_papers_number_is_as_uncertain_as_ours() -> None:
    """Half an interval of 1.0 points: of two such numbers the difference is noise up to 1.414 points."""
    for value, verdict in ((0.2971, "noise"), (0.2972, "better"), (0.2689, "noise"), (0.2688, "worse")):
        made = paper_tables.table("5", [evaluated("a", "ResNet50", pretrained=[classified("imagenet", value)])])
        assert rows_of(made)["imagenet"]["ours"]["a"]["verdict"] == verdict, value


def test_another_protocol_is_not_compared() -> None:
    other = evaluated("a", "ResNet50", pretrained=[classified("imagenet", 0.9, protocol="cn-clip")])
    plain = evaluated("b", "ResNet50", pretrained=[classified("imagenet", 0.9)])
    ours = rows_of(paper_tables.table("5", [other, plain]))["imagenet"]["ours"]
    assert {label: each["verdict"] for label, each in ours.items()} == {
        "a": "incomparable",
        "b": "better",
    }


def test_the_page_names_each_models_protocol_where_they_differ() -> None:
    models = [
        evaluated(
            "a", "ResNet50", pretrained=[classified("imagenet", 0.9, protocol="cn-clip"), classified("dtd", 0.2)]
        ),
        evaluated("b", "ResNet50", pretrained=[classified("imagenet", 0.9), classified("dtd", 0.2)]),
    ]
    html = english(page.render(paper_tables.table("5", models)))
    assert "<small>a: cn-clip</small><small>b: paper</small>" in html and html.count("<small>a: ") == 1


def test_an_average_is_of_all_sets_with_the_interval_of_a_mean() -> None:
    halves = {name: (number + 1) / 1000 for number, name in enumerate(paper.TABLE_5)}
    whole = [classified(name, 0.5, half) for name, half in halves.items()]
    made = paper_tables.table("5", [evaluated("a", "ResNet50", pretrained=whole), evaluated("b", pretrained=whole[1:])])
    average = made["average"]
    assert average["ours"].keys() == {"a"} and average["paper"]["ResNet50"] == 34.2
    half = 100 * math.sqrt(sum(each**2 for each in halves.values())) / 17
    assert average["ours"]["a"]["value"] == pytest.approx(50)
    assert average["ours"]["a"]["high"] - 50 == pytest.approx(half)
    assert average["ours"]["a"]["difference"] == pytest.approx(15.8) and average["ours"]["a"]["verdict"] == "better"


def test_tables_6_and_7_are_of_the_zero_shot_and_the_fine_tuned_model() -> None:
    both = evaluated("a", "Wukong ViT", pretrained=[searched("coco-cn", 0.752)], finetuned=[searched("coco-cn", 0.5)])
    sixth = rows_of(paper_tables.table("6", [both]))["coco-cn"]["ours"]["a"]
    seventh = rows_of(paper_tables.table("7", [both]))["coco-cn"]["ours"]["a"]
    assert (sixth["mean_recall"]["paper"], sixth["mean_recall"]["verdict"]) == (75.2, "noise")
    assert (seventh["mean_recall"]["paper"], seventh["mean_recall"]["verdict"]) == (86.9, "worse")
    assert [each["paper"] for each in sixth["image_to_text"]] == [56.9, 82.4, 90.9]
    assert [each["paper"] for each in sixth["text_to_image"]] == [52.7, 79.9, 88.6]


def test_a_set_that_is_searched_by_text_alone_and_one_without_a_number_of_the_paper() -> None:
    one = evaluated("a", "Wukong ViT", pretrained=[searched("muge", 0.4, ("text_to_image",)), searched("aic-icc", 0.4)])
    rows = rows_of(paper_tables.table("6", [one]))
    assert rows["muge"]["ours"]["a"]["image_to_text"] is None
    assert rows["muge"]["ours"]["a"]["text_to_image"][0]["paper"] == 37.6
    assert "paper" not in rows["aic-icc"]["ours"]["a"]["mean_recall"]
    small = evaluated("b", "ViT-B/32", pretrained=[searched("coco-cn", 0.4)])
    assert "paper" not in rows_of(paper_tables.table("6", [small]))["coco-cn"]["ours"]["b"]["mean_recall"]


def test_what_is_missing_says_of_which_model_and_how_to_get_it() -> None:
    first = Evaluated("a", evaluated("a", pretrained=[searched("coco-cn", 0.4)]).document, address="s3://x/model")
    second = evaluated("b", pretrained=[searched("muge", 0.4)])
    missing = {each["set"]: each for each in paper_tables.table("6", [first, second])["missing"]}
    assert missing.keys() == {*paper.TABLE_7}
    assert missing["coco-cn"]["models"] == ["b"] and missing["muge"]["models"] == ["a"]
    assert missing["flickr8k-cn"]["models"] == ["a", "b"]
    assert "`wukong evaluate --model s3://x/model --tasks muge --protocol paper`" in missing["muge"]["how"]
    (whole,) = paper_tables.table("7", [first, second])["missing"]
    assert (whole["set"], whole["models"]) == ("", ["a", "b"]) and "--fine-tuned" in whole["how"]


@pytest.mark.parametrize(
    ("tower", "similarity", "pairs", "column"),
    [
        ("resnet50_clip.openai", "global", 10**8, "ResNet50"),
        ("vit_base_patch16_clip_quickgelu_224.openai", "global", 10**8, "ViT-B/16"),
        ("vit_large_patch14_clip_quickgelu_224.openai", "token", 10**8, "Wukong ViT"),
        ("vit_large_patch14_clip_quickgelu_224.openai", "token", 5 * 10**8, "Wukong ViT-500M"),
        ("vit_large_patch14_clip_quickgelu_224.openai", "global", 5 * 10**8, "Wukong ViT, global"),
        ("swin_large_patch4_window7_224.ms_in22k", "token", 10**8, "Wukong Swin"),
        ("vit_base_patch16_clip_quickgelu_224.openai", "token", 10**8, None),
        ("tf_efficientnet_lite0", "global", 10**4, None),
    ],
)
def test_a_model_stands_for_a_column(tower: str, similarity: str, pairs: int, column: str | None) -> None:
    assert paper.column_of(tower, similarity, pairs) == column


def test_the_page_has_every_number_and_nothing_from_outside() -> None:
    nasty = '<script>alert("猫")</script>'
    models = [
        evaluated(nasty, "Wukong ViT", pretrained=[classified("imagenet", 0.3), searched("coco-cn", 0.9)]),
        evaluated("b", pretrained=[classified("dtd", 0.3), searched("coco-cn", 0.2)]),
    ]
    fifth, sixth = (english(page.render(paper_tables.table(number, models))) for number in ("5", "6"))
    for html in (fifth, sixth):
        assert "<script" not in html and "&lt;script&gt;" in html and "http" not in html.split("<h2>Missing</h2>")[0]
    assert '30.0 <span class="worse">▼</span></b><small>29.0–31.0</small><small>-24.0</small>' in fifth
    assert all(name in fifth for name in paper.MODELS_OF_TABLE_5)
    assert '90.0 <span class="better">▲</span>' in sixth and "<b>20.0</b>" in sixth
    assert "Wukong Swin" in sixth and "not measured" in sixth
