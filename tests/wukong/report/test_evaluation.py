"""The page of an evaluation: complete, self-contained, safe with any caption, and readable in a narrow window."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import pytest
import torch
from english import english
from evaluation_samples import NASTY, data, evaluated, outcomes, overlaps
from PIL import Image

from wukong.evaluate import alignment, examples, paper, results, sets
from wukong.evaluate.results import Candidate, MeasuredModel, Outcome, Query
from wukong.report import evaluation


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def text_of(html: str) -> str:
    body = re.sub(r"<style>.*</style>", "", html, flags=re.DOTALL)
    return " ".join(" ".join(Page(body).texts).split())


@pytest.fixture
def made() -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    return evaluated()


def test_the_page_is_well_formed_and_asks_for_nothing_from_outside(made: Any) -> None:
    html = english(evaluation.render(*made))
    page = Page(html)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base", "a"}
        assert not {name for name in attributes if name.startswith("on")}
        if tag in {"img", "image"}:
            assert (attributes.get("src") or attributes.get("href") or "").startswith("data:image/jpeg;base64,")
    assert not re.search(r"url\(|@import|srcset=", html)
    assert "<script>" not in html and html.count("&lt;script&gt;alert(&#34;猫&#34;)") >= 4
    assert html == english(evaluation.render(*made))


def test_stored_records_make_the_same_page(made: Any) -> None:
    """A stage that was killed reads the records of its finished tasks, and files have sorted keys."""
    document, shown = made
    stored = [json.loads(json.dumps(entry, sort_keys=True)) for entry in document["tasks"]]
    assert evaluation.render({**document, "tasks": stored}, shown) == evaluation.render(document, shown)


def test_the_papers_numbers_stand_in_the_rows_of_those_measured_here(made: Any) -> None:
    text = text_of(english(evaluation.render(*made)))
    row = "ImageNet 40.0 38.5–41.5 50.0 48.5–51.5 paper, val 28.3 32.8 33.2 38.3 44.8 54.0 54.3 43.6 58.5"
    assert row in text
    assert "Average – – 34.2 38.4 45.8 50.1 54.4 60.6 61.5 50.6 59.5" in text
    sixth, seventh = text.split("Table 6: ")[1].split("Table 7: ")
    assert "COCO-CN zero-shot, paper 42.0" in sixth and "Wukong ViT 56.9 82.4 90.9 52.7 79.9 88.6 75.2" in sixth
    assert "MUGE not measured" in sixth
    assert "COCO-CN fine-tuned, paper 52.0" in seventh and "MULE – – – – – – 75.9*" in seventh
    assert all(f"{method}" in text for method in paper.MODELS_OF_TABLE_5)


def test_a_table_of_the_paper_without_a_measured_set_is_folded(made: Any) -> None:
    document, shown = made
    tables = document["tables"]
    nothing = [{**row, "ours": {}} for row in tables["6"]["rows"]]
    page = english(evaluation.render({**document, "tables": {**tables, "6": {**tables["6"], "rows": nothing}}}, shown))
    fifth, sixth, seventh = (page.split(f"Table {number}: ")[1].split("<h2>")[0] for number in (5, 6, 7))
    assert "<details><summary>No set of this table was measured here" in sixth
    assert "<details>" not in fifth + seventh


def test_each_set_says_what_was_measured_and_how(made: Any) -> None:
    text = text_of(english(evaluation.render(*made)))
    for expected in (
        "coco-cn · split test · 2 images · 2 captions · protocol paper · data " + "e" * 16,
        "the right one is at rank 1,234",
        "✗ 狗 is " + NASTY,
        "类00",  # the best class
        "类19 5 % of 5 猫",  # the worst, and what it is taken for
        "mine, fine-tuned token-wise " + "2" * 16,
        "New pictures 2 images, 2 captions mean recall 25.0",
        "Protocol own: ours.",
        f"{len(sets.REGISTRY) - 2} sets",
    ):
        assert expected in text, expected
    assert "Download" in text.split("Not measured")[1]


def test_the_difference_of_two_models_has_its_interval_and_its_test(made: Any) -> None:
    text = text_of(english(evaluation.render(*made)))
    assert "+10.0 +4.2 to +15.8" in text and "0.0072 57 : 31" in text
    assert text.count("fine-tuned less zero-shot") == 1  # at the set that has one


def test_results_stand_there_with_and_without_overlapping_pictures(made: Any) -> None:
    document, shown = made
    text = text_of(english(evaluation.render({**document, "overlaps": overlaps()}, shown)))
    section = text.split("Overlap with the training data")[1].split("Words on patches")[0]
    assert "the candidates stay" in section
    assert (
        "ImageNet fine-tuned 12 of 1,000 1.2 % 3 top-1 50.0 48.5–51.5 48.0 46.5–49.5 90.0 88.5–91.5 "
        "+2.0 +1.1 to +3.4 0.0031 New pictures fine-tuned 0 of 1,000 0 mean recall The difference"
    ) in section
    assert "ImageNet zero-shot 0 of 1,000 4 top-1 ImageNet fine-tuned 12 of" in section
    below = text.split("Set by set")[1]
    assert (
        "The fine-tuned model: 12 of 1,000 pictures overlap with its training data. They were found as equal files "
        "(5), by a hash (6) and by vectors (1). 3 others were found and left out of training. Copies in another size "
        "or format were looked for. top-1: The overlap raises the result by more than noise."
    ) in below
    assert "Every result of the fine-tuned model with and without 12 overlapping queries" in below
    assert "mean over classes 50.0 48.5–51.5 80.0 78.5–81.5" in below


def test_where_nothing_overlaps_no_overlap_is_told(made: Any) -> None:
    assert "verlap" not in english(evaluation.render(*made))


def test_a_word_is_drawn_on_its_patches(made: Any) -> None:
    html = english(evaluation.render(*made))
    tags = Page(html).tags
    assert sum(tag == "rect" for tag, _ in tags) == 4
    assert sum(tag == "text" for tag, _ in tags) == 9
    assert "1 猫 ×4" in text_of(html).replace("\xa0", " ")


def test_one_global_model_has_one_column_and_no_table_7(made: Any) -> None:
    entries = [each.as_json("pretrained") for each in outcomes(0.4)]
    model = MeasuredModel("pretrained", "theirs", "3" * 64, token_wise=False)
    page = evaluation.render(results.document([model], {"paper": ["Paper."]}, entries, {}), made[1])
    text = text_of(english(page))
    assert "No fine-tuned model was measured." in text and "fine-tuned, %" not in text
    assert "one vector for a picture" in text and "Not measured" not in text


def test_small_images_are_made_once() -> None:
    kinds, *_ = outcomes(0.5)
    first = examples.pictures(data("imagenet"), kinds)
    assert set(first) == {"a", "b"} and first["a"] != first["b"]
    assert examples.pictures(data("imagenet"), kinds, first) == {}


def test_pictures_that_are_right_are_aligned_and_texts_that_cannot_be_read_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from wukong.errors import DataError

    def align(saved: object, picture: Image.Image, text: str) -> alignment.Alignment:
        if text == "长":
            raise DataError("too long")
        best = torch.tensor([[0, 1], [1, 2]])
        return alignment.Alignment(("[CLS]", text, "[SEP]"), frozenset({1}), best, best.float(), picture)

    monkeypatch.setattr(alignment, "align", align)
    _, pairs, _ = outcomes(0.5)
    queries = [Query(text, 0, (Candidate("a", text, right=True),)) for text in ("长", "猫", "狗", "鸟")]
    wrong = Query("马", 3, (Candidate("b", "马", right=False),))
    saved: Any = None
    changed = Outcome(**{**vars(pairs), "examples": (wrong, *queries)})
    found, squares = examples.aligned(saved, data("coco-cn"), changed, "finetuned")
    assert [each["text"] for each in found] == ["猫", "狗"] and found[0]["best"] == [[0, 1], [1, 2]]
    assert list(squares) == ["square of a"] and "too long" in caplog.text


@browser.needed
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(made: Any, width: int, tmp_path: Path) -> None:
    document, shown = made
    page = tmp_path / "evaluation.html"
    page.write_text(evaluation.render({**document, "overlaps": overlaps()}, shown), "utf-8")
    assert browser.overflow(page, width) == ""
