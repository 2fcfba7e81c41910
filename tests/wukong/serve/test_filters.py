"""Filters against a loop over all pictures, in the search, the API and the page's form."""

import random
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import filtered
import pytest
from filtered import Row
from search_site import Site, served

from wukong.serve.filters import Filters, Selection

QUERY = "红大的猫"
ROWS = filtered.rows()


@pytest.fixture(scope="module", params=["global", "token"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp(request.param)
    with served(filtered.opened(root, filtered.columns(ROWS), request.param)[0]) as started:
        yield started


def passes(row: Row, asked: dict[str, Any]) -> bool:
    host = (row.source or "").lower()
    if (name := asked.get("source", "").lower()) and host != name and not host.endswith(f".{name}"):
        return False
    if asked.get("min_width") and (row.width is None or row.width < asked["min_width"]):
        return False
    if asked.get("min_height", 0) > row.height:
        return False
    if ("since" in asked or "until" in asked) and row.day is None:
        return False
    if row.day and not asked.get("since", date.min) <= row.day <= asked.get("until", date.max):
        return False
    if asked.get("licence") and row.licence != asked["licence"]:
        return False
    return any(asked.get("word", "") in caption for caption in row.captions)


def drawn_filters(numbers: random.Random) -> dict[str, Any]:
    values: dict[str, list[Any]] = {
        "source": ["example.com", "EXAMPLE.com", "com", "img.example.com", "nowhere.test"],
        "min_width": [1, 256, 641],
        "min_height": [256, 640],
        "since": [date(2024, 1, 20)],
        "until": [date(2024, 2, 10)],
        "licence": ["CC0 1.0", "none"],
        "word": ["第1", "5张", "图片", "没有"],
    }
    return {name: numbers.choice(values[name]) for name in values if numbers.random() < 0.3}


def test_what_passes_is_what_a_loop_finds(site: Site) -> None:
    selection, numbers, sizes = Selection(site.index), random.Random(1), set()
    for _ in range(200):
        asked = drawn_filters(numbers)
        mask = selection.allowed(Filters(**asked))
        expected = [passes(row, asked) for row in ROWS]
        assert (mask is None) == (not asked)
        assert mask is None or mask.tolist() == expected, asked
        sizes.add(sum(expected))
    assert len(sizes) > 20


def test_the_search_ranks_what_passes_as_it_does_among_all(site: Site) -> None:
    whole = site.ask("/api/search", q=QUERY, top=100).json["results"]
    whole += site.ask("/api/search", q=QUERY, top=75, page=2).json["results"][25:]
    row_of = {key: row for row, key in enumerate(site.index.keys)}
    asked = {"source": "example.com", "since": date(2024, 1, 10), "min_width": 64}
    expected = [hit for hit in whole if passes(ROWS[row_of[hit["picture"]]], asked)]
    pages = [site.ask("/api/search", q=QUERY, top=4, page=page, **asked).json for page in range(1, 10)]
    assert 8 < len(expected) < 30
    assert [hit for page in pages for hit in page["results"]] == expected
    assert {page["matching"] for page in pages} == {page["looked_at"] for page in pages} == {len(expected)}
    assert [page["more"] for page in pages] == [4 * page < len(expected) for page in range(1, 10)]


def test_of_near_duplicates_the_nearest_is_shown(site: Site) -> None:
    whole = site.ask("/api/search", q=QUERY, top=100).json["results"]
    row_of = {key: row for row, key in enumerate(site.index.keys)}
    groups = [ROWS[row_of[hit["picture"]]].group for hit in whole]
    expected = [hit for place, hit in enumerate(whole) if groups[place] not in groups[:place]]
    found: list[Any] = []
    for page in (1, 2, 3):
        answer = site.ask("/api/search", q=QUERY, top=10, page=page, fold=True).json
        assert answer["matching"] == 150
        found += answer["results"]
    assert len(expected) < 80 and found == expected[:30]


def test_a_word_is_read_as_a_query_is(site: Site) -> None:
    for word in ("第１", "第1", "\u200b第1"):
        assert site.ask("/api/search", q=QUERY, word=word).json["matching"] == sum(
            "第1" in row.captions[0] for row in ROWS
        )
    assert site.ask("/api/search", q=QUERY, word="張圖").json["matching"] == 150


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"since": "2024-02-01", "until": "2024-01-01"}, "2024-02-01 is after 2024-01-01: exchange the two dates"),
        ({"since": "yesterday"}, "since: Input should be a valid date"),
        ({"min_width": "wide"}, "min_width: Input should be a valid integer"),
        ({"min_height": -1}, "min_height: Input should be greater than or equal to 0"),
        ({"source": "x" * 254}, "source: String should have at most 253"),
        ({"word": "\u200b"}, "there is nothing to read in the word of the caption"),
        ({"word": ["红", "绿"]}, "the filter word is given more than once: give it once"),
        ({"page": 0}, "page: Input should be greater"),
        ({"page": 999}, "page 999 is too far"),
    ],
)
def test_what_cannot_be_filtered_is_refused_in_words(site: Site, asked: dict[str, Any], said: str) -> None:
    refused = site.ask("/api/search", q=QUERY, **asked)
    assert (refused.status, said in refused.json["error"]) == (422, True), refused.text


def test_what_the_data_lack_is_named(tmp_path: Path) -> None:
    known = {name: column for name, column in filtered.columns(ROWS).items() if name in ("width", "licence")}
    with served(filtered.opened(tmp_path, known)[0]) as site:
        refused = site.ask("/api/search", q=QUERY, source="example.com", since="2024-01-01", fold=True, min_width=1)
        assert refused.status == 422
        assert refused.json["error"].endswith("because the data lack: the site, the date, groups of near-duplicates")
        page = site.ask("/", q=QUERY).text
        assert 'name="min_width"' in page and 'name="licence"' in page
        assert 'name="since"' not in page and 'name="fold"' not in page
        assert "the site, the height, the date, groups of near-duplicates" in page


def test_nothing_that_passes_is_said(site: Site) -> None:
    answer = site.ask("/api/search", q=QUERY, licence="none").json
    assert (answer["results"], answer["matching"], answer["stands_out"]) == ([], 0, None)
    assert (answer["nothing_similar"], answer["more"]) == (False, False)
    assert "No picture passes the filters." in site.ask("/", q=QUERY, licence="none").text


def test_the_form_keeps_what_was_asked_and_its_pages_follow(site: Site) -> None:
    """As a browser without a script sends it: fields that are left empty are there."""
    asked = {
        "q": QUERY,
        "source": "example.com",
        "min_width": "64",
        "min_height": "",
        "since": "",
        "word": "",
        "fold": "true",
    }
    page = site.ask("/", **asked)
    assert page.status == 200
    assert 'value="example.com"' in page.text and 'value="true" checked' in page.text
    assert '<details class="filters" open>' in page.text
    count = site.ask("/api/search", q=QUERY, source="example.com", min_width=64, fold=True).json["matching"]
    assert f"{count} pictures pass the filters." in page.text
    refused = site.ask("/", **{**asked, "since": "yesterday"})
    assert (refused.status, "the filter since cannot be read" in refused.text) == (422, True)
    refused = site.ask("/", q=QUERY, word=["红", "绿"])
    assert (refused.status, "the filter word is given more than once" in refused.text) == (422, True)
    assert '<details class="filters">' in site.ask("/", q=QUERY).text
