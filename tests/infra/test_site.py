import asyncio
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infra import corpus
from infra.corpus import catalogue
from infra.site import acjson, noise
from infra.site.noise import Kind

WORDS = ("猫", "狗", "红苹果", "大象", "火车", "自行车", "太阳", "下雨", "书本", "电脑")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> corpus.Corpus:
    """300 images of random noise, a third from each of three sources, in a catalogue like the real one."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    entries = []
    for index in range(300):
        source = ("noto", "fluent", "iconpark")[index % 3]
        suffix, mime = (("webp", "image/webp"), ("png", "image/png"), ("jpg", "image/jpeg"))[index % 3]
        file = f"{index}.{suffix}"
        Image.fromarray(random.integers(0, 255, (24, 24, 3), np.uint8)).resize((240, 256)).save(folder / file)
        title = f"{WORDS[index % 10]}{WORDS[index // 10 % 10]}" if index % 7 else WORDS[index % 10]
        entry = corpus.Entry(source, f"/{source}/{file}", file, title, ("东西", f"第{index}个"), "MIT", 240, 256, mime)
        entries.append(entry)
    return corpus.load(catalogue._write(entries, folder))


@dataclass
class Server:
    url: str

    def get(self, path: str, host: str = "corpus.wukong.test") -> tuple[int, str, bytes]:
        request = urllib.request.Request(self.url + quote(path, safe="/?&=%"), headers={"Host": host})
        for _ in range(2):
            try:
                with urllib.request.urlopen(request, timeout=120) as response:
                    return response.status, response.headers["Content-Type"], response.read()
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    return error.code, error.headers["Content-Type"], error.read()
                assert error.headers["Retry-After"] == "1"
        raise AssertionError("503 twice")

    def search(self, word: str, pn: int = 0, rn: int = 30) -> dict[str, Any]:
        fields = f"tn=resultjson_com&ipn=rj&word={word}&queryWord={word}&pn={pn}&rn={rn}&ie=utf-8&oe=utf-8"
        status, _, body = self.get(f"/search/acjson?{fields}")
        assert status == 200
        return json.loads(body.decode().replace("\\'", "'"))


@pytest.fixture(scope="module")
def site(small: corpus.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port_file = tmp_path_factory.mktemp("site") / "port"
    command = [sys.executable, "-m", "infra.site", "--catalogue", small.catalogue, "--port-file", port_file]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "serving http://corpus.wukong.test" in process.stdout.readline()
    yield Server(f"http://127.0.0.1:{int(port_file.read_text())}")
    process.terminate()
    assert process.wait(120) == 0


def decode(coded: str) -> str:
    """Baidu's code, applied letter by letter as described: groups first, then the table, each once."""
    table = dict(zip("0123456789abcdefghijklmnopqrstuvw", "7dgjmoru140852vsnkheb963wtqplifca", strict=True))
    groups = {"_z2C$q": ":", "_z&e3B": ".", "AzdH3F": "/"}
    plain = ""
    while coded:
        group = next((group for group in groups if coded.startswith(group)), "")
        plain += groups[group] if group else table.get(coded[0], coded[0])
        coded = coded[len(group) or 1 :]
    return plain


def test_object_urls_are_encoded_like_baidus() -> None:
    # The substitution, computed by hand from the table above.
    assert acjson.encode_url("http://a.b/1.jpg") == "ippr_z2C$qAzdH3FAzdH3Fw_z&e3BkAzdH3F8_z&e3B3r2"


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyzABCXYZ0123456789:/.-_~%?=&", max_size=60))
def test_coded_urls_decode(url: str) -> None:
    assert decode(acjson.encode_url(url)) == url


def test_an_answer_has_baidus_format(site: Server) -> None:
    answer = site.search("猫")
    assert answer["data"][-1] == {}
    assert len(answer["data"]) == 31
    assert answer["listNum"] > 30
    for item in answer["data"][:-1]:
        url = decode(item["objURL"])
        assert url.startswith("http://corpus.wukong.test/")
        assert item["replaceUrl"][0]["ObjURL"] == url
        assert decode(item["fromURL"]).startswith("http://corpus.wukong.test/page/")
        assert item["fromPageTitle"].replace("<strong>", "").replace("</strong>", "") == item["fromPageTitleEnc"]
        assert ("<strong>猫</strong>" in item["fromPageTitle"]) == ("猫" in item["fromPageTitleEnc"])
        assert {"thumbURL", "middleURL", "hoverURL", "width", "height", "type"} <= set(item)
    assert answer["data"][0]["fromPageTitleEnc"] == "猫"


