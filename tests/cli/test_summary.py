"""What the command prints at the end of a run: what there is, under headings that fit it."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli import summary
from wukong import storage
from wukong.manifest import Stage
from wukong.run_records import Record


def printed(root: Path, engine: str, metrics: dict[str, float]) -> str:
    uri = storage.from_path(root)
    counts: dict[str, Any] = {"results": 9, "urls": 7, "queries": 0 if engine == "urls" else 4}
    crawl = Stage(uri, "crawl", {"engine": engine}).commit([], counts=counts)
    kept = Stage(uri, "filter", {}, [crawl]).commit([], counts={"pairs": 5, "train": 5})
    measured = Stage(uri, "evaluate", {}, [kept]).commit([], metrics=metrics)
    records = [
        Record(stage=each.stage, state="succeeded", manifest=f"{each.uri}/manifest.json")
        for each in (crawl, kept, measured)
    ]
    stream = io.StringIO()
    summary.print_run(Console(file=stream, width=120), records, total=1, setup=1)
    return stream.getvalue()


RETRIEVAL = {"retrieval.new.text_to_image.r1": 0.5, "retrieval.new.text_to_image.chance_r1": 0.1}
CLASSES = {"classification.kinds.top1": 0.5, "classification.kinds.chance": 0.25}


@pytest.mark.parametrize("metrics", [{}, RETRIEVAL, CLASSES, RETRIEVAL | CLASSES])
def test_tables_without_rows_are_left_out(tmp_path: Path, metrics: dict[str, float]) -> None:
    text = printed(tmp_path, "baidu", metrics)
    assert ("On held-out pairs" in text) == ("retrieval.new.text_to_image.r1" in metrics)
    assert ("Zero-shot classes" in text) == ("classification.kinds.top1" in metrics)


def test_a_list_of_urls_is_not_called_a_search(tmp_path: Path) -> None:
    listed, searched = (printed(tmp_path / engine, engine, {}) for engine in ("urls", "baidu"))
    assert "From list to pair" in listed and "rows of the list" in listed
    assert "search" not in listed and "quer" not in listed
    assert "From query to pair" in searched and "search results" in searched
