"""The crawl job end to end on a local Ray, against a search site and pictures on loopback."""

import asyncio
import io
import json
import random
import struct
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from loopback_web import Web, answering, raw
from made_again import cut, flipped, is_made_again, obey
from PIL import Image
from trace_search import found

from ray_jobs import crawl
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.crawl.engine import EngineRefusedError
from wukong.crawl.url import key_of
from wukong.crawl.verdict import CrawlFailedError
from wukong.curate.pairs import read_pairs
from wukong.data import images, shards
from wukong.data.schema import CAPTIONS, CRAWLED
from wukong.errors import ConfigError, DataError, WukongError
from wukong.publish import takedown, takedown_plan
from wukong.runtime.environment import CONNECT_TO
from wukong.stages import places
from wukong.store import storage
from wukong.store.manifest import Manifest, describe, load

pytestmark = pytest.mark.usefixtures("local_ray")

HOST = "corpus.test"
PICTURES = 120


def jpeg(number: int) -> bytes:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    stream = io.BytesIO()
    small.resize((320, 240), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=85)
    return stream.getvalue()


class Site:
    """A search site: a query's number says which five pictures it finds; every tenth picture is missing."""

    def __init__(self) -> None:
        self.web = Web()
        self.missing = set(range(0, PICTURES, 10))
        self.slowness = 0.0
        self.web.fallback = self._answer
        self._pictures = [jpeg(number) for number in range(PICTURES)]

    async def _answer(self, path: str, writer: Any) -> None:
        if self.slowness:
            await asyncio.sleep(self.slowness)
        if path.startswith("/search/acjson"):
            fields = parse_qs(urlsplit(path).query)
            query, page = fields["word"][0], int(fields["pn"][0]) // 30
            numbers = self.found_by(query) if page == 0 else []
            items = [
                {
                    "objURL": f"http://{HOST}/{n}.jpg",
                    "fromPageTitle": f"{query}的图片{n}",
                    "fromURL": f"http://{HOST}/p",
                }
                for n in numbers
            ]
            await answering(json.dumps({"data": [*items, {}]}).encode(), "application/json")(path, writer)
            return
        number = int(path.strip("/").removesuffix(".jpg"))
        if number in self.missing:
            await answering(b"", status="404 Not Found")(path, writer)
        else:
            await answering(self._pictures[number])(path, writer)

    @staticmethod
    def found_by(query: str) -> list[int]:
        first = int(query[1:]) * 3
        return [(first + i) % PICTURES for i in range(5)]

    def requested(self) -> Counter[str]:
        """Requests for pictures and searches since last asked."""
        counts = Counter(
            "search" if "acjson" in path else "picture"
            for path in self.web.requests.elements()
            if path != "/robots.txt"
        )
        self.web.requests.clear()
        return counts


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()
    site.web.handlers["/robots.txt"] = answering(b"", status="404 Not Found")
    monkeypatch.setenv(CONNECT_TO, f"{HOST}=127.0.0.1:{site.web.port}")
    yield site
    site.web.stop()


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[..., Experiment]:
    def make(queries: range = range(40), name: str = "a", **crawl_settings: Any) -> Experiment:
        listed = tmp_path / f"queries-{queries.start}-{queries.stop}.txt"
        listed.write_text("\n".join(f"q{number}" for number in queries))
        settings = {
            "queries": storage.from_path(listed),
            "endpoint": f"http://{HOST}/search/acjson",
            "part_size": 25,
            "max_seconds": 5.0,
            "retries": 0,
            "politeness": {"per_host_concurrency": 32},
        }
        return documents.parse(
            {"name": name, "storage": storage.from_path(tmp_path / "store"), "crawl": settings | crawl_settings}
        )

    return make


def rows(manifest: Manifest) -> list[dict[str, Any]]:
    uris = manifest.part_uris("parts/", ".parquet")
    return [row for uri in uris for row in storage.read_table(uri).to_pylist()]


def digests(manifest: Manifest) -> dict[str, str]:
    return {part.path: part.sha256 for part in manifest.parts}


def expected_urls(queries: range) -> dict[str, list[str]]:
    """URL -> the queries that find it, in the order of the list."""
    found: dict[str, list[str]] = {}
    for number in queries:
        for picture in Site.found_by(f"q{number}"):
            found.setdefault(f"http://{HOST}/{picture}.jpg", []).append(f"q{number}")
    return found


