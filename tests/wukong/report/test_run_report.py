"""The report: complete, self-contained, safe with any caption."""

import io
import itertools
import re
from html.parser import HTMLParser

import browser
import pytest
from english import english
from PIL import Image
from run_samples import stored_run

from wukong.config import documents
from wukong.errors import DataError
from wukong.report import gallery, run_report
from wukong.report.funnel import funnel
from wukong.runs.run_records import Record
from wukong.store import storage
from wukong.store.manifest import Stage


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def run(tmp_path):
    return stored_run(tmp_path)


DOCS = "s3://wukong/demo/validate/fa43c20679843a1b/docs/index.html"


def make(run, name="first-7", docs=DOCS, framed=False, decided=None):
    experiment, manifests, evaluation = run
    links = {"MLflow": "http://127.0.0.1:5000/"}
    pictures = run_report.pictures_of(manifests["filter"])
    shown = run_report.contents(experiment, manifests, evaluation, links, pictures, name, docs, decided=decided)
    return english(run_report.render(shown, framed=framed))


def test_times_are_those_of_the_runs_records(run):
    experiment, manifests, evaluation = run
    records = [Record(stage=stage, state="succeeded", seconds=3.0) for stage in ("report", "evaluate", "filter")]
    records.append(Record(stage="crawl", state="succeeded", seconds=0.25, reused=True))
    pictures = run_report.pictures_of(manifests["filter"])
    shown = run_report.contents(experiment, manifests, evaluation, {}, pictures, records=records)
    assert [(row["stage"], row["seconds"], row["width"]) for row in shown["times"]] == [
        ("crawl (reused)", 0.25, pytest.approx(25 / 3)), ("filter", 3.0, 100), ("evaluate", 3.0, 100),
    ]  # fmt: skip


def test_the_page_is_well_formed_and_asks_for_nothing_from_outside(run):
    html = make(run)
    page = Page(html)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base"}
        assert not {name for name in attributes if name.startswith("on")}
        if tag == "img":
            assert attributes["src"].startswith("data:image/jpeg;base64,")
        if tag == "a":
            known = ("http://127.0.0.1:5000/", "evaluation.html", "docs/index.html", "docs/card.html")
            assert attributes["href"] in known
    assert not re.search(r"url\(|@import|srcset=", html)


@pytest.mark.parametrize("framed", [False, True])
def test_the_head_of_the_page_says_what_was_decided(run, framed):
    decided = {"heading": "Version 2 takes <it>.", "says": "It is better.", "against": "old-1", "changes": []}
    html = make(run, framed=framed, decided=decided)
    assert Page(html).open == [] and "Version 2 takes <it>. It is better." in " ".join(text_of(html).split())
    assert "<it>" not in html
    assert "comparison.html" not in html and html.index("It is better.") < html.index("settings that differ")
    change = {
        "task": "words",
        "title": "Words",
        "result": "R@1",
        "before": 0.5,
        "now": None,
        "difference": "not measured",
        "sign": "-",
    }
    html = make(run, framed=framed, decided=decided | {"changes": [change]})
    assert Page(html).open == [] and "<td>50.0" in html and "not measured -" in html and "old-1" in html
    assert ('<a href="comparison.html">' in html) is not framed and "comparison.html" in html


@browser.needed
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(run, width, tmp_path):
    change = {"task": "words", "title": "Words", "result": "R@1", "before": 0.5, "now": 0.4}
    change |= {"difference": "-10.0 (-12.0 to -8.0)"}
    decided = {"heading": "Version 2 does not take @champion, which stays with version 1.", "says": "It is worse. " * 9}
    decided |= {"against": "demo-20261128-055241", "changes": [change | {"sign": "▼"}]}
    page = tmp_path / "report.html"
    page.write_text(make(run, "a-long-name-of-a-run-20261128-055241", decided=decided), "utf-8")
    assert browser.overflow(page, width) == ""


def test_for_a_frame_that_blocks_links_it_shows_addresses_as_text(run):
    assert {a["href"] for tag, a in Page(make(run)).tags if tag == "a"} == {
        "http://127.0.0.1:5000/",
        "evaluation.html",
        "docs/index.html",
        "docs/card.html",
    }
    html = make(run, framed=True)
    assert Page(html).open == []
    assert "a" not in {tag for tag, _ in Page(html).tags}
    for address in (
        "MLflow: http://127.0.0.1:5000/",
        "evaluation.html among the artifacts",
        "s3://wukong/demo/validate/fa43c20679843a1b/docs/index.html",
    ):
        assert address in text_of(html), address
    assert "data docs" not in text_of(make(run, docs="", framed=True)).lower()


