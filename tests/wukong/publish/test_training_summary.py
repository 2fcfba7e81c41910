"""The EU's summary has the template's sections in their order, what the manifests know, and "not known" elsewhere."""

import html
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from english import english

from wukong.config import documents
from wukong.publish import training_summary
from wukong.publish.hosts import Host
from wukong.report import card, checks
from wukong.report.funnel import Step
from wukong.report.statistics import Statistics, measure
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage

HEADINGS = """1. General information
1.1. Provider identification
1.2. Model identification
1.3. Modalities, overall training data size and other characteristics
2. List of data sources
2.1. Publicly available datasets
2.2. Private non-publicly available datasets obtained from third parties
2.2.1. Datasets commercially licensed by rightsholders or their representatives
2.2.2. Private datasets obtained from other third parties
2.3. Data crawled and scraped from online sources
2.4. User data
2.5. Synthetic data
2.6. Other sources of data
3. Data processing aspects
3.1. Respect of reservation of rights from text and data mining exception or limitation
3.2. Removal of illegal content
3.3. Other information (optional)""".splitlines()
CRAWL = Manifest(
    stage="crawl",
    uri="file:///s/crawl",
    config={"engine": "urls", "politeness": {"robots_txt": True, "respect_noai": True, "user_agent": "bot/1"}},
    counts={"urls": 2_000},
    dropped={"robots_disallowed": 21, "noai": 4, "opted_out": 5},
    provenance={"created": "2026-11-01T00:30:00.000000+00:00", "seconds": 7_200.0},
)
FILTERED = Manifest(
    stage="filter",
    uri="file:///s/filter",
    config={"mask_names": True},
    counts={"pairs": 1_200, "train": 900},
    dropped={"size": 150, "sensitive": 50, "usage": 8},
)
COUNTED = measure(
    pl.DataFrame({"caption": ["一只猫", "两只狗"], "width": [300, 300], "height": [300, 300], "length": [3, 3]})
)
KNOWN: dict[str, Any] = {
    "publisher": "Example",
    "contact": "pairs@example.org",
    "published": "2026-11-30",
    "version": "2.0.0",
}


def summarised(folder: Path, crawl: Manifest = CRAWL, counted: Statistics = COUNTED, **release: Any) -> dict[str, Any]:
    root = storage.from_path(folder)
    sources = [{"name": "Stamps", "pattern": "*/stamps/*", "licence": "GPL-2.0-only"}, {"name": "Rest", "pattern": "*"}]
    section = {"endpoint": f"{root}/list.csv", "engine": "urls"}
    experiment = documents.parse(
        {"name": "demo", "about": "邮票", "storage": root, "crawl": section, "sources": sources, "release": release}
    )
    stage = Stage(root, "release", {})
    first = iter([Host("a.cn", 10, 5_000), Host("b.cn", 30, 400)])
    domains = training_summary.write_domains(stage, 17, first)
    shown = card.make("demo", counted, [Step("crawl", "a", 2, 0)] * 2, [], {}, "邮票", experiment.sources).model_copy(
        update={"found": checks.found(FILTERED), "unchecked": checks.unchecked(FILTERED)}
    )
    part = training_summary.write(stage, experiment.release, shown, crawl, FILTERED, counted, 3, domains)
    assert part.path == "docs/training_summary.html"
    return {"page": storage.read_bytes(stage.path(part.path)).decode(), "uri": stage.uri}


def answers(value: dict[str, Any]) -> dict[str, list[str]]:
    """The sentences by question; none where the page says that it is not known."""
    found = re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", english(value["page"]), re.DOTALL)
    told = {question: re.findall(r"<p>(.*?)</p>", answer, re.DOTALL) for question, answer in found}
    assert all(
        sentences or "not known</p>" in answer for (_, answer), sentences in zip(found, told.values(), strict=True)
    )
    return {html.unescape(each): [html.unescape(re.sub("<.*?>", "", one)) for one in told[each]] for each in told}


