"""The dataset card: sources with licences, a heading that fits the crawl, the data docs beside it."""

from pathlib import Path

import pytest
import yaml
from english import english

from wukong.config import documents
from wukong.config.experiment import Source
from wukong.curate.pairs import PAIRS
from wukong.errors import DataError
from wukong.report import card
from wukong.report.blurred import Dropped
from wukong.report.checks import Applied
from wukong.report.statistics import measure
from wukong.store import storage
from wukong.store.manifest import Stage

pl = pytest.importorskip("polars")


def page(sources: tuple[Source, ...] = (), **more: str) -> str:
    rows = {"caption": ["一只猫"], "width": [300], "height": [300], "length": [3]}
    shown = card.make("demo", measure(pl.DataFrame(rows)), [*STEPS], [], {"crawl": "abc"}, sources=sources, **more)
    return card.render(shown)


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


def test_in_a_frame_the_address_of_the_data_docs_is_text(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    card.write(root, filled(docs="index.html"))
    framed = card.page_for_frame(root)
    assert f"<code>{root}/docs/index.html</code>" in framed
    assert "<a " not in framed
    card.write(root, filled())
    assert "data docs" not in card.page_for_frame(root)


def filled(docs: str = "") -> card.Card:
    rule = Applied(
        "size", "large enough", 2, (("min_side", "200"),), 12_345, (("<kind>", 3),), (("", 9), ("Stamps", 4))
    )
    found, unchecked = ("Overlap with <muge>: 12 pictures.",), ("Nobody looked for <x>.",)
    dropped = tuple(Dropped(f"{n:020x}", "size", f"data:image/png;base64,B{n}") for n in range(10, 13))
    more = {"rules": (rule,), "found": found, "unchecked": unchecked, "dropped": dropped}
    return without_checks(docs).model_copy(update=more)


def without_checks(docs: str = "") -> card.Card:
    rows = pl.DataFrame({"caption": ["一只猫", "<b>猫"], "width": [300, 900], "height": [300, 301], "length": [3, 31]})
    sources = (Source(name="Stamps", pattern="*/stamps/*", licence="GPL-2.0-only", note="<drawings>"),)
    pairs = [{"key": f"{n:020x}", "src": "data:image/jpeg;base64,AA==", "caption": f"<第{n}只>"} for n in range(3)]
    facts = {"filter": "b", "crawl": "a"}
    steps = [*STEPS, card.Step("train", "trained on", 3, 4)]
    return card.make("demo", measure(rows), steps, pairs, facts, "关于", sources, docs=docs)


def test_what_a_card_shows_is_stored_and_gives_the_same_page_again(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    shown = filled(docs="index.html")
    card.write(root, shown)
    again = card.read(root)
    assert again == shown
    assert card.render(again).encode() == (tmp_path / card.PATH).read_bytes()
    gone = f"{1:020x}"
    without = card.render(again.without({gone}))
    assert [f"{n:020x}" in without for n in range(3)] == [True, False, True]
    page_before = card.render(shown).splitlines()
    assert without.splitlines() == [line for line in page_before if gone not in line]


def test_a_card_names_rules_with_their_thresholds_and_what_they_removed() -> None:
    page = english(card.render(filled()))
    for expected in ("large enough", "version 2", "12,345", "&lt;kind&gt;", "elsewhere 9"):
        assert expected in page, expected
    assert page.index("What was found") < page.index("12 pictures") < page.index("What was not checked")
    assert "Nobody looked for &lt;x&gt;." in page


def test_dropped_pictures_are_taken_off_a_card_by_their_keys() -> None:
    shown, gone = filled(), f"{11:020x}"
    assert shown.shows_any({gone}) and shown.shows_any({f"{1:020x}"}) and not shown.shows_any({"f" * 20})
    left = shown.without({gone})
    assert [each.key for each in left.dropped] == [f"{10:020x}", f"{12:020x}"]
    assert left.pairs == shown.pairs and gone not in card.render(left) and "base64,B11" not in card.render(left)
    assert "blurred" not in card.render(shown.model_copy(update={"dropped": ()})).split("</style>", 1)[1]


def test_damaged_data_of_a_card_are_named(tmp_path: Path) -> None:
    (tmp_path / card.DATA_PATH).write_text('{"title": "demo"}')
    with pytest.raises(DataError, match=r"card\.json does not hold a dataset card"):
        card.read(storage.from_path(tmp_path))


def test_the_card_of_a_list_and_of_a_query_list(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    crawl = {"queries": "file:///q", "endpoint": "http://x"}
    experiment = documents.parse({"name": "demo", "storage": root, "crawl": crawl, "release": {"licence": "CC-BY-4.0"}})
    counted = measure(pl.DataFrame({"caption": ["一只猫"], "width": [300], "height": [300], "length": [3]}))
    for engine, heading in (("urls", "From list to pair"), ("baidu", "From query to pair")):
        crawled = Stage(root, "crawl", {"engine": engine}).commit([], counts={"results": 9, "urls": 7})
        stage = Stage(root, "filter", {}, [crawled])
        storage.write_table(stage.path("train/00000.parquet"), PAIRS.empty_table())
        parts = [stage.describe("train/00000.parquet")]
        text = card.render(card.of(experiment, stage.commit(parts, counts={"pairs": 7, "train": 7}), counted))
        assert heading in text
        assert "CC-BY-4.0" in text


def test_the_demo_names_the_licences_of_its_packages() -> None:
    from infra.corpus import sources

    demo = yaml.safe_load((Path(__file__).parents[3] / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    named = {entry["pattern"].strip("*/"): entry["licence"] for entry in demo["sources"]}
    assert named == {source.name: source.packages[0].licence for source in sources.SOURCES}
