"""The user's own images: folders with captions, lists of paths and URLs, and rows that cannot be used."""

import asyncio
import csv
import gzip
import io
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from loopback_web import Web
from PIL import Image

from wukong.config.crawl import Crawl
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.download import download_part
from wukong.crawl.engines.files import SOURCE
from wukong.crawl.own_files import digest_of, pictures_of, read_pictures
from wukong.crawl.picture_fetcher import PictureFetcher
from wukong.crawl.rows import MAX_LINE
from wukong.crawl.url import key_of
from wukong.errors import DataError
from wukong.store import storage


def settings_of(place: Path, **changes: Any) -> Crawl:
    return Crawl(engine="files", endpoint=storage.from_path(place), min_side=8, max_seconds=5, **changes)


def jpeg(seed: int = 0, size: tuple[int, int] = (60, 40)) -> bytes:
    target = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(target, "JPEG")
    return target.getvalue()


def put(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def found(place: Path, **changes: Any) -> list[tuple[str, str]]:
    """The name, relative to the folder, and the caption of each image."""
    return [
        (picture.url.rpartition(f"{place.name}/")[2] or picture.url, picture.caption)
        for picture in pictures_of(settings_of(place, **changes))
    ]


def test_captions_are_read_from_files_beside_the_images(tmp_path: Path) -> None:
    put(
        tmp_path / "p",
        {
            "a.jpg": b"1",
            "a.txt": "  一只\t猫 \n",
            "b/c.PNG": b"2",
            "b/c.txt": "第一\n\n第二\n",
            "d.webp": b"3",
            "notes.txt": "no caption of a picture",
            ".git/e.jpg": b"4",
            "__MACOSX/f.jpg": b"5",
            "g.pdf": b"6",
        },
    )
    assert found(tmp_path / "p") == [
        ("a.jpg", "一只 猫"),
        ("b/c.PNG", "第一"),
        ("b/c.PNG#caption-2", "第二"),
        ("d.webp", ""),
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_metadata_file_in_hugging_faces_format(tmp_path: Path, kind: str) -> None:
    rows = [{"file_name": "a.jpg", "text": "猫"}, {"file_name": "sub/b.png", "text": "狗，和猫"}]
    folder = put(
        tmp_path / "p", {"train/a.jpg": b"1", "train/sub/b.png": b"2", "train/c.jpg": b"3", "train/c.txt": "鸟"}
    )
    write_rows(folder / "train" / f"metadata.{kind}", rows)
    assert found(folder) == [("train/a.jpg", "猫"), ("train/sub/b.png", "狗，和猫"), ("train/c.jpg", "鸟")]


def write_rows(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    text = io.StringIO()
    if name.endswith(".jsonl"):
        text.write("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
        writer.writeheader()
        writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.jsonl", "l.parquet", "l.csv.gz", "l.jsonl.gz"])
def test_a_list_may_have_paths_and_urls(tmp_path: Path, name: str) -> None:
    rows = [
        {"path": "a.jpg", "url": "", "caption": '猫, "两"只\n在一起'},
        {"path": "", "url": "http://site.test/b.jpg", "caption": "狗"},
        {"path": str(tmp_path / "c.jpg"), "url": "http://site.test/c", "caption": "鸟"},
        {"path": "./sub/d.jpg", "url": "", "caption": "鱼"},
        {"path": "a.jpg", "url": "", "caption": "又是猫"},
    ]
    listed = write_rows(tmp_path / name, rows)
    base = f"file://{tmp_path}"
    assert [(p.url, p.caption) for p in pictures_of(settings_of(listed))] == [
        (f"{base}/a.jpg", '猫, "两"只 在一起'),
        ("http://site.test/b.jpg", "狗"),
        (f"{base}/c.jpg", "鸟"),
        (f"{base}/sub/d.jpg", "鱼"),
        (f"{base}/a.jpg#caption-2", "又是猫"),
    ]


def test_column_names_can_be_configured(tmp_path: Path) -> None:
    listed = write_rows(tmp_path / "l.csv", [{"Bild": "a.jpg", "Beschreibung": "猫"}])
    with pytest.raises(DataError, match=r"columns bild, beschreibung and none of path, file_name.*crawl\.url_column"):
        list(pictures_of(settings_of(listed)))
    (picture,) = pictures_of(settings_of(listed, url_column="Bild", caption_column="Beschreibung"))
    assert picture.caption == "猫"


def test_gb18030_text_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    put(
        tmp_path,
        {"l.csv": "path,caption\r\na.jpg,熊猫\r\n".encode("gb18030"), "b.csv": b"\xef\xbb\xbfpath,text\na.jpg,x\n"},
    )
    assert [p.caption for p in pictures_of(settings_of(tmp_path / "l.csv"))] == ["熊猫"]
    assert [p.caption for p in pictures_of(settings_of(tmp_path / "b.csv"))] == ["x"]


def test_notes_are_one_line_each_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = "一只猫\n".encode() + b"\xff\xfe\xff\n" + "两只猫\n".encode()
    folder = put(
        tmp_path / "p",
        {
            **{f"{name}.jpg": b"1" for name in "abcde"},
            **{f"{name}.txt": "红色的苹果\n".encode("gb18030") for name in "abc"},
            "d.txt": damaged,
            "e.txt": "红色的苹果\n",
            "f.heic": b"",
            "g.HEIF": b"",
        },
    )
    assert found(folder)[:6] == [
        *((f"{name}.jpg", "红色的苹果") for name in "abc"),
        ("d.jpg", "一只猫"),
        ("d.jpg#caption-2", "两只猫"),
        ("e.jpg", "红色的苹果"),
    ]
    notes = [record.getMessage() for record in caplog.records]
    assert len(notes) == 3
    assert "Read as GB 18030, because not UTF-8: 3 of the text files; the first is" in notes[0]
    assert "1 text files hold captions that cannot be read" in notes[1] and "d.txt" in notes[1]
    assert "2 pictures are HEIC" in notes[2] and "f.heic" in notes[2] and "sips" in notes[2]
    caplog.clear()
    assert SOURCE.count(settings_of(folder)) == 8
    assert SOURCE.content is not None and SOURCE.content(settings_of(folder))
    assert not caplog.records, "the looks before the captions are read say nothing"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "gb18030"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_captions_and_lists_of_every_encoding_and_line_end(tmp_path: Path, encoding: str, end: str) -> None:
    rows = [("a.jpg", "红色的苹果"), ("b.jpg", "一只猫")]
    jsonl = [json.dumps({"path": path, "caption": text}, ensure_ascii=False) for path, text in rows]
    texts = {
        "l.csv": ["path,caption", *(f"{path},{text}" for path, text in rows)],
        "l.tsv": ["path\tcaption", *(f"{path}\t{text}" for path, text in rows)],
        "l.jsonl": jsonl,
        "p/metadata.csv": ["file_name,text", *(f"{path},{text}" for path, text in rows)],
        "q/a.txt": ["红色的苹果", "一只猫"],
    }
    put(tmp_path, {name: (end.join(lines) + end).encode(encoding) for name, lines in texts.items()})
    put(tmp_path, {"p/a.jpg": b"1", "p/b.jpg": b"2", "q/a.jpg": b"1"})
    for name in ("l.csv", "l.tsv", "l.jsonl", "p"):
        assert [caption for _, caption in found(tmp_path / name)] == ["红色的苹果", "一只猫"], name
    assert found(tmp_path / "q") == [("a.jpg", "红色的苹果"), ("a.jpg#caption-2", "一只猫")]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_list_inside_of_a_folder_names_no_file_outside(tmp_path: Path, kind: str) -> None:
    secret = put(tmp_path, {"secret.jpg": b"1", "pp/secret.jpg": b"2"}) / "secret.jpg"
    folder = put(tmp_path / "p", {"in/a.jpg": b"1", "b.jpg": b"2"})
    outside = [str(secret), "../../secret.jpg", "../../pp/secret.jpg", f"file://{secret}", "s3://bucket/x.jpg", ".."]
    inside = ["a.jpg", "../b.jpg", str(folder / "b.jpg"), "http://site.test/c.jpg"]
    write_rows(folder / "in" / f"metadata.{kind}", [{"file_name": name, "text": name} for name in outside + inside])
    pictures = list(pictures_of(settings_of(folder)))
    assert all("#row " in picture.url for picture in pictures[: len(outside)])
    assert [picture.url.rpartition("/p/")[2] for picture in pictures[len(outside) :]] == [
        "in/a.jpg",
        "b.jpg",
        "b.jpg#caption-2",
        "http://site.test/c.jpg",
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_line_that_is_too_long_is_one_row_and_no_more(tmp_path: Path, kind: str) -> None:
    good = ["a.jpg,猫\n", "b.jpg,狗\n"] if kind == "csv" else [f'{{"path": "{n}.jpg", "caption": "x"}}\n' for n in "ab"]
    hidden = ("x" * 200 + "," + good[1][:-1]) * (MAX_LINE // 200)
    header = "path,caption\n" if kind == "csv" else ""
    put(tmp_path, {f"l.{kind}": header + good[0] + hidden + "\n" + good[1]})
    urls = [url for url, _ in found(tmp_path / f"l.{kind}")]
    assert len(urls) == 3 and [url.rpartition("/")[2] for url in urls[::2]] == ["a.jpg", "b.jpg"]
    assert "it has more than 8,388,608 characters" in urls[1]


def test_bad_rows_are_counted_and_not_fatal(tmp_path: Path) -> None:
    put(
        tmp_path,
        {
            "l.csv": 'path,caption\na.jpg,猫\na.jpg,a,b\n,没有图\nftp://x/y.jpg,狗\n\nb.jpg,"' + "长" * 2_000_000,
            "l.jsonl": '{"path": "a.jpg", "caption": "猫"}\nnot json\n[1]\n{"path": 7, "caption": "x"}\n'
            + "[" * 100_000
            + "\n",
        },
    )
    reasons = [p.url.partition("#row ")[2] for p in pictures_of(settings_of(tmp_path / "l.csv"))]
    assert reasons[0] == ""
    assert reasons[1].startswith("3: it has 3 values and the header 2")
    assert reasons[2].startswith("4: it names no picture")
    assert reasons[3].startswith("5: ftp://x/y.jpg is neither")
    assert reasons[4].startswith("7: it is no CSV (field larger than field limit")
    reasons = [p.url.partition("#row ")[2] for p in pictures_of(settings_of(tmp_path / "l.jsonl"))]
    assert [reason.partition(" (")[0] for reason in reasons] == [
        "",
        "2: it is no JSON",
        "3: it is no JSON object",
        "4: it names no picture",
        "5: it is no JSON",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", b"", "none of path"),
        ("x.csv.gz", b"\x1f\x8b broken", "cannot be read"),
        ("x.parquet", b"PAR1", "cannot be read"),
        ("x.docx", b"1", "neither a folder nor a list"),
        ("x/y.pdf", b"1", "holds no picture"),
    ],
)
def test_a_file_that_is_not_a_list_is_explained(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    put(tmp_path, {name: content})
    with pytest.raises(DataError, match=rf"crawl\.endpoint: .*{said}"):
        list(pictures_of(settings_of(tmp_path / name.partition("/")[0])))
    with pytest.raises(DataError, match=r"^crawl\.endpoint: there is nothing at"):
        list(pictures_of(settings_of(tmp_path / "none")))


@pytest.mark.parametrize("path", ["a\0b.jpg", "file:///a\0b.jpg", "\ud800.jpg", "s3://wukong/\udfff.jpg"])
def test_a_path_that_no_file_can_have_is_a_row_with_its_reason(tmp_path: Path, path: str) -> None:
    file = tmp_path / "l.jsonl"
    file.write_text(json.dumps({"path": path, "caption": "猫"}) + "\n" + json.dumps({"path": "b.jpg"}))
    first, second = pictures_of(settings_of(file))
    assert first.url.startswith(f"{storage.from_path(file)}#row 1: ") and "no path has" in first.url
    assert first.url.isprintable()
    assert second.url == storage.from_path(tmp_path / "b.jpg")


@settings(max_examples=150, deadline=None)
@example(data=b"\x00,", kind="csv")
@example(data=b'{"path": "\\ud800.jpg"}', kind="jsonl")
@given(
    data=st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)),
    kind=st.sampled_from(["csv", "jsonl"]),
)
def test_any_list_gives_images_or_a_message(tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: str) -> None:
    file = tmp_path_factory.mktemp("l") / f"l.{kind}"
    file.write_bytes((b"path,caption\n" if kind == "csv" else b"") + data)
    try:
        tables = list(read_pictures(settings_of(file)))
    except DataError:
        return
    for table in tables:
        assert all(url.isprintable() and url for url in table["url"].to_pylist())


@settings(max_examples=60, deadline=None)
@given(name=st.text(st.characters(exclude_characters="/\x00", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_any_file_name_can_be_read_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("n")
    try:
        (folder / f"x{name}.jpg").write_bytes(b"picture")
    except OSError:
        return  # longer than a name may be
    (picture,) = pictures_of(settings_of(folder))
    assert storage.read_bytes(picture.url) == b"picture"


def test_the_digest_changes_with_the_files(tmp_path: Path) -> None:
    folder = put(tmp_path / "p", {"a.jpg": b"1", "a.txt": "猫", "b.jpg": b"2"})
    digests = [digest_of(pictures_of(settings_of(folder)))]
    for change in ({"a.jpg": b"22"}, {"a.txt": "大猫"}, {"b.txt": "狗"}, {"c.jpg": b"3"}):
        put(folder, change)
        digests.append(digest_of(pictures_of(settings_of(folder))))
    assert len(set(digests)) == 5
    assert digest_of(pictures_of(settings_of(folder))) == digests[-1]


def download(config: Crawl, target: Path, connect_to: ConnectTo) -> dict[str, dict[str, Any]]:
    async def run() -> None:
        (table,) = read_pictures(config)
        rows = [
            {**row, "queries": [], "engine": "files"}
            for row in table.select(["key", "url", "caption", "page_url"]).to_pylist()
        ]
        fetcher = PictureFetcher(config, connect_to)
        try:
            await download_part(storage.from_path(target / "part"), rows, fetcher, config)
        finally:
            fetcher.close()

    asyncio.run(run())
    rows = storage.read_table(storage.from_path(target / "part.parquet")).to_pylist()
    assert all(row["key"] == key_of(row["url"]) for row in rows)
    return {row["url"].rpartition("/")[2]: row for row in rows}


def test_every_row_gets_a_status(tmp_path: Path) -> None:
    folder = put(
        tmp_path / "p",
        {
            "good.jpg": jpeg(),
            "bad.jpg": b"no picture",
            "cut.jpg": jpeg()[:300],
            "empty.jpg": b"",
            "tiny.png": b"\x89PNG\r\n\x1a\n",
            "big.jpg": jpeg(1, (400, 400)),
            "phone.heic": b"\0\0\0\x18ftypheic" + b"\0" * 40,
            "名 #1?.jpg": jpeg(2),
        },
    )
    rows = [{"path": name, "caption": "图"} for name in sorted(path.name for path in folder.iterdir())]
    rows += [
        {"path": "good.jpg", "caption": "还是"},
        {"path": "gone.jpg", "caption": "无"},
        {"path": "", "caption": "空"},
    ]
    rows += [{"path": "http://site.test/web.jpg", "caption": "网"}]
    listed = write_rows(folder / "list.csv", rows)
    web = Web()
    try:
        web.bytes_at("/web.jpg", jpeg(3))
        connect_to = ConnectTo({"site.test": web.connect_to})
        ended = download(settings_of(listed, max_bytes=50_000), tmp_path, connect_to)
    finally:
        web.stop()
    assert {name: row["status"] for name, row in ended.items()} == {
        "good.jpg": "success",
        "good.jpg#caption-2": "success",
        "名 %231%3F.jpg": "success",
        "web.jpg": "success",
        "bad.jpg": "not_image",
        "cut.jpg": "corrupt",
        "empty.jpg": "not_image",
        "tiny.png": "corrupt",
        "big.jpg": "too_large",
        "phone.heic": "not_image",
        "gone.jpg": "missing_file",
        "list.csv#row 12: it names no picture": "invalid_url",
    }
    assert "convert it to JPEG" in ended["phone.heic"]["error"]
    assert ended["good.jpg"]["sha256"] == ended["good.jpg#caption-2"]["sha256"]
    assert ended["list.csv#row 12: it names no picture"]["error"] == "row 12: it names no picture"


def test_a_folder_that_is_linked_into_itself_is_listed_once(tmp_path: Path) -> None:
    folder = put(tmp_path / "p", {"a.jpg": b"1", "sub/b.jpg": b"2"})
    (folder / "again").symlink_to(folder)
    (folder / "sub" / "up").symlink_to("..")
    (folder / "0").symlink_to("sub")
    (folder / "loop").symlink_to("loop")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "also.jpg").symlink_to("a.jpg")
    outside = put(tmp_path / "q", {"c.jpg": b"3"})
    (folder / "out").symlink_to(outside)
    assert [name for name, _ in found(folder)] == ["a.jpg", "also.jpg", "out/c.jpg", "sub/b.jpg"]


def test_a_pipe_or_a_device_is_no_picture(tmp_path: Path) -> None:
    """Nobody writes to the pipe, so a reader of it would wait for ever."""
    folder = put(tmp_path / "p", {"good.jpg": jpeg()})
    os.mkfifo(folder / "pipe.jpg")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket.jpg"))
    assert [name for name, _ in found(folder)] == ["good.jpg"]
    rows = [
        {"path": name, "caption": "图"} for name in ("good.jpg", "pipe.jpg", "socket.jpg", "/dev/zero", "/dev/tty", ".")
    ]
    ended = download(settings_of(write_rows(folder / "list.csv", rows)), tmp_path, ConnectTo({}))
    assert {name: row["status"] for name, row in ended.items()} == {
        "good.jpg": "success",
        "pipe.jpg": "missing_file",
        "socket.jpg": "missing_file",
        "zero": "missing_file",
        "tty": "missing_file",
        ".": "missing_file",
    }
    server.close()


def test_a_file_name_that_is_not_utf_8_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = put(tmp_path / "p", {"a.jpg": b"1"})
    (folder / os.fsdecode(b"\xff.jpg")).write_bytes(b"2")
    assert [name for name, _ in found(folder)] == ["a.jpg"]
    assert "its name is not UTF-8" in caplog.text


def test_a_long_path_or_url_is_a_row_with_its_reason(tmp_path: Path) -> None:
    lines = [{"path": "x" * 4_000_000}, {"path": "http://a.test/" + "x" * 9_000}, {"path": "ftp://" + "x" * 4_000}]
    file = tmp_path / "l.jsonl"
    file.write_text("".join(json.dumps(line | {"caption": "猫"}) + "\n" for line in lines))
    (table,) = read_pictures(settings_of(file))
    assert sum("is longer than 8192 characters" in url for url in table["url"].to_pylist()) == 2
    assert all(len(url) < 700 for url in table["url"].to_pylist())


def test_two_spellings_of_one_url_are_captions_of_one_picture(tmp_path: Path) -> None:
    rows = [{"path": url, "caption": url[-1]} for url in ("http://A.test:80/x", "http://a.test/%78", "http://a.test/y")]
    pictures = list(pictures_of(settings_of(write_rows(tmp_path / "l.csv", rows))))
    assert [picture.url for picture in pictures] == [
        "http://A.test:80/x",
        "http://a.test/%78#caption-2",
        "http://a.test/y",
    ]
    assert key_of(pictures[1].url) == key_of("http://a.test/x#caption-2")


def test_a_string_of_parquet_that_is_not_utf_8(tmp_path: Path) -> None:
    names = pa.array([b"a.jpg", b"\xff.jpg"], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 2, names.buffers())
    pq.write_table(pa.table([column, ["猫", "狗"]], names=["path", "caption"]), tmp_path / "l.parquet")
    good, bad = pictures_of(settings_of(tmp_path / "l.parquet"))
    assert good.url.endswith("/a.jpg")
    assert "no path has" in bad.url