def test_from_queries_to_shards(site: Site, experiment) -> None:
    manifest = crawl.run(experiment(), {})
    found = expected_urls(range(40))
    by_url = {row["url"]: row for row in rows(manifest)}
    assert {url: row["queries"] for url, row in by_url.items()} == found
    assert all(row["caption"].startswith(f"{row['queries'][0]}的") for row in by_url.values()), (
        "the first caption is kept"
    )
    gone = {f"http://{HOST}/{number}.jpg" for number in site.missing}
    assert {url for url, row in by_url.items() if row["status"] == "http_error"} == gone & set(found)
    good = len(set(found) - gone)
    assert manifest.counts["queries"] == 40
    assert manifest.counts["results"] == 200
    assert manifest.counts["urls"] == manifest.counts["requested"] == len(found)
    assert manifest.counts["success"] == good
    assert manifest.dropped == {"http_error": len(found) - good}
    assert site.requested()["picture"] == len(found), "every URL is fetched once"

    keys = []
    for uri in manifest.part_uris("parts/", ".tar"):
        with storage.open_input(uri) as stream, tarfile.open(fileobj=stream) as tar:
            keys += [member.name.partition(".")[0] for member in tar if member.name.endswith(".jpg")]
    assert sorted(keys) == sorted(row["key"] for row in by_url.values() if row["status"] == "success")
    for uri in manifest.part_uris("parts/", ".parquet"):
        table = storage.read_table(uri)
        assert table.schema.equals(CRAWLED.append(CAPTIONS))
        assert table.num_rows <= 25
    for part in manifest.parts:
        assert storage.exists(storage.join(manifest.uri, part.path))


def test_a_finished_crawl_is_found_again(site: Site, experiment) -> None:
    first = crawl.run(experiment(), {})
    site.requested()
    again = crawl.run(experiment(concurrency=3, retries=1), {})
    assert places.finished("crawl", experiment(concurrency=3, retries=1), {}) == first
    assert places.finished("crawl", experiment(image_size=128), {}) is None
    assert again.digest == first.digest, "the pace does not change what is crawled"
    assert not site.requested()


def test_new_queries_fetch_only_what_is_new(site: Site, experiment) -> None:
    first = crawl.run(experiment(range(30)), {})
    site.requested()
    grown = crawl.run(experiment(range(40), previous=first.uri), {})
    requests = site.requested()
    new = set(expected_urls(range(40))) - set(expected_urls(range(30)))
    assert requests == {"search": 10 * 2, "picture": len(new)}, "two pages a query"
    afresh = crawl.run(experiment(range(40), name="b"), {})
    assert rows(grown) == rows(afresh), "as if it had been crawled at once"
    tars = [{k: v for k, v in digests(m).items() if k.startswith("parts/")} for m in (grown, afresh)]
    assert tars[0] == tars[1]
    assert grown.parents[0].digest == first.digest


def test_failures_are_tried_again(site: Site, experiment) -> None:
    first = crawl.run(experiment(), {})
    site.requested()
    was_missing, site.missing = site.missing, set()
    again = crawl.run(experiment(previous=first.uri, retry_failed=True), {})
    assert places.finished("crawl", experiment(previous=first.uri, retry_failed=True), {}) == again
    assert site.requested() == {"picture": first.dropped["http_error"]}
    assert again.counts["success"] == first.counts["urls"]
    kept = crawl.run(experiment(previous=first.uri), {})
    assert places.finished("crawl", experiment(previous=first.uri), {}) == kept
    assert kept.counts["http_error"] == first.dropped["http_error"]
    assert not site.requested()
    assert was_missing


def test_previous_must_fit(site: Site, experiment, tmp_path: Path) -> None:
    first = crawl.run(experiment(), {})
    with pytest.raises(ConfigError, match="image_size = 256, now 128"):
        crawl.run(experiment(previous=first.uri, image_size=128), {})
    with pytest.raises(ConfigError, match=r"needs crawl\.previous"):
        crawl.run(experiment(retry_failed=True), {})
    with pytest.raises(DataError, match="no manifest"):
        crawl.run(experiment(previous=storage.from_path(tmp_path / "none")), {})


def test_pictures_that_opted_out_since_do_not_come_back(site: Site, experiment, tmp_path: Path) -> None:
    first = crawl.run(experiment(range(30)), {})
    stored = sorted(row["url"] for row in rows(first) if row["status"] == "success")
    digest = next(row["sha256"] for row in rows(first) if row["url"] == stored[-1])
    other_spelling = stored[0].replace(HOST, f"{HOST.upper()}:80/x/..")
    (tmp_path / "out.txt").write_text(f"{other_spelling}\n{digest}\n")
    polite = {"per_host_concurrency": 32, "opt_out": storage.from_path(tmp_path / "out.txt")}
    grown = crawl.run(experiment(range(40), previous=first.uri, politeness=polite), {})
    by_url = {row["url"]: row for row in rows(grown)}
    assert {url for url, row in by_url.items() if row["status"] == "opted_out"} == {stored[0], stored[-1]}
    assert grown.dropped["opted_out"] == 2
    kept = set()
    for uri in grown.part_uris("parts/", ".tar"):
        with storage.open_input(uri) as stream, tarfile.open(fileobj=stream) as tar:
            kept |= {member.name.partition(".")[0] for member in tar}
    assert not kept & {key_of(stored[0]), key_of(stored[-1])}
    assert {key_of(url) for url in stored[1:-1]} <= kept


