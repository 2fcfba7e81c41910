"""Two searches find one picture with two captions: from the search site to shards, gate, release and takedown."""

import csv
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import polars as pl
import pytest
from loopback_web import Web, answering
from PIL import Image
from trace_search import found

from ray_jobs import crawl, validate
from ray_jobs import filter as filtering
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.crawl.url import key_of
from wukong.curate.pairs import CAPTIONS, DROPPED, PAIRS
from wukong.data.schema import CAPTIONS as CRAWLED_CAPTIONS
from wukong.data.schema import CRAWLED
from wukong.publish import release, takedown, takedown_plan
from wukong.runtime.environment import CONNECT_TO
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

pytestmark = [pytest.mark.usefixtures("local_ray"), pytest.mark.long]

HOST = "several.test"
PICTURES = 30
QUERIES = ["鱼", "猫", "狗", "鸟"]


def results_of(query: str) -> list[tuple[int, str]]:
    """What a query finds: pictures with the title of each."""
    finds = {
        "鱼": [(n, "000.jpg") for n in range(0, PICTURES, 5)],
        "猫": [(n, f"第{n}张猫的图片") for n in range(PICTURES)],
        "狗": [(n, f"第{n}张狗的图片") for n in range(0, PICTURES, 2)],
        "鸟": [(n, f"第{n}张狗的图片") for n in range(0, PICTURES, 4)],
    }
    return finds[query]


def captions_of(number: int, *, kept: bool) -> list[tuple[str, int, str]]:
    """The oracle: all captions of a picture with their counts and first queries; or those that the rules keep."""
    counts: dict[str, int] = Counter()
    first: dict[str, str] = {}
    for query in QUERIES:
        for each, title in results_of(query):
            if each == number:
                counts[title] += 1
                first.setdefault(title, query)
    titles = list(first)
    ordered = [titles[0], *sorted(titles[1:], key=lambda title: -counts[title])]
    return [(title, counts[title], first[title]) for title in ordered if not (kept and title == "000.jpg")]


def url_of(number: int) -> str:
    return f"http://{HOST}/{number}.jpg"


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((320, 240)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    web = Web()

    async def search(path: str, writer: Any) -> None:
        fields = parse_qs(urlsplit(path).query)
        results = results_of(fields["word"][0]) if fields["pn"] == ["0"] else []
        items = [{"objURL": url_of(n), "fromPageTitle": title, "fromURL": f"http://{HOST}/p"} for n, title in results]
        await answering(json.dumps({"data": [*items, {}]}).encode(), "application/json")(path, writer)

    web.fallback = search
    web.handlers["/robots.txt"] = answering(b"", status="404 Not Found")
    for number in range(PICTURES):
        web.bytes_at(f"/{number}.jpg", picture(number))
    monkeypatch.setenv(CONNECT_TO, f"{HOST}=127.0.0.1:{web.port}")
    yield web
    web.stop()


def experiment(folder: Path, name: str = "several", queries: list[str] = QUERIES) -> Experiment:
    listed = folder / f"{name}.txt"
    listed.write_text("\n".join(queries))
    return documents.parse(
        {
            "name": name,
            "storage": storage.from_path(folder / "store"),
            "crawl": {
                "queries": storage.from_path(listed),
                "endpoint": f"http://{HOST}/search/acjson",
                "part_size": 12,
                "retries": 0,
                "politeness": {"per_host_concurrency": 32},
            },
            "filter": {
                "shard_size": 16,
                "split": {
                    "held_out_captions": 0.15,
                    "holdouts": [{"name": "unseen", "source": "*", "captions": "unseen"}],
                },
            },
            "validation": {"min_pairs": 1},
            "release": {"files": 2},
        }
    )


def tables(made: Manifest, prefix: str) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(storage.read_table(uri)) for uri in made.part_uris(prefix, ".parquet")])


def in_tars(made: Manifest, prefix: str) -> dict[str, dict[str, bytes]]:
    """The files of each pair, by its key and their suffixes."""
    files: dict[str, dict[str, bytes]] = {}
    for uri in made.part_uris(prefix, ".tar"):
        with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(uri))) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                files.setdefault(key, {})[suffix] = tar.extractfile(member).read()
    return files