def test_the_sections_are_the_templates(tmp_path: Path) -> None:
    value = summarised(tmp_path)
    found = re.findall(r"<h(\d)>(\d.*?)</h", english(value["page"]))
    assert [heading for _, heading in found] == HEADINGS
    for depth, heading in found:
        assert int(depth) == heading.split(" ")[0].rstrip(".").count(".") + 2


def test_what_the_manifests_know_is_filled_in(tmp_path: Path) -> None:
    value = summarised(tmp_path, **KNOWN)
    told = answers(value)
    assert told["Provider name and contact details"] == ["Example", "pairs@example.org"]
    assert told["Latest date of data acquisition/collection for model training"] == ["11/2026"]
    assert told["Period of data collection"][0].startswith("10/2026 to 11/2026")
    assert told["Crawler name(s)/identifier(s)"] == ["bot/1"]
    assert told["Image: training data size and types of content"][0] == "Less than 1 million images: 2."
    tokens = round(COUNTED.token_mean * 2)
    assert told["Text: training data size and types of content"][0] == f"Less than 1 billion tokens: {tokens}."
    described = told["Comprehensive description of the type of content and online sources crawled"]
    assert "licence: GPL-2.0-only" in described[1] and "licence: not known" in described[2]
    respected = " ".join(told["Measures implemented before model training to respect reservations of rights"])
    for text in (
        "21 pictures were not requested",
        "X-Robots-Tag were left out: 4",
        "list kept 5",
        "8 left",
        "covers: 3",
    ):
        assert text in respected, text
    illegal = told["General description of measures taken"]
    assert "The rule sensitive removed 50 pairs." in illegal[0]
    assert "No model looked whether captions fit their pictures." in illegal
    assert "version of the summary: 2.0.0" in english(value["page"])
    assert "last update: 2026-11-30" in english(value["page"])
    assert "17 domains" in told["Summary of the most relevant domain names crawled"][0]
    assert "2 with most bytes of pictures, 10 % of them" in told["Summary of the most relevant domain names crawled"][1]


def test_what_nobody_knows_says_so(tmp_path: Path) -> None:
    crawl = CRAWL.model_copy(update={"config": {}, "provenance": {}})
    value = summarised(tmp_path, crawl)
    told = answers(value)
    unknown = {question for question, sentences in told.items() if not sentences}
    assert unknown >= {
        "Provider name and contact details",
        "Versioned model name(s)",
        "Have you used publicly available datasets to train the model?",
        "Crawler name(s)/identifier(s)",
        "Period of data collection",
        "Are you a signatory to the Code of Practice for general-purpose AI models?",
    }
    page = english(value["page"])
    assert page.count("not known</p>") >= len(unknown)
    assert "last update: not known" in page


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (999_999, "Less than 1 million images: 999,999."),
        (1_000_000, "1 million to 1 billion images: 1,000,000."),
        (1_000_000_001, "More than 1 billion images: 1,000,000,001."),
    ],
)
def test_sizes_are_in_the_templates_ranges(tmp_path: Path, pairs: int, expected: str) -> None:
    told = answers(summarised(tmp_path, counted=Statistics(pairs)))
    assert told["Image: training data size and types of content"][0] == expected


def test_the_domains_are_a_file_and_the_page_shows_the_first(tmp_path: Path) -> None:
    value = summarised(tmp_path, small_publisher=True)
    assert storage.read_bytes(f"{value['uri']}/docs/domains.tsv").decode() == (
        "domain\tpairs\tbytes\na.cn\t10\t5000\nb.cn\t30\t400\n"
    )
    page = value["page"]
    assert 'href="domains.tsv"' in page
    assert re.findall(r"<code>(\w\.cn)</code></td><td class=\"n\">([\d,]+)</td><td class=\"n\">([\d,]+)", page) == [
        ("a.cn", "10", "5,000"),
        ("b.cn", "30", "400"),
    ]
    assert "5 % of them" in answers(value)["Summary of the most relevant domain names crawled"][1]