def test_a_crawl_that_ignored_wishes_is_not_reused_by_one_that_respects_them(site: Site, experiment) -> None:
    rude = {"per_host_concurrency": 32, "robots_txt": False, "respect_noai": False}
    first = crawl.run(experiment(range(5), politeness=rude), {})
    with pytest.raises(ConfigError, match=r"politeness\.robots_txt = false, now true"):
        crawl.run(experiment(range(5), previous=first.uri), {})
    with pytest.raises(ConfigError, match=r"politeness\.respect_noai = false, now true"):
        crawl.run(experiment(range(5), previous=first.uri, politeness=rude | {"respect_noai": True}), {})


def test_hostile_texts_of_an_engine_are_reasons(site: Site, experiment) -> None:
    """URLs and captions of megabytes, spellings of one URL: all are counted, none is stored."""
    picture = f"http://{HOST}/1.jpg"
    found = [
        (picture, "一"),
        (f"http://{HOST.upper()}:80/./%31.jpg#x", "二"),
        (f"http://{HOST}/{'x' * 3_000_000}", "三"),
        (f"http://{HOST}/2.jpg", "四" * 100_000),
        (f"http://{HOST}/3.jpg", "五" + "a" * 9_999),
    ]
    original = site.web.fallback

    async def hostile(path: str, writer: Any) -> None:
        if "acjson" not in path:
            await original(path, writer)
            return
        first = parse_qs(urlsplit(path).query)["pn"] == ["0"]
        items = [{"objURL": url, "fromPageTitle": title, "fromURL": url} for url, title in found] if first else []
        await answering(json.dumps({"data": [*items, {}]}).encode(), "application/json")(path, writer)

    site.web.fallback = hostile
    manifest = crawl.run(experiment(range(2)), {})
    by_status = {row["url"]: row["status"] for row in rows(manifest)}
    assert manifest.counts["urls"] == len(by_status) == 4
    assert manifest.dropped == {"caption_too_long": 1, "invalid_url": 1}
    assert by_status[picture] == by_status[f"http://{HOST}/3.jpg"] == "success"
    (invalid,) = (row for row in rows(manifest) if row["status"] == "invalid_url")
    assert "longer than 8192 characters" in invalid["error"]
    assert invalid["page_url"] is None
    assert sum(part.bytes for part in manifest.parts) < 1_000_000


@pytest.mark.parametrize(
    "refusal",
    [
        answering(b'{"antiFlag":1}', "application/json"),
        answering(b"", status="302 Found", Location="https://wappass.baidu.com/static/captcha/"),
        answering(b"", status="429 Too Many Requests", Retry_After="999"),
    ],
    ids=["antiFlag", "captcha", "429"],
)
def test_a_refusal_stops_the_engine_and_keeps_what_was_found(site: Site, experiment, refusal) -> None:
    calls = Counter[str]()
    original = site.web.fallback

    async def refusing(path: str, writer: Any) -> None:
        calls["search"] += "acjson" in path
        if "acjson" in path and calls["search"] > 450:
            await refusal(path, writer)
        else:
            await original(path, writer)

    site.web.fallback = refusing
    with pytest.raises(EngineRefusedError, match="refuses further requests"):
        crawl.run(experiment(range(600)), {})
    asked = calls["search"]
    assert asked < 900, "it is not asked on and on"
    site.web.fallback = original
    site.requested()
    manifest = crawl.run(experiment(range(600)), {})
    assert manifest.counts["queries"] == 600
    assert site.requested()["search"] < 1200, "finished blocks are not searched again"


def test_the_search_engines_robots_txt_is_obeyed_unless_told_otherwise(site: Site, experiment, monkeypatch) -> None:
    # A name of its own, because a worker process keeps what it knows of a site.
    closed = f"http://closed.test:{site.web.port}/search/acjson"
    monkeypatch.setenv(CONNECT_TO, f"{HOST}=127.0.0.1:{site.web.port},closed.test=127.0.0.1:{site.web.port}")
    site.web.handlers["/robots.txt"] = answering(b"User-agent: *\nDisallow: /search/", "text/plain")
    with pytest.raises(EngineRefusedError, match="search_robots_txt"):
        crawl.run(experiment(endpoint=closed), {})
    polite = {"search_robots_txt": False, "per_host_concurrency": 32}
    assert crawl.run(experiment(endpoint=closed, politeness=polite), {}).counts["results"] == 200


def test_queries_without_an_answer_are_counted(site: Site, experiment) -> None:
    original = site.web.fallback

    async def partly(path: str, writer: Any) -> None:
        word = parse_qs(urlsplit(path).query).get("word", [""])[0]
        if word == "q3":
            await answering(b"<html>busy</html>", status="500 Error")(path, writer)
        elif word == "q4":
            await answering(b'{"data":[{}]}', "application/json")(path, writer)
        elif word == "q5":
            await answering(b"not json", "text/plain")(path, writer)
        else:
            await original(path, writer)

    site.web.fallback = partly
    manifest = crawl.run(experiment(), {})
    counts = manifest.counts
    assert (counts["queries_failed"], counts["queries_without_results"], counts["results"]) == (2, 1, 200 - 15)
    site.web.fallback = original
    site.requested()
    retried = crawl.run(experiment(previous=manifest.uri, retry_failed=True), {})
    assert retried.counts["results"] == 200 - 5
    assert site.requested()["search"] == 4