def entries(captions: list[tuple[str, int, str]]) -> list[tuple[str, int, str]] | None:
    """What the column of several captions holds."""
    return captions if len(captions) > 1 else None


def told(captions: list[dict[str, Any]] | None) -> list[tuple[str, int, str]] | None:
    return captions and [(each["caption"], each["count"], each["query"]) for each in captions]


def test_a_picture_keeps_the_captions_of_all_searches_until_it_is_taken_down(site: Web, tmp_path: Path) -> None:
    del site
    e = experiment(tmp_path)
    crawled = crawl.run(e, {})
    rows = {row["key"]: row for row in tables(crawled, "parts/").to_dicts()}
    files = in_tars(crawled, "parts/")
    for number in range(PICTURES):
        key, captions = key_of(url_of(number)), captions_of(number, kept=False)
        facts = json.loads(files[key]["json"])
        assert rows[key]["caption"] == files[key]["txt"].decode() == captions[0][0], "the first that was found"
        assert told(rows[key]["captions"]) == told(facts.get("captions")) == entries(captions)
    several = sum(len(captions_of(number, kept=False)) > 1 for number in range(PICTURES))
    assert crawled.counts["more_captions"] == several > 10
    assert crawled.counts["results"] == sum(len(results_of(query)) for query in QUERIES)
    for uri in crawled.part_uris("parts/", ".parquet"):
        assert storage.read_table(uri).schema.equals(CRAWLED.append(CRAWLED_CAPTIONS))

    filtered = filtering.run(e, {"crawl": crawled})
    train, tested = tables(filtered, "train/"), tables(filtered, "unseen/")
    assert filtered.counts["pairs"] == filtered.counts["kept"] == len(train) + len(tested) == PICTURES
    assert tested["captions"].null_count() == len(tested) > 0
    held_out = {*tested["caption"]}
    files = in_tars(filtered, "train/")
    for row in train.to_dicts():
        number = int(row["url"].rsplit("/", 1)[1].removesuffix(".jpg"))
        captions = [each for each in captions_of(number, kept=True) if each[0] not in held_out]
        # Others may be held out without being the first of any picture.
        left = told(row["captions"]) or [captions[0]]
        assert row["caption"] == files[row["key"]]["txt"].decode() == captions[0][0] == left[0][0]
        assert [each for each in captions if each in left] == left
        facts = json.loads(files[row["key"]]["json"])
        assert told(facts.get("captions")) == told(row["captions"])
        assert b"caption_original" not in files[row["key"]]["json"]
        for each in row["captions"] or ():
            assert each["length"] == len([c for c in each["caption"] if c > "一"]) and each["caption_count"] == 1
    more = int(train["captions"].is_not_null().sum())
    assert filtered.counts["more_captions"] == more > 5
    for uri in filtered.part_uris("train/", ".parquet"):
        assert storage.read_table(uri).schema.equals(PAIRS.append(CAPTIONS))
    for uri in filtered.part_uris("dropped/", ".parquet"):
        assert storage.read_table(uri).schema.equals(DROPPED.append(CAPTIONS))

    validated = validate.run(e, {"filter": filtered})
    results = storage.read_json(storage.join(validated.uri, "results.json"))["expectations"]
    checked = next(each for each in results if each["name"] == "length")
    texts = PICTURES + sum(len(each) - 1 for each in train["captions"].drop_nulls())
    assert checked["elements"] == texts, "the gate judges each caption"
    assert validated.counts["pairs"] == PICTURES
    card = storage.read_bytes(storage.join(validated.uri, "docs/card.html")).decode()
    assert "pairs with several captions" in card

    released = release.release(e, validated)
    lines = [line for uri in released.part_uris(suffix=".csv") for line in csv_rows(uri)]
    assert [line["url"] for line in lines] == train["url"].to_list()
    assert [line["caption"] for line in lines] == train["caption"].to_list()
    listed = [[(each["caption"], each["count"]) for each in json.loads(line["captions"] or "[]")] for line in lines]
    assert listed == [[each[:2] for each in told(row) or []] for row in train["captions"].to_list()]
    croissant = storage.read_json(storage.join(released.uri, "croissant.json"))
    assert [field["name"] for field in croissant["recordSet"][0]["field"]] == [
        "pairs/url", "pairs/caption", "pairs/captions"
    ]  # fmt: skip

    gone = next(row for row in train.to_dicts() if row["captions"])
    number = int(gone["url"].rsplit("/", 1)[1].removesuffix(".jpg"))
    words = {title: title for title, _, _ in captions_of(number, kept=True)} | {gone["url"]: gone["url"]}
    assert {what for _, what in traces(e, words)} == {*words}
    second = gone["captions"][1]["caption"]
    page = storage.join(e.root, "runs/r/examples.json")  # nothing else in it names the pair
    storage.write_json(page, {"examples": [{"caption": second, "score": 1.0}, {"caption": "别的", "score": 0.5}]})
    request = tmp_path / "requests.txt"
    request.write_text(gone["url"])
    planned = takedown_plan.plan(e.root, storage.from_path(request), "asked", datetime(2026, 1, 1, tzinfo=UTC))
    assert planned.captions == (second,)
    takedown.carry_out(e.root, planned)
    assert storage.read_json(page) == {"examples": [{"caption": "别的", "score": 0.5}]}
    assert traces(e, words) == set()
    for before, prefix, left in (crawled, "parts/", several - 1), (filtered, "train/", more - 1):
        after = manifest.load(before.uri)
        table = tables(after, prefix)
        assert after.counts["more_captions"] == int(table["captions"].is_not_null().sum()) == left
    left_lines = [line for uri in released.part_uris(suffix=".csv") for line in csv_rows(uri)]
    assert left_lines == [line for line in lines if line["url"] != gone["url"]]