def test_pages_continue_and_repeat_after_a_thousand(site: Server) -> None:
    def urls(pn: int) -> list[str]:
        return [item["objURL"] for item in site.search("东西", pn)["data"][:-1]]

    pages = [urls(pn) for pn in range(0, 1000, 30)]
    found = [url for page in pages for url in page]
    assert len(found) == len(set(found)) == site.search("东西")["listNum"]
    assert urls(0) == pages[0]
    assert urls(1000) == pages[0]
    assert site.search("没有这个词")["data"] == [{}]
    assert site.search("")["data"] == [{}]


def test_single_quotes_are_escaped_as_baidu_does() -> None:
    found = acjson.ImageResult("http://a/b.png", "http://a/t", "http://a/p", "World's <best>", 1, 2, "png")
    text = acjson.answer("World's", [found], 1, 0)
    assert "World\\'s" in text
    with pytest.raises(ValueError, match="escape"):
        json.loads(text)
    item = json.loads(text.replace("\\'", "'"))["data"][0]
    assert item["fromPageTitle"] == "<strong>World's</strong> &lt;best&gt;"


def test_the_crawlers_own_parser_reads_the_answers(site: Server) -> None:
    from wukong.crawl.engines.baidu import Baidu

    engine = Baidu("http://corpus.wukong.test/search/acjson")
    path = engine.page_url("猫", 0).removeprefix("http://corpus.wukong.test")
    with urllib.request.urlopen(site.url + path, timeout=120) as response:
        results = engine.parse(response.read())
    assert [result.url for result in results] == [decode(item["objURL"]) for item in site.search("猫")["data"][:-1]]


def test_every_url_gives_the_right_kind_of_answer(small: corpus.Corpus, site: Server) -> None:
    listings = noise.listings(small)
    assert len({listing.path for listing in listings}) == len(listings)
    for listing in listings:
        status, mime, body = site.get(listing.path)
        if listing.kind is Kind.MISSING:
            assert status == 404
            continue
        assert status == 200
        if listing.kind is Kind.HTML:
            assert body.startswith(b"<!DOCTYPE html>")
            assert listing.path.endswith(".jpg")
            continue
        image = Image.open(io.BytesIO(body))
        assert Image.MIME[image.format or ""] == mime
        if listing.kind is Kind.TRUNCATED:
            with pytest.raises(OSError, match="truncated"):
                image.load()
            continue
        image.load()
        if listing.kind is Kind.THUMBNAIL:
            assert max(image.size) < 200
        elif listing.kind is Kind.BANNER:
            assert image.width > 3 * image.height
            assert image.height > 200
        else:
            assert body == small.file(listing.entry).read_bytes()


def test_noise_comes_in_the_stated_proportions() -> None:
    entries = [
        corpus.Entry("noto", f"/noto/{index}.png", "f", f"词{index}", (), "MIT", 300, 300, "image/png")
        for index in range(7_000)
    ]
    made = noise.noise(entries)
    assert len(made) / (len(made) + len(entries)) == pytest.approx(0.12, abs=0.0005)
    assert sum(noise.PERCENT.values()) == 100
    counts = Counter(listing.kind for listing in made)
    for kind, percent in noise.PERCENT.items():
        assert counts[kind] / len(made) * 100 == pytest.approx(percent, abs=0.2), kind
    titles = Counter(listing.title for listing in made if listing.kind is Kind.BOILERPLATE)
    assert set(titles) == {"查看源网页", "展开全文", "摄影部落"}
    assert min(titles.values()) > 10
    by_kind = {kind: [listing.title for listing in made if listing.kind is kind] for kind in Kind}
    assert all(len(re.findall(r"[\u4e00-\u9fff]", title)) > 31 for title in by_kind[Kind.LONG])
    assert not any(re.search(r"[\u4e00-\u9fff]", title) for title in by_kind[Kind.FOREIGN])
    assert {"000.jpg", "IMG_0001.JPG", "DSC00002"} <= set(by_kind[Kind.FILE_NAME])
    assert sum(map(noise.answers_503_first, noise.listings(corpus.Corpus(Path("c"), tuple(entries))))) in range(20, 60)