def test_a_list_of_urls(site: Site, experiment, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "lists"
    folder.mkdir()
    urls = [f"http://{HOST}/{number}.jpg" for number in range(PICTURES)]
    captions = [f"说明{number}" for number in range(PICTURES)]
    pq.write_table(pa.table({"link": urls[:70], "alt": captions[:70]}), folder / "a.parquet")
    lines = ["link,alt", *(f'{u},"{c}, 又"' for u, c in zip(urls[50:], captions[50:], strict=True))]
    (folder / "b.csv").write_text("\n".join(lines))
    settings = {"engine": "urls", "endpoint": storage.from_path(folder), "url_column": "link", "caption_column": "alt"}
    manifest = crawl.run(experiment(**settings), {})
    assert places.finished("crawl", experiment(**settings), {}) == manifest
    monkeypatch.setattr(places, "_MOST_BYTES", 10)
    assert places.finished("crawl", experiment(**settings), {}) is None, "a long list is its job's to read"
    captioned = {row["url"]: row["caption"] for row in rows(manifest)}
    assert captioned == {u: c if n < 70 else f"{c}, 又" for n, (u, c) in enumerate(zip(urls, captions, strict=True))}
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    site.requested()
    again = crawl.run(experiment(**(settings | {"endpoint": storage.from_path(moved)})), {})
    assert again.digest == manifest.digest, "what the list says decides, not where it lies"
    assert not site.requested()


def test_a_hostile_answer_is_its_own_urls_error_and_not_the_runs(
    site: Site, experiment, tmp_path: Path, monkeypatch
) -> None:
    """Sides and a status that no row can hold, EXIF data that no reader understands, and something behind a picture."""
    small = Image.open(io.BytesIO(jpeg(0))).resize((250, 220))
    stream = io.BytesIO()
    small.save(stream, "JPEG", exif=b"Exif\0\0x" + bytes(30), dpi=(72, 72))
    kept = stream.getvalue()
    png = (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\x80\0\0\0" * 2).ljust(133, b"\0")
    bmp = (b"BM" + struct.pack("<IIIIii", 133, 0, 54, 40, 300, -(2**31))).ljust(133, b"\0")
    answers = {
        "png": (answering(png, "image/png"), "corrupt"),
        "bmp": (answering(bmp, "image/bmp"), "corrupt"),
        "status": (raw(b"HTTP/1.1 99999999999 OK\r\nContent-Length: 0\r\n\r\n"), "connection_error"),
        "exif": (answering(kept), "success"),
        "behind": (answering(kept + b"SECRET" * 100_000), "success"),
    }
    for name, (handler, _) in answers.items():
        site.web.handlers[f"/{name}"] = handler
    urls = [f"http://{HOST}/{name}" for name in answers] + [f"http://{HOST}/{number}.jpg" for number in range(1, 9)]
    listed = tmp_path / "list.csv"
    listed.write_text("url,caption\n" + "".join(f"{url},说明\n" for url in urls), encoding="utf-8")
    manifest = crawl.run(experiment(engine="urls", endpoint=storage.from_path(listed)), {})
    statuses = {row["url"].rpartition("/")[2]: row["status"] for row in rows(manifest)}
    assert {name: statuses[name] for name in answers} == {name: status for name, (_, status) in answers.items()}
    assert manifest.counts["success"] == 2 + 8
    for uri in manifest.part_uris("parts/", ".tar"):
        assert b"SECRET" not in storage.read_bytes(uri)
        for key, picture in shards.pictures(uri):
            assert images.decode(picture, key).size[1] <= 256


def test_nothing_found_is_a_failure(site: Site, experiment) -> None:
    async def empty(path: str, writer: Any) -> None:
        await answering(b'{"data":[{}]}', "application/json")(path, writer)

    answer, site.web.fallback = site.web.fallback, empty
    for _ in range(2):
        with pytest.raises(CrawlFailedError, match="3 searches gave no result"):
            crawl.run(experiment(range(3)), {})
        assert site.requested()["search"] == 3, "it is tried again"
    site.web.fallback = answer
    assert crawl.run(experiment(range(3)), {}).counts["urls"] == 11


def test_a_crawl_of_which_everything_failed_is_no_crawl(site: Site, experiment, tmp_path: Path, monkeypatch) -> None:
    """The name does not resolve; once it does, the same command fetches what it did not have."""
    urls = [f"http://later.test/{number}.jpg" for number in range(0, 100)]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["url,caption", *(f"{url},说明" for url in urls)]))
    settings = {"engine": "urls", "endpoint": storage.from_path(listed)}
    for _ in range(2):
        with pytest.raises(CrawlFailedError, match=r"100 of 100 URLs .*dns_error 100.*later\.test/.*Run again"):
            crawl.run(experiment(**settings), {})
    monkeypatch.setenv(CONNECT_TO, f"later.test=127.0.0.1:{site.web.port}")
    site.requested()
    manifest = crawl.run(experiment(**settings), {})
    assert manifest.counts["success"] == 90
    assert manifest.counts["dns_error"] == 0
    assert site.requested() == {"picture": 100}
    again = crawl.run(experiment(**settings), {})
    assert again.digest == manifest.digest, "a crawl that has finished is found again"
    assert not site.requested()
    assert len(rows(again)) == 100


