"""Parsing answers of search engines, in recorded formats, and lists of URLs."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wukong
from wukong.config.crawl import Crawl
from wukong.crawl.engine import EngineRefusedError, Result, clean
from wukong.crawl.engines.baidu import Baidu, decode_url
from wukong.crawl.engines.searxng import SearXNG
from wukong.crawl.url_list import list_files, read_list
from wukong.errors import DataError
from wukong.store import storage

BAIDU = Baidu("https://image.baidu.com/search/acjson")

# A shortened answer in the format of image.baidu.com: with an escaped quote, a tag, and an empty last item.
ACJSON = r"""{"queryEnc":"%E7%86%8A","listNum":1977,"bdFmtDispNum":"3","data":[
{"thumbURL":"https://img0.baidu.com/it/u=1,2&fm=253","middleURL":"https://img0.baidu.com/it/u=1,2&fm=253",
"hoverURL":"https://img0.baidu.com/it/u=1,2&fm=253","objURL":"OBJ",
"fromURL":"FROM","width":800,"height":600,"type":"jpg",
"fromPageTitle":"可爱的<strong>熊猫</strong>\'宝宝\' &amp; 妈妈","fromPageTitleEnc":"","replaceUrl":[{"ObjURL":"http://a.com/r.jpg"}]},
{"thumbURL":"https://img1.baidu.com/t","objURL":"","fromPageTitleEnc":"第二张	图","replaceUrl":[{"ObjURL":"http://b.com/r.jpg","FromURL":""}]},
{"thumbURL":"https://img2.baidu.com/t.jpg","fromPageTitle":null},
{"objURL":"javascript:alert(1)"},
{}]}"""


def encode_url(url: str) -> str:
    """The inverse of Baidu's substitution, written from its description."""
    plain, coded = "7dgjmoru140852vsnkheb963wtqplifca", "0123456789abcdefghijklmnopqrstuvw"
    letters = dict(zip(plain, coded, strict=True))
    groups = {":": "_z2C$q", ".": "_z&e3B", "/": "AzdH3F"}
    return "".join(groups.get(c) or letters.get(c, c) for c in url)


def test_baidu_results() -> None:
    picture, page = "https://pic.example.com/2024/panda_01.jpg", "http://www.example.com/panda"
    answer = ACJSON.replace("OBJ", encode_url(picture), 1).replace("FROM", encode_url(page), 1)
    assert BAIDU.parse(answer.encode()) == [
        Result(picture, "可爱的熊猫'宝宝' & 妈妈", page),
        Result("http://b.com/r.jpg", "第二张 图", None),
        Result("https://img2.baidu.com/t.jpg", "", None),
    ]


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789-_/.:?=&%", min_size=1, max_size=60))
def test_obj_urls_decode(path: str) -> None:
    url = "https://" + path
    assert decode_url(encode_url(url)) == url


def test_a_known_obj_url() -> None:
    assert encode_url("http://") == "ippr_z2C$qAzdH3FAzdH3F"
    assert decode_url("ippr_z2C$qAzdH3FAzdH3Fooo_z&e3Bkwt17_z&e3Bv54AzdH3F") == "http://www.baidu.com/"


def test_plain_obj_urls_are_not_changed() -> None:
    assert decode_url("http://a.com/7dg.jpg") == "http://a.com/7dg.jpg"


@pytest.mark.parametrize(
    "body",
    [b'{"antiFlag":1,"message":"Forbid spider access"}', "<html><title>百度安全验证</title>".encode()],
)
def test_baidu_refusals(body: bytes) -> None:
    with pytest.raises(EngineRefusedError):
        BAIDU.parse(body)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"data":null}', b'{"data":{"a":1}}'])
def test_invalid_answers_are_errors(body: bytes) -> None:
    with pytest.raises(ValueError):
        BAIDU.parse(body)
    with pytest.raises(ValueError):
        SearXNG("http://s/search").parse(body)


@pytest.mark.parametrize("number", ["9" * 5_000, "-" + "1" * 100_000, "1e999999"])
def test_a_number_of_thousands_of_digits_loses_no_result(number: str) -> None:
    body = f'{{"data": [{{"objURL": "http://a.test/1.jpg", "width": {number}}}], "listNum": {number}}}'
    assert [result.url for result in BAIDU.parse(body.encode())] == ["http://a.test/1.jpg"]
    body = f'{{"results": [{{"img_src": "http://a.test/1.jpg", "title": "a", "score": {number}}}]}}'
    assert [result.url for result in SearXNG("http://s/search").parse(body.encode())] == ["http://a.test/1.jpg"]


def test_escapes_are_read_in_order() -> None:
    body = rb"""{"data":[{"objURL":"http://a.com/1.jpg","fromPageTitle":"a\\'b\'c\"d\\\\\'e"}]}"""
    assert BAIDU.parse(body)[0].caption == "a\\'b'c\"d\\\\'e"


def test_bytes_that_are_not_utf8_and_lone_surrogates() -> None:
    body = b'{"data":[{"objURL":"http://a.com/1.jpg","fromPageTitle":"\xc3\x28 \\ud83d ok \x00"}]}'
    caption = BAIDU.parse(body)[0].caption
    assert caption.endswith("ok")
    caption.encode("utf-8")


def test_baidu_addresses() -> None:
    url = BAIDU.page_url("熊猫 & 猫", 3)
    fields = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    assert url.startswith("https://image.baidu.com/search/acjson?tn=resultjson_com&ipn=rj&")
    assert (fields["word"], fields["queryWord"], fields["pn"], fields["rn"]) == ("熊猫 & 猫", "熊猫 & 猫", "90", "30")