def test_captions_cannot_break_the_page(run):
    html = make(run)
    assert "<script>" not in html
    assert html.count("&lt;script&gt;alert(&#34;猫&#34;)") >= 3


def test_it_says_what_the_run_found(run):
    text = " ".join(" ".join(Page(make(run)).text).split())
    for expected in (
        "Human-written names, not web captions.",
        "New pictures",
        "75.0 %",
        "chance 83 %",
        "8.3 %",
        "the right one is at rank 3",
        "Equal captions are one caption, and every picture that has it is right. "
        "Pictures are shown whole, on a white square.",
        "zero-shot top-1 of 2 classes",
        "Red ones",
        "MIT",
        "timeout 7",
        "corrupt 3",
        "0 of 24 rows",
        "90 search results",
        "held back",
        "sensitive",
    ):
        assert expected in text, expected
    crawl, filtered = run[1]["crawl"], run[1]["filter"]
    assert crawl.digest[:16] in text
    assert filtered.digest[:16] in text


def test_pictures_shown_are_those_of_their_pairs(run):
    import base64

    images = [a["src"] for tag, a in Page(make(run)).tags if tag == "img"]
    assert len(images) == 5 + 12
    for place, source in enumerate(images):
        image = Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1])))
        assert max(image.size) == 144
        red, _, blue = image.getpixel((50, 50))
        assert (blue > 200) if place < 5 else (red > 200)


def test_the_funnel_adds_up(run):
    steps = funnel(run[1]["crawl"], run[1]["filter"])
    assert [step.name for step in steps][:3] == ["results", "urls", "downloaded"]
    for before, after in itertools.pairwise(steps):
        assert before.rows - after.lost == after.rows
    assert steps[-1].rows == 12


def test_a_curve_spans_its_box_and_leaves_out_what_is_no_number(run):
    points = [a["points"] for tag, a in Page(make(run)).tags if tag == "polyline"]
    assert len(points) == 1
    xy = [tuple(map(float, point.split(","))) for point in points[0].split()]
    assert xy[0] == (0, 8)
    assert xy[-1] == (320, 112)


def test_it_says_what_overlaps_with_the_training_data(run):
    experiment, manifests, evaluation = run
    result = {"clean": {"value": 0.4375}, "overlap": {"value": 0.75}, "difference": {"low": -0.1}, "p": 0.3}
    found = {"task": "kinds", "model": "finetuned", "pictures": 12, "overlap": 4, "left_out": 2}
    tasks = [{**task, "headline": "top1"} for task in evaluation["tasks"]]
    known = {**evaluation, "tasks": tasks, "overlaps": [{**found, "results": {"top1": result}}]}
    said = (
        "4 of 12 pictures overlap with the training data. 2 of 12 pictures were found and left out of training. "
        "top-1: 50.00 % with them, 43.75 % without. The overlap raises the result by no more than noise."
    )
    assert said in " ".join(make((experiment, manifests, known)).split())
    assert "overlap with the training data" not in make(run)


def test_without_evaluation_it_is_a_report_of_the_data(run):
    experiment, manifests, _ = run
    shown = run_report.contents(experiment, manifests, {}, {}, run_report.pictures_of(manifests["filter"]))
    html = english(run_report.render(shown))
    assert "Retrieval" not in html and "evaluation.html" not in html
    assert "Training pairs at random" in html


def test_a_picture_that_is_nowhere_is_named(run):
    with pytest.raises(DataError, match=r"no shard of .* has the pair 123"):
        run_report.pictures_of(run[1]["filter"])("123")


def test_random_pairs_are_looked_for_in_the_chosen_shards_alone(run, monkeypatch):
    filtered = run[1]["filter"]
    more = []
    for part in filtered.parts:
        if part.path.startswith("train/"):
            copy = part.model_copy(update={"path": part.path.replace("00000", "00001")})
            storage.write_bytes(f"{filtered.uri}/{copy.path}", storage.read_bytes(f"{filtered.uri}/{part.path}"))
            more.append(copy)
    larger = filtered.model_copy(update={"parts": (*filtered.parts, *more)})
    read, original = [], storage.read_table
    monkeypatch.setattr(gallery, "_SHARDS", 1)
    monkeypatch.setattr(storage, "read_table", lambda uri, *a: read.append(uri) or original(uri, *a))
    assert len(gallery.contact_sheet(larger, 0)) == 12
    assert len(set(read)) == 1


def test_equal_runs_give_equal_pages(run):
    assert make(run) == make(run)