def test_what_was_stored_before_an_outage_is_kept(site: Site, experiment) -> None:
    answer = site.web.fallback
    broken: set[str] = set()

    async def outage(path: str, writer: Any) -> None:
        number = int(path.strip("/").removesuffix(".jpg")) if path.endswith(".jpg") else 0
        if number >= 40:
            broken.add(path)
            await answering(b"", status="503 Unavailable")(path, writer)
        else:
            await answer(path, writer)

    site.web.fallback = outage
    with pytest.raises(CrawlFailedError, match=r"80 of 120 URLs .*http_error 84.*503") as raised:
        crawl.run(experiment(), {})
    assert "the 36 pictures that are stored are kept" in str(raised.value)
    site.web.fallback = answer
    site.requested()
    manifest = crawl.run(experiment(), {})
    missing_before = {f"/{number}.jpg" for number in site.missing if number < 40}
    assert site.requested() == {"picture": len(broken | missing_before)}, "searches and pictures are taken over"
    assert manifest.counts["success"] == PICTURES - len(site.missing)
    whole = crawl.run(experiment(name="whole"), {})
    assert rows(manifest) == rows(whole)
    tars = [{k: v for k, v in digests(m).items() if k.startswith("parts/")} for m in (manifest, whole)]
    assert tars[0] == tars[1], "as if nothing had failed"


def test_a_looser_limit_accepts_what_a_failed_crawl_has(site: Site, experiment) -> None:
    answer = site.web.fallback

    async def outage(path: str, writer: Any) -> None:
        if path.endswith("1.jpg") or "acjson" in path:
            await answer(path, writer)
        else:
            await answering(b"", status="503 Unavailable")(path, writer)

    site.web.fallback = outage
    with pytest.raises(CrawlFailedError, match=r"raise crawl\.max_transient_share"):
        crawl.run(experiment(), {})
    site.requested()
    manifest = crawl.run(experiment(max_transient_share=0.95), {})
    assert not site.requested()
    assert manifest.counts["success"] == 12
    assert all(storage.exists(storage.join(manifest.uri, part.path)) for part in manifest.parts)


def test_what_nothing_can_mend_is_not_tried_again(site: Site, experiment) -> None:
    site.missing.clear()
    for _ in range(2):
        with pytest.raises(CrawlFailedError, match="stored no picture: 120 URLs ended as too_small 120"):
            crawl.run(experiment(min_side=300), {})
    assert site.requested()["picture"] == 120


def test_failed_searches_are_a_failure_and_tried_again(site: Site, experiment) -> None:
    answer = site.web.fallback

    async def no_engine(path: str, writer: Any) -> None:
        word = parse_qs(urlsplit(path).query).get("word", ["q0"])[0]
        if int(word[1:]) >= 10:
            await answering(b'{"data":' + b"[" * 100_000, "application/json")(path, writer)
        else:
            await answer(path, writer)

    site.web.fallback = no_engine
    with pytest.raises(CrawlFailedError, match=r"30 of 40 searches failed.*nested too deep"):
        crawl.run(experiment(), {})
    site.web.fallback = answer
    site.requested()
    manifest = crawl.run(experiment(), {})
    assert manifest.counts["results"] == 200
    assert site.requested()["search"] == 2 * 30


def test_a_slow_host_costs_no_more_than_its_share_and_is_reported(site: Site, experiment, monkeypatch) -> None:
    """One host of two asks for a second between requests: over all parts and tasks, it gets three seconds of each."""
    monkeypatch.setenv(CONNECT_TO, f"{HOST}=127.0.0.1:{site.web.port},slow.test=127.0.0.1:{site.web.port}")
    answer = site.web.fallback

    async def two_hosts(path: str, writer: Any) -> None:
        if path == "/robots.txt":
            slow = site.web.headers[path]["host"].startswith("slow")
            body = b"User-agent: *\nCrawl-delay: 1" if slow else b""
            await answering(body, "text/plain")(path, writer)
        elif "acjson" in path and parse_qs(urlsplit(path).query)["pn"] == ["0"]:
            number = int(parse_qs(urlsplit(path).query)["word"][0][1:])
            found = [{"objURL": f"http://{host}/{number}.jpg"} for host in (HOST, "slow.test")]
            await answering(json.dumps({"data": found}).encode(), "application/json")(path, writer)
        else:
            await answer(path, writer)

    site.missing.clear()
    del site.web.handlers["/robots.txt"]
    site.web.fallback = two_hosts
    started = time.monotonic()
    polite = {"per_host_concurrency": 32, "max_host_seconds": 3.0}
    manifest = crawl.run(experiment(range(100), name="slow", part_size=20, politeness=polite), {})
    assert time.monotonic() - started < 60, "100 seconds of delay"
    counts = manifest.counts
    assert counts["urls"] == 200
    assert counts["success"] + counts["host_too_slow"] == 200
    assert 100 < counts["success"] < 120
    told = storage.read_json(storage.join(manifest.uri, "slow_hosts.json"))
    assert list(told) == ["slow.test"]
    assert told["slow.test"] >= 3.0


