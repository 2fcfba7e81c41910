"""Lists of URLs with rows that cannot be used: each is a row with its reason, and the others are read."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.config.crawl import Crawl
from wukong.crawl.status import FetchError, Status
from wukong.crawl.url import normalise
from wukong.crawl.url_list import read_list
from wukong.errors import DataError
from wukong.store import storage

GOOD = ["http://a.test/1.jpg", "http://b.test/2.jpg"]


def read(file: Path, endpoint: Path | None = None) -> list[tuple[str, str]]:
    config = Crawl(engine="urls", endpoint=storage.from_path(endpoint or file))
    rows = [row for table in read_list(storage.from_path(file), 0, config) for row in table.to_pylist()]
    return [(row["url"], row["caption"]) for row in sorted(rows, key=lambda row: row["order"])]


def reason(url: str) -> str:
    with pytest.raises(FetchError) as raised:
        normalise(url)
    assert raised.value.status is Status.INVALID_URL
    return str(raised.value)


def csv_of(*rows: bytes) -> bytes:
    return b"url,caption\n" + b"".join(row + b"\n" for row in rows)


CSV = {
    "not UTF-8": (b"http://x.test/\xff.jpg,a", "has a character that no URL has"),
    "a lone surrogate in UTF-8": (b"http://x.test/\xed\xa0\x80.jpg,a", "has a character that no URL has"),
    "too few values": (b"http://x.test/1.jpg", "it has 1 values and the header 2"),
    "too many values": (b"http://x.test/1.jpg,a,b", "it has 3 values and the header 2"),
    "no URL": (b",a", "it names no URL"),
    "a long URL": (b"http://x.test/" + b"x" * 900_000 + b",a", "longer than 8192 characters"),
    "a long field": (b'"http://x.test/' + b"x" * 4_000_000 + b'",a', "field larger than field limit"),
    "a long line": (b"http://x.test/" + b"x" * 20_000_000 + b",a", "it has more than 8,388,608 characters"),
}


@pytest.mark.parametrize("kind", CSV)
def test_one_bad_row_of_a_csv(tmp_path: Path, kind: str) -> None:
    row, said = CSV[kind]
    file = tmp_path / "l.csv"
    file.write_bytes(csv_of(f"{GOOD[0]},一".encode(), row, f"{GOOD[1]},二".encode()))
    first, (bad, _), last = read(file)
    assert (first, last) == ((GOOD[0], "一"), (GOOD[1], "二"))
    assert said in reason(bad)
    assert len(bad) < 500


@pytest.mark.parametrize("name", ["l.csv", "l.tsv.gz", "l.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "gb18030"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_of_every_encoding_and_line_end(
    tmp_path: Path, name: str, encoding: str, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(GOOD[0], "红色的苹果"), (GOOD[1], "猫")]
    between = "\t" if "tsv" in name else ","
    lines = [f"url{between}caption", *(f"{url}{between}{text}" for url, text in rows)]
    if "jsonl" in name:
        lines = [json.dumps({"url": url, "caption": text}, ensure_ascii=False) for url, text in rows]
    data = "".join(line + end for line in lines).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read(tmp_path / name) == rows
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (encoding == "gb18030")
    assert all("Read as GB 18030, because not UTF-8: 1 of the text files" in each for each in said)


JSON = {
    "a lone surrogate": (rb'{"url": "\ud800", "caption": "a"}', "has a character that no URL has"),
    "no JSON": (b"not json", "it is no JSON"),
    "no object": (b"[1]", "it is no JSON object"),
    "a number": (b'{"url": 7, "caption": "a"}', "it names no URL"),
    "null": (b'{"url": null, "caption": "a"}', "it names no URL"),
    "no field": (b'{"caption": "a"}', "it names no URL"),
    "nested": (b"[" * 100_000, "it is no JSON"),
    "not UTF-8": (b'{"url": "http://x.test/\xff", "caption": "a"}', "has a character that no URL has"),
}


@pytest.mark.parametrize("kind", JSON)
def test_one_bad_line_of_json(tmp_path: Path, kind: str) -> None:
    row, said = JSON[kind]
    lines = [json.dumps({"url": url, "caption": "词"}).encode() for url in GOOD]
    file = tmp_path / "l.jsonl.gz"
    file.write_bytes(gzip.compress(b"\n".join([lines[0], row, lines[1]])))
    first, bad, last = read(file)
    assert (first, last) == ((GOOD[0], "词"), (GOOD[1], "词"))
    assert said in reason(bad[0])


def test_one_bad_row_of_parquet(tmp_path: Path) -> None:
    urls = pa.array([GOOD[0].encode(), b"http://x.test/\xff", GOOD[1].encode(), None], pa.binary())
    captions = pa.array([b"\xe4\xb8\x80", b"a", b"\xff", b"b"], pa.binary())
    columns = [pa.Array.from_buffers(pa.string(), len(column), column.buffers()) for column in (urls, captions)]
    pq.write_table(pa.table(columns, names=["url", "caption"]), tmp_path / "l.parquet")
    first, bad, last, empty = read(tmp_path / "l.parquet")
    assert (first, last) == ((GOOD[0], "一"), (GOOD[1], "\ufffd"))
    assert "has a character that no URL has" in reason(bad[0])
    assert "it names no URL" in reason(empty[0])


def test_a_bad_row_says_where_it_is_but_not_where_the_list_lies(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "x").mkdir(parents=True)
        (tmp_path / folder / "x" / "l.csv").write_bytes(csv_of(b",a"))
    found = [read(tmp_path / folder / "x" / "l.csv", tmp_path / folder) for folder in ("one", "two")]
    assert found[0] == found[1] == [("x/l.csv#row 2: it names no URL", "a")]


@pytest.mark.parametrize(("name", "data"), [("l.csv.gz", b"\x1f\x8b broken"), ("l.parquet", b"PAR1"), ("l.csv", b"")])
def test_a_file_that_is_no_list_is_explained(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as a list of URLs"):
        read(tmp_path / name)


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=300) | st.text(max_size=200).map(str.encode), kind=st.sampled_from(["csv", "tsv", "jsonl"])
)
def test_any_list_is_read(tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str) -> None:
    file = tmp_path_factory.mktemp("l") / f"l.{kind}"
    head = {"csv": b"url,caption\n", "tsv": b"url\tcaption\n", "jsonl": b'{"url": "http://a.test/", "caption": ""}\n'}
    file.write_bytes(head[kind] + data)
    for url, caption in read(file):
        url.encode()
        caption.encode()
