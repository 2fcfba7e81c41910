"""The dataset card: sources with licences, a heading that fits the crawl, the data docs beside it."""

from pathlib import Path

import pytest
import yaml

from wukong import config, storage
from wukong.config import Source
from wukong.data.schema import PAIRS
from wukong.manifest import Stage
from wukong.report import card
from wukong.report.statistics import measure

pl = pytest.importorskip("polars")


def page(sources: tuple[Source, ...] = (), **more: str) -> str:
    rows = {"caption": ["一只猫"], "width": [300], "height": [300], "length": [3]}
    return card.render("demo", measure(pl.DataFrame(rows)), [*STEPS], [], {"crawl": "abc"}, sources=sources, **more)


STEPS = [card.Step("results", "search results", 9, 0), card.Step("urls", "distinct URLs", 7, 2)]


def test_sources_stand_with_their_licences() -> None:
    sources = (
        Source(name="Stamps", pattern="*/stamps/*", licence="GPL-2.0-only", note="drawings"),
        Source(name="Others", pattern="*/others/*"),
    )
    text = page(sources)
    for expected in ("Sources and licences", "Stamps", "GPL-2.0-only", "*/stamps/*", "drawings", "Others", "not named"):
        assert expected in text, expected


def test_a_set_without_sources_says_so() -> None:
    assert "names no sources" in page()


def test_the_data_docs_are_linked_where_they_lie_beside_it() -> None:
    assert 'href="index.html"' in page(docs="index.html")
    assert "data docs" not in page()


def test_the_card_of_a_list_and_of_a_query_list(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    crawl = {"queries": "file:///q", "endpoint": "http://x"}
    experiment = config.parse({"name": "demo", "storage": root, "crawl": crawl, "release": {"licence": "CC-BY-4.0"}})
    counted = measure(pl.DataFrame({"caption": ["一只猫"], "width": [300], "height": [300], "length": [3]}))
    for engine, heading in (("urls", "From list to pair"), ("baidu", "From query to pair")):
        crawled = Stage(root, "crawl", {"engine": engine}).commit([], counts={"results": 9, "urls": 7})
        stage = Stage(root, "filter", {}, [crawled])
        storage.write_table(stage.path("train/00000.parquet"), PAIRS.empty_table())
        parts = [stage.describe("train/00000.parquet")]
        text = card.of(experiment, stage.commit(parts, counts={"pairs": 7, "train": 7}), counted)
        assert heading in text
        assert "CC-BY-4.0" in text


def test_the_demo_names_the_licences_of_its_packages() -> None:
    from infra.corpus import sources

    demo = yaml.safe_load((Path(__file__).parents[3] / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    named = {entry["pattern"].strip("*/"): entry["licence"] for entry in demo["sources"]}
    assert named == {source.name: source.packages[0].licence for source in sources.SOURCES}