def test_noise_is_made_only_from_images_for_training(small: corpus.Corpus) -> None:
    made = noise.noise(small.entries)
    assert {listing.entry.source for listing in made} <= {"noto", "iconpark"}
    only_held_out = [entry for entry in small.entries if entry.source == "fluent"]
    assert len(noise.noise(only_held_out)) > 0


def test_claimed_sizes_are_sometimes_wrong(small: corpus.Corpus) -> None:
    listings = [listing for listing in noise.listings(small) if listing.kind is None]
    wrong = sum(noise.shown_size(listing) != (240, 256) for listing in listings)
    assert 0 < wrong < len(listings) / 4


def test_robots_thumbnails_and_unknown_paths(small: corpus.Corpus, site: Server) -> None:
    from urllib.robotparser import RobotFileParser

    robots = RobotFileParser()
    robots.parse(site.get("/robots.txt")[2].decode().splitlines())
    for listing in noise.listings(small):
        assert robots.can_fetch("wukong", listing.path) == (listing.kind is not Kind.DISALLOWED)
    assert robots.can_fetch("wukong", "/search/acjson?word=x")
    thumb = site.search("猫")["data"][0]["thumbURL"].removeprefix("http://corpus.wukong.test")
    assert max(Image.open(io.BytesIO(site.get(thumb)[2])).size) == 180
    for path in ("/nothing.jpg", "/../../etc/passwd", "/thumb/nothing.jpg", "/"):
        assert site.get(path)[0] == 404
    assert site.get("/robots.txt", host="127.0.0.1:1")[0] == 200


def test_many_clients_at_once_get_equal_answers(site: Server) -> None:
    async def gather() -> set[bytes]:
        fields = "/search/acjson?word=东西&pn=0&rn=30"
        answers = await asyncio.gather(*(asyncio.to_thread(site.get, fields) for _ in range(32)))
        return {body for _, _, body in answers}

    assert len(asyncio.run(gather())) == 1


def test_a_site_that_cannot_start_says_why(small: corpus.Corpus, site: Server, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "infra.site", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    taken = run("--catalogue", small.catalogue, "--port", site.url.rpartition(":")[2])
    assert (taken.returncode, taken.stdout) == (1, "")
    assert "cannot listen" in taken.stderr
    assert "Address already in use" in taken.stderr
    missing = run("--catalogue", tmp_path / "none.parquet")
    assert missing.returncode == 1
    assert "Traceback" not in missing.stderr


@given(st.text(alphabet="猫狗红a \n\0", max_size=4))
def test_a_search_finds_all_listings_that_contain_the_word(word: str) -> None:
    from infra.site.search import Index

    titles = ("猫", "红猫", "狗", "A猫", "红", "狗狗红")
    keywords = (("红",), ("狗", "猫"), (), ("a 红",), ("狗红",), ("猫狗",))
    listings = [
        noise.Listing(f"/{number}", title, words, None)  # type: ignore[arg-type]
        for number, (title, words) in enumerate(zip(titles, keywords, strict=True))
    ]
    wanted = word.strip().lower()

    def rank(listing: noise.Listing) -> int | None:
        if wanted in listing.title.lower():
            return 0 if wanted == listing.title.lower() else 1
        return 2 if wanted in listing.keywords else 3 if any(wanted in text for text in listing.keywords) else None

    found = Index(listings).search(word)
    if "\n" not in wanted and "\0" not in wanted:
        expected = {listing.path for listing in listings if wanted and rank(listing) is not None}
        assert {listing.path for listing in found} == expected
        assert [rank(listing) for listing in found] == sorted(rank(listing) for listing in found)  # type: ignore[type-var]