def test_searxng() -> None:
    engine = SearXNG("https://searx.example/search")
    fields = parse_qs(urlsplit(engine.page_url("熊猫", 0)).query)
    assert fields == {"q": ["熊猫"], "categories": ["images"], "format": ["json"], "pageno": ["1"]}
    answer = {
        "query": "熊猫",
        "results": [
            {"title": "一只 熊猫", "img_src": "https://a.com/1.jpg", "url": "https://a.com/p", "resolution": "1x1"},
            {"title": None, "img_src": "//b.com/2.jpg", "url": "https://b.com/p"},
            {"title": "没有图", "url": "https://c.com/p"},
            {"title": "空", "img_src": "", "url": "https://c.com/p"},
        ],
    }
    assert engine.parse(json.dumps(answer).encode()) == [
        Result("https://a.com/1.jpg", "一只 熊猫", "https://a.com/p"),
        Result("https://b.com/2.jpg", "", "https://b.com/p"),
    ]
    assert engine.parse(b'{"results": []}') == []


@given(st.text())
def test_clean_text_is_one_line_of_utf8(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert cleaned == clean(cleaned)
    assert not set(cleaned) & set("\n\r\t\x00")


ROWS = [("http://a.com/1.jpg", "一张图, 带逗号"), ("http://b.com/2.jpg", '有"引号"'), ("http://a.com/1.jpg", "又一次")]


def written(folder: Path, name: str, url: str = "url", caption: str = "caption") -> str:
    path = folder / name
    separator = "\t" if ".tsv" in name else ","
    quoted = "\n".join(separator.join('"' + f.replace('"', '""') + '"' for f in row) for row in [(url, caption), *ROWS])
    lines = "\n".join(json.dumps({url: u, caption: c, "extra": 1}, ensure_ascii=False) for u, c in ROWS)
    if name.endswith(".parquet"):
        columns = {"extra": [1, 2, 3], caption: [c for _, c in ROWS], url: [u for u, _ in ROWS]}
        pq.write_table(pa.table(columns), path)
    else:
        data = (lines if ".jsonl" in name else quoted).encode() + b"\n"
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return storage.from_path(path)


def crawl(**changes: str) -> Crawl:
    return Crawl(queries="", endpoint="", engine="urls", **changes)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.csv.gz", "a.tsv.gz", "a.jsonl.gz"])
def test_lists_in_every_format(tmp_path: Path, name: str) -> None:
    (table,) = read_list(
        written(tmp_path, name, "TEXT_URL", "alt"), 2, crawl(url_column="TEXT_URL", caption_column="alt")
    )
    rows = sorted(table.to_pylist(), key=lambda row: row["order"])
    assert [(row["url"], row["caption"]) for row in rows] == ROWS
    assert table["key"].to_pylist() == sorted(table["key"].to_pylist())
    first = read_list(written(tmp_path, name), 0, crawl())
    assert max(next(first)["order"].to_pylist()) < rows[0]["order"], "files come in their order"


def test_the_released_wukong_format(tmp_path: Path) -> None:
    """CSV files with the columns url and caption; captions may contain commas and line breaks."""
    (tmp_path / "wukong_100m_0.csv").write_text('url,caption\nhttp://a.com/1.jpg,图\nhttp://a.com/2.jpg,"两\n行"\n')
    (table,) = read_list(storage.from_path(tmp_path / "wukong_100m_0.csv"), 0, crawl())
    assert sorted(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)) == [
        ("http://a.com/1.jpg", "图"),
        ("http://a.com/2.jpg", "两 行"),
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_missing_column_is_explained(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="url_column"):
        list(read_list(written(tmp_path, name, "link"), 0, crawl()))


def test_files_of_a_list(tmp_path: Path) -> None:
    for name in ("b.csv", "a.parquet", "readme.md"):
        (tmp_path / name).write_bytes(b"")
    assert [uri.rpartition("/")[2] for uri in list_files(storage.from_path(tmp_path))] == ["a.parquet", "b.csv"]
    with pytest.raises(DataError, match="no URL list"):
        list_files(storage.from_path(tmp_path / "absent"))


TOY = """
from wukong.crawl.engine import Result
from wukong.crawl.source import Searched


class Toy:
    name = "toy"

    def __init__(self, endpoint):
        self._endpoint = endpoint

    def page_url(self, query, page):
        return f"{self._endpoint}?q={query}&page={page}"

    def parse(self, body):
        return [Result(line, "", None) for line in body.decode().split()]


SOURCE = Searched(name=Toy.name, engine=Toy)
"""

USE_TOY = """
from wukong.config import documents
from wukong.errors import ConfigError

crawl = {"engine": "toy", "endpoint": "https://toy.test/search", "queries": "file:///q.txt"}
settings = documents.parse({"name": "x", "crawl": crawl}).crawl
print(settings.source.engine(settings.endpoint).page_url("cat", 2))
for wrong in ({"engine": "none"}, {"queries": ""}):
    try:
        documents.parse({"name": "x", "crawl": {**crawl, **wrong}})
    except ConfigError as error:
        print(error)
"""


def test_an_engine_is_one_file(tmp_path: Path) -> None:
    shutil.copytree(Path(wukong.__file__).parent, tmp_path / "wukong", ignore=shutil.ignore_patterns("names", "*.pyc"))
    engines = tmp_path / "wukong" / "crawl" / "engines"
    (engines / "toy.py").write_text(TOY)
    command = [sys.executable, "-c", USE_TOY]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("https://toy.test/search?q=cat&page=2\n")
    assert "'baidu', 'searxng', 'toy', 'urls', 'files' or 'published_set'" in done.stdout
    assert "crawl.engine 'toy' is searched by words" in done.stdout
    (engines / "toy.py").write_text(TOY.replace('name = "toy"', 'name = "play"'))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "engines/toy.py assigns no Searched or Listed with the name 'toy' to SOURCE" in done.stderr
