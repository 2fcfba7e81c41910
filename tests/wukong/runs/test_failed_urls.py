"""The list of what a crawl did not get, of a crawl that finished and of one that failed."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from cli.main import app
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.data.schema import CRAWLED
from wukong.errors import DataError
from wukong.runs import failed_urls, run_records
from wukong.runs.run_records import Record
from wukong.stages import places
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, Stage


def rows(statuses: dict[str, tuple[str, str | None]]) -> pa.Table:
    filled: list[dict[str, Any]] = [
        {"key": f"{n}", "url": url, "caption": "猫", "queries": [], "engine": "files", "status": status, "error": error}
        for n, (url, (status, error)) in enumerate(statuses.items())
    ]
    return pa.Table.from_pylist([dict.fromkeys(CRAWLED.names) | row for row in filled], schema=CRAWLED)


def write(stage: Stage, file: str = "") -> Manifest:
    storage.write_table(
        stage.path("parts/00000.parquet"),
        rows({"http://a.test/1.jpg": ("success", None), "http://a.test/2.jpg": ("http_error", "404")}),
    )
    storage.write_table(
        stage.path("parts/00001.parquet"), rows({"file:///x/%E7%8C%AB.jpg": ("corrupt", "cut after 9 bytes")})
    )
    parts = [stage.describe("parts/00000.parquet", 2), stage.describe("parts/00001.parquet", 1)]
    left = {"http_error": 1, "corrupt": 1, "timeout": 0}
    if not file:
        return stage.commit(parts, dropped=left)
    counts = {"urls": 3, "success": 0, "queries": 0, "queries_failed": 0, "transient": 0, "internal_error": 0}
    made = Manifest(stage=stage.name, uri=stage.uri, config=stage.config, parts=parts, counts=counts, dropped=left)
    manifest.save(made, stage.path(file))
    return made


FAILED = [
    {"what": "http://a.test/2.jpg", "reason": "http_error", "error": "404"},
    {"what": "/x/猫.jpg", "reason": "corrupt", "error": "cut after 9 bytes"},
]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a.test/1.jpg,猫\n", encoding="utf-8")
    crawl = {"engine": "urls", "endpoint": (tmp_path / "list.csv").as_uri()}
    return documents.parse({"name": "x", "storage": storage.from_path(tmp_path / "store"), "crawl": crawl})


def test_a_crawl_and_what_was_made_of_it_list_the_same(tmp_path: Path) -> None:
    crawled = write(Stage(storage.from_path(tmp_path), "crawl", {}))
    filtered = Stage(storage.from_path(tmp_path), "filter", {}, [crawled]).commit([])
    for uri in (crawled.uri, f"{crawled.uri}/manifest.json", filtered.uri):
        found = failed_urls.page(uri, 1)
        assert found["rows"] == FAILED and found["reasons"] == {"http_error": 1, "corrupt": 1}
    other = Stage(storage.from_path(tmp_path), "report", {}).commit([])
    with pytest.raises(DataError, match="not made from a crawl"):
        failed_urls.page(other.uri, 1)


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_lists_them_page_by_page_also_where_its_crawl_failed(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    run_records.claim(experiment, "first")
    show = ["show", "first", "--failed", "--storage", experiment.storage]
    with pytest.raises(DataError, match=r"no crawl of .*first has ended yet"):
        CliRunner().invoke(app, show, catch_exceptions=False)
    stage = places.crawl(experiment).stage
    if finished:
        record = Record(stage="crawl", state="succeeded", manifest=write(stage).uri)
    else:
        write(stage, "failed.json")
        record = Record(stage="crawl", state="failed", error="no picture")
    run_records.write(experiment, "first", record)
    said = CliRunner().invoke(app, show, catch_exceptions=False).output
    assert "http://a.test/2.jpg\n    http_error: 404\n" in said and "http://a.test/1.jpg" not in said
    assert "/x/猫.jpg\n    corrupt: cut after 9 bytes\n" in said and "--page" not in said
    monkeypatch.setattr(failed_urls, "PAGE_ROWS", 1)
    said = CliRunner().invoke(app, show, catch_exceptions=False).output
    assert "a.test/2.jpg" in said and "/x/猫.jpg" not in said and "More: --page 2" in said
    said = CliRunner().invoke(app, [*show, "--page", "2"], catch_exceptions=False).output
    assert "a.test/2.jpg" not in said and "/x/猫.jpg" in said


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_of_many_columns_fits_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns = {f"column-{n}": [f"value-{n}-{row}" for row in range(3)] for n in range(18)}
    storage.write_table(storage.from_path(tmp_path / "wide.parquet"), pa.table(columns))
    said = CliRunner().invoke(app, ["show", str(tmp_path / "wide.parquet")], catch_exceptions=False).output
    body = said.split("\n", 1)[1]  # the first line is the address
    assert all(len(line) <= width for line in body.splitlines())
    assert all(value in said for values in columns.values() for value in values), "no value is broken or cut"