DRIVER = """
import sys, ray
ray.init(address=sys.argv[1], configure_logging=False, log_to_driver=False)
from ray_jobs import crawl
from wukong.config import documents
from wukong.store import storage
crawl.run(documents.parse(storage.read_json(sys.argv[2])), {})
"""


def kill_a_worker() -> bool:
    """Kill a process of this test's Ray while it runs a task of the crawl."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(
                ("ray::_download", "ray::_search", "ray::_plan")
            ):
                process.kill()
                return True
        except psutil.Error:
            continue
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("times", "drivers", "workers"), [(4, 2, 1), pytest.param(10, 5, 2, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_ends_with_the_same_shards(
    site: Site, experiment: Callable[..., Experiment], tmp_path: Path, times: int, drivers: int, workers: int
) -> None:
    whole = crawl.run(experiment(range(120), part_size=5), {})
    killed = experiment(range(120), name="killed", part_size=5)
    stored = tmp_path / "experiment.json"
    stored.write_text(killed.model_dump_json())
    site.slowness = 0.15
    rng = random.Random(7)
    address = ray.get_runtime_context().gcs_address
    deaths = Counter[str]()
    for number in range(times):
        site.requested()
        driver = subprocess.Popen([sys.executable, "-c", DRIVER, address, storage.from_path(stored)])
        while not site.web.requests and driver.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.4))
        if number % 2:
            deaths["worker"] += kill_a_worker()
            time.sleep(rng.uniform(0.0, 0.4))
        deaths["driver"] += driver.poll() is None
        driver.kill()
        driver.wait()
    assert deaths["driver"] >= drivers
    assert deaths["worker"] >= workers
    site.slowness = 0.0
    ended = crawl.run(killed, {})
    assert digests(ended) == digests(whole)
    assert ended.counts == whole.counts
    keys = [row["key"] for row in rows(ended)]
    assert len(keys) == len(set(keys)) == whole.counts["urls"]
    assert set(keys) == {key_of(url) for url in expected_urls(range(120))}


def test_tasks_together_ask_a_host_no_more_than_the_limit(site: Site, experiment: Callable[..., Experiment]) -> None:
    site.slowness = 0.02
    manifest = crawl.run(experiment(name="polite", politeness={"per_host_concurrency": 1}), {})
    assert manifest.counts["success"] == PICTURES - len(site.missing)
    assert ray.cluster_resources()["CPU"] > 1
    assert site.web.most_open == 1


def test_a_part_that_waits_for_a_slow_host_does_not_hold_up_the_next(
    site: Site, experiment: Callable[..., Experiment]
) -> None:
    """A picture of the first part is sent only once one of the second part was asked for."""
    urls = sorted(expected_urls(range(40)), key=key_of)
    slow, second_part = urls[0], urls[24:48]  # five equal parts
    answer = site.web.fallback
    assert answer is not None

    async def after_the_next_part(path: str, writer: Any) -> None:
        while not any(site.web.requests[urlsplit(url).path] for url in second_part):
            await asyncio.sleep(0.01)
        await answer(path, writer)

    site.missing.clear()
    site.web.handlers[urlsplit(slow).path] = after_the_next_part
    manifest = crawl.run(experiment(name="slow", concurrency=64, politeness={"per_host_concurrency": 128}), {})
    assert manifest.counts["success"] == len(urls)


def test_parts_that_wait_for_slow_hosts_do_not_hold_up_the_others(
    site: Site, experiment: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow hosts say "later" until every picture of the others was asked for, and they are in the first parts."""
    urls = sorted((f"http://{HOST}/{number}.jpg" for number in range(PICTURES)), key=key_of)
    slow = urls[:72:6]  # one in each of the first 12 parts of 6 URLs, more than the tasks have in hand at a time
    numbers = {urlsplit(url).path for url in slow}
    answer = site.web.fallback
    assert answer is not None
    site.missing.clear()
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["url,caption", *(f"{url},说明" for url in urls)]))
    settings = {
        "engine": "urls",
        "endpoint": storage.from_path(listed),
        "part_size": 6,
        "max_seconds": 2.0,
        "retries": 30,
        "politeness": {"per_host_concurrency": 64},
    }
    whole = crawl.run(experiment(name="whole", **settings), {})

    async def later(path: str, writer: Any) -> None:
        quick = {urlsplit(url).path for url in urls} - numbers
        if path in numbers and not quick <= {*site.web.requests}:
            await answering(b"", status="408 Request Timeout", Retry_After="1")(path, writer)
        else:
            await answer(path, writer)

    site.requested()
    site.web.fallback = later
    e = experiment(name="slow", **settings)
    manifest = crawl.run(e, {})
    assert digests(manifest) == digests(whole)
    assert manifest.counts == whole.counts
    asked = {path: count for path, count in site.web.requests.items() if path not in numbers | {"/robots.txt"}}
    assert set(asked.values()) == {1}, "what was stored is not asked for again"
    records = storage.list_names(storage.join(manifest.uri, "_parts"))
    begun = {name for name in records if name.startswith("slow-")}
    assert len(begun) > 4, "two tasks have two parts each in hand"
    storage.delete(storage.join(manifest.uri, "manifest.json"))  # as if the job had been killed before it
    for name in begun:
        storage.delete(storage.join(manifest.uri, f"_parts/{name.replace('slow', 'part')}"))
    site.requested()
    resumed = crawl.run(e, {})
    assert digests(resumed) == digests(whole)
    assert resumed.counts == whole.counts
    assert not site.requested(), "it goes on from what the parts that were put back had"