def text_of(html):
    body = re.sub(r"<style>.*</style>", "", html, flags=re.DOTALL)
    return " ".join(" ".join(Page(body).text).split())


def test_it_is_titled_by_experiment_and_run(run):
    assert "<title>demo · first-7 · Wukong report</title>" in make(run)
    assert "demo · first-7" in text_of(make(run))


def test_it_says_what_differs_from_the_defaults(run):
    experiment, manifests, evaluation = run
    changed = documents.parse(
        experiment.model_dump(mode="json") | {"seed": 7, "pretrain": {"epochs": 3, "batch_size": 512}}
    )
    text = text_of(make((changed, manifests, evaluation)))
    table = text.split("settings that differ")[1].split("Retrieval")[0]
    for row in ("seed 7 0", "pretrain.epochs 3 20", "crawl.endpoint http://x", "crawl.queries file:///q"):
        assert row in table, row
    for equal in ("batch_size", "learning_rate", "about", "sources"):
        assert equal not in table, equal


@pytest.mark.parametrize("engine", ["searxng", "urls", "files"])
def test_it_says_what_differs_whatever_the_engine(run, engine):
    experiment, manifests, evaluation = run
    crawl = {"engine": engine, "endpoint": "http://x/search" if engine == "searxng" else "file:///my/pictures"}
    if engine == "searxng":
        crawl["queries"] = "file:///q"
    changed = documents.parse(experiment.model_dump(mode="json") | {"crawl": crawl})
    table = text_of(make((changed, manifests, evaluation))).split("settings that differ")[1].split("Retrieval")[0]
    assert f"crawl.engine {engine} baidu" in table
    assert f"crawl.endpoint {crawl['endpoint']}" in table
    assert ("crawl.queries" in table) == (engine == "searxng")


def of_list(run):
    experiment, manifests, evaluation = run
    crawl = manifests["crawl"].model_copy(update={"config": {"engine": "urls"}})
    return experiment, manifests | {"crawl": crawl}, evaluation


def test_a_list_of_urls_is_not_called_a_search(run):
    text = text_of(make(of_list(run)))
    assert "The list has 90 rows, which name 50 distinct URLs" in text
    assert "From list to pair" in text
    said = text.split("The experiment's full configuration")[0].replace("crawl.queries", "")
    for wrong in ("search result", "query", "The queries", "Chinese words"):
        assert wrong not in said, wrong
    assert funnel(of_list(run)[1]["crawl"], run[1]["filter"])[0].title == "rows of the list"
    assert "The queries gave 90 search results" in text_of(make(run))


def test_pictures_of_ones_own_are_called_so(run):
    experiment, manifests, evaluation = run
    crawl = manifests["crawl"].model_copy(update={"config": {"engine": "files"}})
    text = text_of(make((experiment, manifests | {"crawl": crawl}, evaluation)))
    assert "From pictures of one's own to" in text
    assert "From picture to pair" in text
    assert "The data name 90 pictures" in text
    assert "search result" not in text


def test_what_is_empty_is_left_out(run):
    experiment, manifests, _ = run
    filtered = manifests["filter"].model_copy(update={"dropped": {"size": 0}, "parts": ()})
    crawl = manifests["crawl"].model_copy(update={"dropped": {}})
    bare = experiment.model_copy(update={"sources": ()})
    pictures = run_report.pictures_of(filtered)
    shown = run_report.contents(bare, {"crawl": crawl, "filter": filtered}, {}, {}, pictures)
    html = english(run_report.render(shown))
    for heading in ("Retrieval", "Zero-shot", "Left out", "Not downloaded", "Training pairs", "Sources", "Validation"):
        assert heading not in html, heading
    assert not re.search(r"<table[^>]*>\s*(<tr>(\s*<th[^>]*>[^<]*</th>)*\s*</tr>)?\s*</table>", html)


def test_speed_is_drawn_though_it_is_no_data(run):
    experiment, manifests, evaluation = run
    stage = Stage(experiment.root, "pretrain", {})
    storage.write_json(stage.path("measured.json"), [{"epoch": n, "pairs_per_second": 100.0 + n} for n in range(4)])
    trained = manifests | {"pretrain": stage.commit([])}
    assert "pairs per second" in text_of(make((experiment, trained, evaluation)))


@pytest.mark.parametrize(("value", "shown"), [(1.0, "100 %"), (0.834, "83 %"), (0.0833, "8.3 %"), (0.00068, "0.068 %")])
def test_chance_is_shown_with_two_digits(value, shown):
    assert run_report._chance(value) == shown
