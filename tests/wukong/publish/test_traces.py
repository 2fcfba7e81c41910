"""What still names a pair beside the tables: in records, pages and stored answers."""

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wukong.errors import DataError
from wukong.evaluate import answers
from wukong.publish import takedown_plan
from wukong.publish.traces import Traces
from wukong.store import storage

KEY, OTHER = "0123456789abcdef0123", "f" * 20
URL, DIGEST = "http://x.example/a.jpg?b=1&c='2'", "ab" * 32
CAPTION, SHORT = "海边的<灯塔>与日出", "猫"
TRACES = Traces({KEY}, {URL, DIGEST}, {CAPTION, SHORT})
PICTURE = "<img src='data:image/jpeg;base64,AAAA'>"


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ({"examples": {"http_error": [URL, "HTTP 404"], "corrupt": ["http://y/", "x"]}, "urls": 3},
         {"examples": {"corrupt": ["http://y/", "x"]}, "urls": 3}),
        ([{"caption": CAPTION, "rank": 0}, {"caption": "别的", "rank": 1}], [{"caption": "别的", "rank": 1}]),
        ({"images": [{"image": KEY}, {"image": OTHER}], "rank": 2}, {"images": [{"image": OTHER}], "rank": 2}),
        ({"pictures": {KEY: "data:", f"square of {KEY}": "data:", OTHER: "data:"}}, {"pictures": {OTHER: "data:"}}),
        ({"classes": [{"name": SHORT, "top1": 0.5}]}, {"classes": [{"name": SHORT, "top1": 0.5}]}),  # a class, no pair
        ({"error": f"cannot read {URL}: gone", "n": 1}, None),
    ],
)  # fmt: skip
def test_records_lose_what_names_a_pair_and_nothing_else(value: object, left: object) -> None:
    assert TRACES.without(value) == left
    assert TRACES.without(left) == left


@pytest.mark.parametrize(
    ("page", "named"),
    [
        (f"<figure data-key='{KEY}'>{PICTURE}</figure>", True),
        (f"<figure data-key='{OTHER}'>{PICTURE}</figure>", False),
        (PICTURE, True),  # a picture of which it does not say whose it is
        (f"<p>{html.escape(URL)}</p>", True),
        (f"<p>{html.escape(CAPTION)}</p>", True),
        (f'<img alt="{SHORT}">', True),
        (f"<p>{SHORT}</p>", True),
        ("<p>一只大熊猫在树上</p>", False),  # a word that holds the short caption
        (f"<p>{DIGEST}</p>", True),
    ],
)
def test_a_page_that_names_a_pair_is_recognised(page: str, named: bool) -> None:
    assert TRACES.in_page(page.encode()) == named


def test_a_file_that_is_no_json_is_left_unless_it_names_a_pair() -> None:
    assert TRACES.without_in_json(b"") is None
    with pytest.raises(DataError, match="not valid JSON"):
        TRACES.without_in_json(f'{{"key": "{KEY}'.encode())


def test_a_page_of_another_experiment_is_not_taken_for_one_that_does_not_say() -> None:
    assert not TRACES.in_page(PICTURE.encode(), unsaid=False)


def test_answers_keep_their_numbers_under_other_ids() -> None:
    ids = [OTHER, KEY, "e" * 20]
    models = {role: answers.of_images(ids, [0, 1, 0], {"top1": right}) for role, right in
              (("finetuned", [1, 0, 1]), ("pretrained", [0, 1, 1]))}  # fmt: skip
    sink = pa.BufferOutputStream()
    table = answers.table(models, task="t", digest="d", protocol="own")
    pq.write_table(table, sink)
    rewritten = TRACES.without_in_answers(bytes(sink.getvalue()))
    assert rewritten is not None
    stored = pq.read_table(pa.BufferReader(rewritten))
    assert answers.metadata(stored) == answers.metadata(table)
    for role, before in models.items():
        after = answers.read(stored, role)
        assert after.queries == (OTHER, "taken-down-1", "e" * 20)
        np.testing.assert_array_equal(after.results["top1"], before.results["top1"])
    assert TRACES.without_in_answers(rewritten) is None


def test_answers_name_no_picture_that_a_query_shows() -> None:
    asked = replace(answers.of_images(["0", "1"], [0, 1], {"top1": [1, 0]}), pictures=((OTHER, KEY), (KEY,)))
    sink = pa.BufferOutputStream()
    pq.write_table(answers.table({"finetuned": asked}, task="t", digest="d", protocol="own"), sink)
    rewritten = TRACES.without_in_answers(bytes(sink.getvalue()))
    assert rewritten is not None
    after = answers.read(pq.read_table(pa.BufferReader(rewritten)), "finetuned")
    assert after.queries == ("0", "1") and after.pictures == ((OTHER, "taken-down-0-2"), ("taken-down-0-2",))
    assert TRACES.without_in_answers(rewritten) is None


@pytest.mark.parametrize(
    ("name", "content", "shown"),
    [
        ("a.json", [{"caption": CAPTION}, {"other": SHORT}], {CAPTION}),
        ("a.json", [{"caption": CAPTION, "key": KEY}], set()),  # goes anyway
        ("a.json", {"texts": [{"text": [SHORT, "别的"]}]}, {SHORT}),
        ("a.html", f"<p>{html.escape(CAPTION)}</p><p>{SHORT}</p>", {CAPTION, SHORT}),
        ("a.html", f"<p>{html.escape(CAPTION)}</p><p>{KEY}</p>", set()),
        ("a.html", "<p>一只大熊猫在树上</p>", set()),
        ("a.parquet", CAPTION, set()),
    ],
)
def test_captions_that_decide_over_a_file(name: str, content: object, shown: set[str]) -> None:
    data = content if isinstance(content, str) else json.dumps(content)
    assert TRACES.captions_in(name, data.encode()) == shown


def test_pages_and_records_are_found_wherever_they_lie_and_tables_and_records_of_takedowns_are_left(
    tmp_path: Path,
) -> None:
    named = [
        "evaluate/1/_parts/new.json",
        "evaluate/1/evaluation.html",
        "report.html",
        "runs/a/report.html",
        "runs/a/docs/card.html",
    ]
    others = ["evaluate/1/evaluation.json", "runs/a/crawl.json", "runs/a/report.txt"]
    for name in named:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"image": KEY}) if name.endswith("json") else f"<p>{KEY}</p>")
    for name in [*others, "takedowns/1.json", "filter/1/_parts/assign.json", "runs/a/experiment.json"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}" if name in others else json.dumps({"key": KEY}))
    place = storage.from_path(tmp_path)
    assert sorted(takedown_plan.traced(place, TRACES)) == sorted(storage.join(place, name) for name in named)