READERS = {"parts": read_pairs, "tars": lambda uri: list(shards.members(uri)), "search": storage.read_table}


@pytest.mark.parametrize("kind", ["manifest", "parts", "tars", "search", "plan"])
def test_a_damaged_file_of_a_crawl_is_made_again_and_nothing_else_is_asked_for(
    site: Site, experiment, kind: str
) -> None:
    e = experiment(part_size=5)
    first = crawl.run(e, {})
    manifest = storage.join(first.uri, "manifest.json")
    uris = {
        "manifest": manifest,
        "parts": first.part_uris("parts/", ".parquet")[1],
        "tars": first.part_uris("parts/", ".tar")[1],
        "search": first.part_uris("search/", ".parquet")[0],
        "plan": storage.list_files(storage.join(first.uri, "plan"), ".parquet")[0],
    }
    cut(uris[kind])
    if kind == "plan":  # nobody reads it of a finished crawl
        storage.delete(uris[kind])
        storage.delete(manifest)
    else:
        with pytest.raises(WukongError) as refused:
            crawl.run(e, {}) if kind == "manifest" else READERS[kind](uris[kind])
        failed = storage.join(first.uri, "failed.json")
        assert obey(refused.value) == ([manifest] if kind == "manifest" else [uris[kind], manifest, failed])
    site.requested()
    again = crawl.run(e, {})
    assert digests(again) == digests(first)
    assert all(describe(again.uri, part.path, part.rows) == part for part in again.parts), "each file is there again"
    asked = site.requested()
    assert asked["picture"] <= (5 if kind in ("parts", "tars") else 0)
    assert bool(asked["search"]) == (kind == "search")


def attempted(site: Site, e: Experiment) -> Manifest:
    """A crawl that failed because of one picture, which is there again."""
    site.web.handlers["/3.jpg"] = answering(b"", status="503 Service Unavailable")
    with pytest.raises(CrawlFailedError):
        crawl.run(e, {})
    del site.web.handlers["/3.jpg"]
    (failed,) = storage.list_files(storage.join(e.root, "crawl"), "/failed.json")
    return load(failed)


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        *(pytest.param(prefix, "", marks=pytest.mark.long) for prefix in ("queries", "index")),
        *(("search/", ""), ("parts/", ".tar"), pytest.param("parts/", ".parquet", marks=pytest.mark.long)),
    ],
)
def test_a_damaged_file_of_a_failed_attempt_is_made_again(site: Site, experiment, prefix: str, suffix: str) -> None:
    e = experiment(part_size=5, max_transient_share=0.0)
    failed = attempted(site, e)
    damaged = failed.part_uris(prefix, suffix)[0]
    cut(damaged)
    with pytest.raises(WukongError) as refused:
        crawl.run(e, {})
    manifests = [storage.join(failed.uri, name) for name in ("manifest.json", "failed.json")]
    assert obey(refused.value) == [damaged, *manifests]
    with pytest.raises(CrawlFailedError):  # as the attempt did; the next one goes on from it
        crawl.run(e, {})
    assert rows(crawl.run(e, {})) == rows(crawl.run(experiment(name="whole", part_size=5), {}))


def test_a_damaged_part_of_a_failed_attempt_that_is_enough_now_is_made_again(site: Site, experiment) -> None:
    failed = attempted(site, experiment(part_size=5, max_transient_share=0.0))
    enough = experiment(part_size=5, max_transient_share=0.9)
    assert crawl.run(enough, {}).uri == failed.uri
    is_made_again(failed.part_uris("parts/", ".tar")[-1], lambda: read_whole(crawl.run(enough, {})), [cut])


def read_whole(made: Manifest) -> Manifest:
    for part in made.parts:
        storage.read_bytes(*made.file(part.path))
    return made