def test_a_crawl_in_which_each_picture_has_one_caption_has_no_column_for_more(site: Web, tmp_path: Path) -> None:
    del site
    e = experiment(tmp_path, "one", ["狗", "鸟"])
    crawled = crawl.run(e, {})
    assert "more_captions" not in crawled.counts
    filtered = filtering.run(e, {"crawl": crawled})
    assert "more_captions" not in filtered.counts
    for made, prefix, schema in (
        (crawled, "parts/", CRAWLED),
        (filtered, "train/", PAIRS),
        (filtered, "dropped/", DROPPED),
    ):
        assert all(storage.read_table(uri).schema.equals(schema) for uri in made.part_uris(prefix, ".parquet"))
        assert all("captions" not in json.loads(each["json"]) for each in in_tars(made, prefix).values())
    released = release.release(e, validate.run(e, {"filter": filtered}))
    assert all(line.keys() == {"url", "caption"} for uri in released.part_uris(suffix=".csv") for line in csv_rows(uri))


def test_neither_the_size_of_parts_nor_a_second_run_changes_a_byte(tmp_path: Path, make_crawl) -> None:
    rows = []
    for number in range(40):
        texts = [f"第{number}张{animal}的图片" for animal in "猫狗鸟"[: number % 3 + 1]] + ["查看源网页"] * (number % 2)
        several = [{"caption": text, "count": place + 1, "query": "词"} for place, text in enumerate(texts)]
        row = {"url": url_of(number), "caption": texts[0], "captions": several if len(texts) > 1 else None}
        rows.append(row)
    shards = []
    for name, size in ("small", 7), ("large", 100), ("again", 100):
        e = experiment(tmp_path, name)
        filtered = filtering.run(e, {"crawl": make_crawl(rows, part_size=size, name=name)})
        shards.append({part.path: part.sha256 for part in filtered.parts if part.path.startswith("train/")})
        texts = [each["caption"] for some in tables(filtered, "train/")["captions"].drop_nulls() for each in some]
        assert "查看源网页" not in texts, "20 pairs have it as their second or third: it is too frequent"
        assert filtered.counts["more_captions"] == int(tables(filtered, "train/")["captions"].is_not_null().sum()) > 5
    assert shards[0] == shards[1] == shards[2]


def csv_rows(uri: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(storage.read_bytes(uri).decode(), newline="")))


def traces(e: Experiment, words: dict[str, str]) -> set[tuple[str, str]]:
    """Where the texts stand in anything that the experiment stored, but for the records of takedowns."""
    files = [uri for uri in storage.list_files(e.root) if "/takedowns/" not in uri]
    return found(((uri, storage.read_bytes(uri)) for uri in files), words)
