"""The difference of two crawls against a comparison in plain Python."""

import random
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from crawl_tables import crawl

from wukong.crawl import difference, plan
from wukong.store import storage

STATUSES = [("success", None), ("success", None), ("timeout", None), ("http_error", 404), ("http_error", 503)]


def drawn(seed: int, urls: int = 300) -> list[dict[str, Any]]:
    """Rows of a crawl: some of a fixed set of URLs, each with a drawn result."""
    rng, rows = random.Random(seed), []
    for number in rng.sample(range(urls), urls * 2 // 3):
        status, code = rng.choice(STATUSES)
        captions = rng.choice([None, ["甲", "乙", "丙"], ["甲", "丙", "乙"], ["丙", "甲", "乙"]])
        rows.append(
            {
                "url": f"HTTP://User@Site{number % 7}.test:8{number % 3}/{number}.jpg",
                "caption": captions[0] if captions else rng.choice("甲乙"),
                "captions": [{"caption": each, "count": 1, "query": None} for each in captions] if captions else None,
                "queries": rng.sample([f"词{n}" for n in range(12)], rng.choice([0, 1, 3])),
                "status": status,
                "http_status": code,
                "sha256": rng.choice("ab") * 64 if status == "success" else None,
            }
        )
    return rows


def kind(first: dict[str, Any] | None, second: dict[str, Any] | None) -> str | None:
    pairs = [row is not None and row["status"] == "success" for row in (first, second)]
    if not all(pairs):
        return ("only_first" if pairs[0] else "only_second") if any(pairs) else None
    if first["sha256"] != second["sha256"]:
        return "other_picture"
    texts = [{each["caption"] for each in row["captions"] or [row]} for row in (first, second)]
    return "same" if texts[0] == texts[1] and first["caption"] == second["caption"] else "other_captions"


def result(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not_found"
    return f"http_error {row['http_status']}" if row["http_status"] else row["status"]


def changed(first: Counter[str], second: Counter[str]) -> list[tuple[str, int, int]]:
    found = [(name, first[name], second[name]) for name in first | second if first[name] != second[name]]
    return sorted(found, key=lambda each: (-abs(each[2] - each[1]), each[0]))


@pytest.mark.parametrize("range_rows", [10**6, 60])
@pytest.mark.parametrize("part_size", [7, 1000])
def test_it_is_that_of_plain_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_size: int, range_rows: int
) -> None:
    monkeypatch.setattr(plan, "RANGE_ROWS", range_rows)
    sides = [drawn(1), drawn(2)]
    made = [crawl(storage.from_path(tmp_path / str(n)), rows, part_size) for n, rows in enumerate(sides)]
    found = difference.between(*made, top=5, examples=2)

    by_url = [{row["url"]: row for row in rows} for rows in sides]
    urls = sorted(by_url[0] | by_url[1])
    kinds = {url: kind(*(side.get(url) for side in by_url)) for url in urls}
    assert found.kinds == {name: list(kinds.values()).count(name) for name in difference.KINDS}
    assert min(found.kinds.values()) > 0
    for name, other in (("only_first", 1), ("only_second", 0)):
        assert found.why[name] == Counter(result(by_url[other].get(url)) for url in urls if kinds[url] == name)
    results = [Counter(map(result, rows)) for rows in sides]
    assert {(each.name, each.first, each.second) for each in found.results} == {
        (name, results[0][name], results[1][name]) for name in results[0] | results[1]
    }
    pairs = [[row for row in rows if row["status"] == "success"] for rows in sides]
    queries = [Counter(query for row in rows for query in row["queries"]) for rows in pairs]
    assert [(each.name, each.first, each.second) for each in found.queries] == changed(*queries)[:5]
    hosts = [Counter(urlsplit(row["url"]).hostname for row in rows) for rows in pairs]
    assert [(each.name, each.first, each.second) for each in found.hosts] == changed(*hosts)[:5]
    for name, shown in found.examples.items():
        assert len(shown) == 2
        assert {kinds[each["url"]] for each in shown} == {name}
        for each in shown:
            for which, side in zip(("first", "second"), by_url, strict=True):
                assert (each[which] or {"result": "not_found"})["result"] == result(side.get(each["url"]))


def test_a_crawl_with_one_caption_a_picture_is_compared_with_one_that_has_several(tmp_path: Path) -> None:
    url = {"url": "http://site.test/1.jpg", "caption": "甲", "sha256": "a" * 64}
    several = [{"caption": each, "count": 1, "query": None} for each in ("甲", "乙")]
    before = crawl(storage.from_path(tmp_path / "before"), [url])
    after = crawl(storage.from_path(tmp_path / "after"), [{**url, "captions": several}])
    assert difference.between(before, after).kinds["other_captions"] == 1
    assert difference.between(before, before).kinds["same"] == 1


def test_a_range_of_one_crawl_reads_no_part_that_lies_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn(3)
    made = crawl(storage.from_path(tmp_path / "one"), rows, part_size=10)
    read: list[int] = []

    def source(files: tuple[str, ...], low: str | None, high: str | None) -> Any:
        read.append(len(files))
        return kept(files, low, high)

    kept = difference.Source
    monkeypatch.setattr(difference, "Source", source)
    monkeypatch.setattr(plan, "RANGE_ROWS", 50)
    difference.between(made, made)
    ranges = plan.ranges_for(2 * len(rows))
    assert len(read) == 2 * ranges and sum(read) <= 2 * (len(rows) // 10 + ranges)


def test_crawls_without_any_url_have_no_difference(tmp_path: Path) -> None:
    empty = crawl(storage.from_path(tmp_path / "empty"), [])
    found = difference.between(empty, empty)
    assert set(found.kinds.values()) == {0} and not found.results