def test_a_damaged_part_of_a_crawl_after_a_failed_attempt_is_made_again(site: Site, experiment) -> None:
    e = experiment(part_size=5, max_transient_share=0.0)
    attempted(site, e)
    first = crawl.run(e, {})
    for kind, uri in (("tars", first.part_uris("parts/", ".tar")[1]), ("search", first.part_uris("search/")[0])):
        cut(uri)
        with pytest.raises(WukongError) as refused:
            READERS[kind](uri)
        obey(refused.value)
        again = crawl.run(e, {})
        assert rows(again) == rows(first)
        assert {path: d for path, d in digests(again).items() if path.startswith("parts/")} == {
            path: d for path, d in digests(first).items() if path.startswith("parts/")
        }


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_an_altered_part_of_an_earlier_crawl_is_refused(site: Site, experiment, suffix: str) -> None:
    first = crawl.run(experiment(name="first", part_size=5), {})
    altered = first.part_uris("parts/", suffix)[0]
    flipped(altered)
    with pytest.raises(WukongError, match=f"{altered} .*delete it, and {first.uri}/manifest.json") as refused:
        crawl.run(experiment(name="next", part_size=7, previous=first.uri), {})
    obey(refused.value)
    again = crawl.run(experiment(name="first", part_size=5), {})
    assert digests(again) == digests(first)
    assert crawl.run(experiment(name="next", part_size=7, previous=first.uri), {}).counts["requested"] == 0


def take_down(e: Experiment, tmp_path: Path, numbers: list[int]) -> dict[str, Any]:
    listed = tmp_path / "requests.txt"
    listed.write_text("\n".join(f"http://{HOST}/{number}.jpg" for number in numbers))
    when = datetime(2026, 11, 28, tzinfo=UTC)
    planned = takedown_plan.plan(e.root, storage.from_path(listed), "case 1", when)
    assert len(planned.keys) == len(numbers)
    return takedown.carry_out(e.root, planned)


def traces(e: Experiment, numbers: list[int]) -> set[tuple[str, str]]:
    words = {url: url for url in (f"http://{HOST}/{number}.jpg" for number in numbers)}
    words |= {f"key of {url}": key_of(url) for url in list(words)}
    files = [uri for uri in storage.list_files(e.root) if "/takedowns/" not in uri]
    return found(((uri, storage.read_bytes(uri)) for uri in files), words)


def first_of_a_part(manifest: Manifest) -> int:
    """The number of a picture whose key the index of the parts names."""
    index = storage.read_table(storage.join(manifest.uri, "index.parquet")).to_pydict()
    return next(n for n in range(PICTURES) if key_of(f"http://{HOST}/{n}.jpg") in index["first_key"])


def test_a_takedown_leaves_of_a_killed_crawl_what_it_leaves_of_a_whole_one(site: Site, experiment, tmp_path) -> None:
    whole = crawl.run(experiment(name="whole", part_size=5), {})
    e = experiment(name="killed", part_size=5)
    killed = crawl.run(e, {})
    gone = [11, 20, 47, first_of_a_part(whole)]  # 20 is missing on the site, and an example in a marker
    parts = [part.path.removesuffix(".tar") for part in killed.parts if part.path.endswith(".tar")]
    for name in ("manifest.json", "index.parquet", "queries.parquet", "slow_hosts.json", f"{parts[1]}.parquet"):
        storage.delete(storage.join(killed.uri, name))  # the tar stays, as of a task that is killed between the two
    for part in parts[1::2]:
        storage.delete(storage.join(killed.uri, f"_parts/part-{part[-5:]}.json"))
    assert len(traces(e, gone)) > 8
    take_down(e, tmp_path, gone)
    assert traces(e, gone) == set()
    site.requested()
    resumed = crawl.run(e, {})
    assert 0 < site.requested()["picture"] < PICTURES * 0.7, "what was complete is kept"
    take_down(experiment(name="whole", part_size=5), tmp_path, gone)
    expected = places.finished("crawl", experiment(name="whole", part_size=5), {})
    assert expected is not None
    assert rows(resumed) == rows(expected)
    tars = [
        {path: digest for path, digest in digests(each).items() if path.endswith(".tar")}
        for each in (resumed, expected)
    ]
    assert tars[0] == tars[1]
    assert {**resumed.counts, "requested": 0} == {**expected.counts, "requested": 0}


def test_a_takedown_from_a_failed_attempt_keeps_what_came_after_it(site: Site, experiment, tmp_path: Path) -> None:
    everything, site.missing = site.missing, set(range(1, PICTURES))
    e = experiment(part_size=5, max_transient_share=0.0)
    site.web.handlers["/3.jpg"] = answering(b"", status="503 Service Unavailable")
    with pytest.raises(CrawlFailedError):
        crawl.run(e, {})
    gone = [0, 7]
    take_down(e, tmp_path, gone)
    assert traces(e, gone) == set()
    site.missing = everything
    del site.web.handlers["/3.jpg"]
    finished = crawl.run(e, {})
    assert finished.counts["success"] > 0
    assert not {key_of(f"http://{HOST}/{number}.jpg") for number in gone} & {row["key"] for row in rows(finished)}
    take_down(e, tmp_path, [11])
    again = places.finished("crawl", e, {})
    assert again is not None and again.uri == finished.uri
