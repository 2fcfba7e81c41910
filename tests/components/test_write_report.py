"""The report's component: what lies beside the report of a run, and what the page links to."""

import posixpath
import re
from pathlib import Path
from typing import Any

import pytest

from components import stage as components
from wukong.config import documents
from wukong.errors import DataError
from wukong.report import run_report
from wukong.runs import run_costs, run_records
from wukong.runs.run_costs import Holding, Sheet
from wukong.runs.run_records import Record
from wukong.stages import run_paths
from wukong.store import storage, takedowns
from wukong.store.manifest import Manifest, Stage

PAGE = "<html><head><title>T</title></head><body><main><p>表五</p></main></body></html>"


def test_the_pages_lie_side_by_side_and_lead_to_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    experiment = documents.parse({"name": "x", "storage": storage.from_path(tmp_path / "data"), "crawl": crawl})
    uri = storage.from_path(tmp_path / "experiment.json")
    storage.write_json(uri, experiment.model_dump(mode="json"))

    def commit(name: str, *parents: Manifest) -> Manifest:
        stage = Stage(experiment.root, name, {}, parents)
        parts = []
        if name == "evaluate":
            storage.write_json(stage.path("evaluation.json"), {"tasks": []})
            storage.write_bytes(stage.path("evaluation.html"), PAGE.encode())
            parts = [stage.describe(each) for each in ("evaluation.html", "evaluation.json")]
        if name == "validate":
            storage.write_json(stage.path("results.json"), {"expectations": []})
            parts = [stage.describe("results.json")]
            for page in ("card", "index", "validations/pairs"):
                storage.write_bytes(stage.path(f"docs/{page}.html"), PAGE.encode())
        made = stage.commit(parts, counts={"results": 3, "urls": 3, "success": 3, "pairs": 3, "train": 3})
        record = Record(stage=name, state="succeeded", manifest=f"{made.uri}/manifest.json")
        run_records.write(experiment, "first", record)
        return made

    crawled = commit("crawl")
    filtered = commit("filter", crawled)
    evaluated = commit("evaluate", filtered)

    def page(name: str) -> str:
        return storage.read_bytes(run_paths.uri_of(experiment, "first", name)).decode()

    held = Holding(key="k", name="n", cores=2, memory=0, gpus=0, began=0, until=3600, ended=True, used=1800)
    run_costs.write(experiment, "first", "crawl", "ray-1", Sheet(source="ray", held=(held,)))
    components.save_artifact(evaluated, str(tmp_path / "evaluate"))
    components.write_report(uri, "first", str(tmp_path / "evaluate"), {}, str(tmp_path / "page.html"))
    assert links(page("evaluation.html")) == ["report.html"], "there are no data docs"
    assert links(page("report.html")) == ["evaluation.html"]
    assert "This run held at least 2.0 core-hours and 0 GPU-hours, 75 % idle." in page("report.html")
    assert "Of filter, evaluate it is not known." in page("report.html")
    stored_cost = storage.read_json(run_paths.uri_of(experiment, "first", run_costs.FILE))
    assert stored_cost["not_known"] == ["filter", "evaluate"]
    framed = (tmp_path / "page.html").read_text("utf-8")
    assert "<a " not in framed and "evaluation.html</code> among the artifacts" in framed
    monkeypatch.setenv("MLFLOW_PUBLIC_URL", "http://mlflow.test")
    registration = {"version": 8.0, "promoted": 0.0, "attempt": 1.0}
    components.write_report(uri, "first", str(tmp_path / "evaluate"), registration, str(tmp_path / "page.html"))
    assert f"Model {experiment.registry.model_name} version 8, does not hold @champion" in page("report.html")

    commit("validate", crawled, filtered)
    components.write_report(uri, "first", str(tmp_path / "evaluate"), {}, str(tmp_path / "page.html"))
    assert page("docs/validations/pairs.html") == PAGE, "Great Expectations' own pages have their own way home"
    pages = {"report.html", "evaluation.html", "docs/card.html", "docs/index.html"}
    for name in sorted(pages):
        text = page(name)
        found = {posixpath.normpath(posixpath.join(posixpath.dirname(name), link)) for link in links(text)}
        assert pages - {name} <= found, "each page leads to the others"
        title = re.findall('[">]([^"<>]+)', text.partition("</title>")[0].partition("<title")[2])
        assert len(title) == 1 + (name == "report.html"), "in each of its languages"
        assert all("first" in each for each in title), "and says whose it is"
        if name != "report.html":
            assert text.endswith("<p>表五</p></main></body></html>")
    assert "<a " not in (tmp_path / "page.html").read_text("utf-8")

    def begun(*given: Any, **options: Any) -> str:
        storage.write_json(storage.join(experiment.root, takedowns.BEGUN), {"when": "now"})
        return render(*given, **options)

    render = run_report.render
    monkeypatch.setattr(run_report, "render", begun)
    with pytest.raises(DataError, match="a takedown began while the report was made"):
        components.write_report(uri, "first", str(tmp_path / "evaluate"), {}, str(tmp_path / "page.html"))
    left = storage.list_files(run_paths.uri_of(experiment, "first", ""), ".html")
    assert not left, "pages of which the takedown does not know"
    with pytest.raises(DataError, match="run `wukong takedown` again"):
        components.write_report(uri, "first", str(tmp_path / "evaluate"), {}, str(tmp_path / "page.html"))


def links(page: str) -> list[str]:
    return [link for link in re.findall(r'href="([^"]+)"', page) if "://" not in link]
