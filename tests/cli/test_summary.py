"""What the command prints at the end of a run: what there is, under headings that fit it."""

import io
from pathlib import Path
from typing import Any

import pytest

from cli import summary
from wukong.commands.output import Console
from wukong.runs.run import Run
from wukong.runs.run_records import Record
from wukong.store import storage
from wukong.store.manifest import Stage
from wukong.tracking.run_links import Pages


def printed(
    root: Path, engine: str, tasks: list[dict[str, Any]], repeated: int = 0, dropped: dict[str, int] | None = None
) -> str:
    uri = storage.from_path(root)
    counts: dict[str, Any] = {"results": 9, "urls": 7, "queries": 0 if engine == "urls" else 4}
    crawl = Stage(uri, "crawl", {"engine": engine}).commit([], counts=counts, dropped=dropped)
    kept = Stage(uri, "filter", {}, [crawl]).commit([], counts={"pairs": 5, "train": 5})
    evaluate = Stage(uri, "evaluate", {}, [kept])
    storage.write_json(evaluate.path("evaluation.json"), {"tasks": tasks})
    measured = evaluate.commit([])
    checked = Stage(uri, "validate", {}, [kept]).commit([], counts={"repeated_pairs": repeated})
    run = Run(storage.join(uri, "runs", "mine"))
    for each in (crawl, kept, checked, measured):
        record = Record(stage=each.stage, state="succeeded", manifest=f"{each.uri}/manifest.json")
        storage.write_json(storage.join(run.uri, f"{each.stage}.json"), record.model_dump(mode="json"))
    stream = io.StringIO()
    summary.print_run(Console(file=stream, width=120), run, total=1, setup=1)
    return stream.getvalue()


RETRIEVAL = {
    **{"model": "finetuned", "kind": "retrieval", "task": "new"},
    "results": {f"text_to_image_r{k}": {"value": 0.5} for k in (1, 5, 10)},
    "chance": {"text_to_image_r1": 0.1},
}
CLASSES = {
    **{"model": "finetuned", "kind": "classification", "task": "kinds"},
    "results": {"top1": {"value": 0.5}},
    "chance": {"top1": 0.25},
}


@pytest.mark.parametrize("tasks", [[], [RETRIEVAL], [CLASSES], [RETRIEVAL, CLASSES]])
def test_tables_without_rows_are_left_out(tmp_path: Path, tasks: list[dict[str, Any]]) -> None:
    text = printed(tmp_path, "baidu", tasks)
    assert ("On held-out pairs" in text) == ("new.text to image  0.500  0.500  0.500      0.1000" in text)
    assert ("On held-out pairs" in text) == (RETRIEVAL in tasks)
    assert ("Zero-shot classes" in text) == (CLASSES in tasks)


def test_a_list_of_urls_is_not_called_a_search(tmp_path: Path) -> None:
    listed, searched = (printed(tmp_path / engine, engine, []) for engine in ("urls", "baidu"))
    assert "From list to pair" in listed and "rows of the list" in listed
    assert "search" not in listed and "quer" not in listed
    assert "From query to pair" in searched and "search results" in searched


def test_pairs_that_repeat_others_are_counted(tmp_path: Path) -> None:
    assert "another pair" not in printed(tmp_path / "none", "files", [])
    said = printed(tmp_path / "some", "files", [], repeated=1_234)
    assert "Pairs with the picture and the caption of another pair: 1,234" in said


def test_what_was_not_downloaded_is_listed_by_a_command_that_is_named(tmp_path: Path) -> None:
    assert "--failed" not in printed(tmp_path / "none", "files", [])
    said = printed(tmp_path / "some", "files", [], dropped={"corrupt": 3})
    assert "Not downloaded: corrupt 3" in said and "`wukong show mine --failed` lists them." in said


def test_the_pages_of_a_run_are_named(tmp_path: Path) -> None:
    report = tmp_path / "a run" / "report.html"
    (report.parent / "docs").mkdir(parents=True)
    (report.parent / "docs" / "card.html").write_text("")
    pages = Pages("http://m/#/experiments/1", "http://m/#/experiments/1/runs/2", "http://m/#/compare-runs?runs=%5B%5D")
    stream = io.StringIO()
    for known in (None, Pages(pages.experiment, pages.run), pages):
        summary.print_pages(Console(file=stream, width=40), report, known)
    lines = [line.split(maxsplit=1)[0] for line in stream.getvalue().splitlines()]
    untracked, first = ["Report", "Card"], ["Report", "Card", "MLflow", "All"]
    assert lines == [*untracked, *first, *first, "Compare"]
    assert f"Report      {report}\n" in stream.getvalue(), "an address is on one line, to be opened"
    assert pages.compare in stream.getvalue()
