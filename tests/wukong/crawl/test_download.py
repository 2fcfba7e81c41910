"""Download one part from broken and hostile servers: no URL is lost, nothing hangs, every status is right."""

import asyncio
import gzip
import hashlib
import io
import json
import ssl
import struct
import tarfile
import time
import zlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from crawl_samples import HOST, make_config, make_picture
from loopback_web import Web, answering, raw, redirect
from PIL import Image

from wukong.config.crawl import Crawl
from wukong.crawl import image_header, previous, stored_image
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.download import download_part
from wukong.crawl.fetch import Fetcher
from wukong.crawl.status import Status
from wukong.crawl.url import key_of
from wukong.data import decoding
from wukong.data.crawl_part import CrawlPart
from wukong.data.schema import CRAWLED
from wukong.store import storage

SITE = f"http://{HOST}"


def found(url: str, caption: str = "说明") -> dict[str, Any]:
    return {"key": key_of(url), "url": url, "caption": caption, "queries": ["词"], "engine": "urls", "page_url": None}


def download(urls: list[str], config: Crawl, connect_to: ConnectTo, target: Path, **options: Any) -> dict[str, dict]:
    """Download a part and return its rows by URL."""

    async def run() -> dict[str, Any]:
        fetcher = Fetcher(config, connect_to)
        try:
            return await download_part(
                storage.from_path(target), [found(url) for url in urls], fetcher, config, **options
            )
        finally:
            fetcher.close()

    record = asyncio.run(run())
    rows = pq.read_table(f"{target}.parquet").to_pylist()
    assert record["urls"] == len(rows) == len(urls)
    return {row["url"]: row for row in rows}


def members(target: Path) -> dict[str, bytes]:
    with tarfile.open(f"{target}.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def stored(target: Path, url: str) -> Image.Image:
    return Image.open(io.BytesIO(members(target)[f"{key_of(url)}.jpg"]))


def huge_png() -> bytes:
    """A valid header of an image of 50,000 x 50,000 pixels, which would take 7.5 GB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def sized_png(width: int, height: int) -> bytes:
    """A PNG of 133 bytes whose header claims any size."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(64)))).ljust(121, b"\0") + png_chunk(
        b"IEND", b""
    )


def sized_bmp(width: int, height: int) -> bytes:
    """A BMP of 133 bytes whose header claims any size; a negative height means that the rows go down."""
    return (b"BM" + struct.pack("<IIIIiiHH", 133, 0, 54, 40, width, height, 1, 24)).ljust(133, b"\0")


def exif_jpeg(picture, exif: bytes) -> bytes:
    """A small JPEG, which is not encoded anew, with these bytes in its EXIF segment."""
    jpeg, content = picture(250, 200), b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(picture, *chunks: bytes) -> bytes:
    """A PNG with the given chunks after its header."""
    png = picture(kind="PNG")
    return png[:33] + b"".join(chunks) + png[33:]


def small_screen(width: int, height: int) -> bytes:
    """A GIF whose screen is 300 x 300, with one frame of another size."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", 300, 300, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + frame + b"\x02\x01\x44\0;"


def spoilt_avif(picture) -> bytes:
    """An AVIF with a valid container and damaged pixels."""
    avif = picture(kind="AVIF")
    return avif[: avif.index(b"mdat") + 8] + bytes(len(avif) - avif.index(b"mdat") - 8)


def timeless_avif(picture) -> bytes:
    """An animated AVIF whose unit of time is 1/0 second."""
    stream = io.BytesIO()
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    frames[0].save(stream, "AVIF", save_all=True, append_images=frames[1:], duration=50)
    avif = bytearray(stream.getvalue())
    place = avif.index(b"mdhd") + 4
    avif[place + 20 : place + 24] = bytes(4)  # version 1: two times of 8 bytes stand before the time scale
    return bytes(avif)


def many_scans(picture, scans: int) -> bytes:
    """A progressive JPEG with additional empty scans."""
    jpeg = picture(1600, 1200, progressive=True)
    return jpeg[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00" * scans + b"\xff\xd9"


def many_exifs(picture) -> bytes:
    """A JPEG with 12 EXIF segments; each has 5,400 entries whose value fills the segment."""
    entry = struct.pack("<HHLL", 0x9286, 7, 64_000, 8)
    exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 5_400) + entry * 5_400
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    jpeg = picture()
    return jpeg[:2] + segment * 12 + jpeg[2:]


def canvas_lies(picture) -> bytes:
    """A WebP whose container claims 320 x 240 pixels, and whose image has 16,384 x 16,384."""
    lossless = bytearray(picture(kind="WEBP", lossless=True)[12:])
    lossless[9:13] = struct.pack("<I", 16_383 | 16_383 << 14)
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (319).to_bytes(3, "little") + (239).to_bytes(3, "little")
    body = b"WEBP" + extended + bytes(lossless)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def with_header(name: str, value: bytes, status: bytes = b"302 Found") -> Any:
    """An answer with one header of raw bytes."""
    return raw(b"HTTP/1.1 %b\r\n%b: %b\r\nContent-Length: 0\r\n\r\n" % (status, name.encode(), value))


SEGMENT = b"\xff\xe1\xff\xff" + bytes(65533)
"""A segment that may occur any number of times before the frame of a JPEG."""


async def endless(_path: str, writer: asyncio.StreamWriter) -> None:
    """The beginning of a JPEG, then a byte from time to time, without end."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8\xff\xe1\xff\xff")
    while True:
        writer.write(b"\x00")
        await writer.drain()
        await asyncio.sleep(0.1)


async def endless_headers(_path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(10_000):
        writer.write(b"X-%d: %b\r\n" % (number, b"a" * 100))
        await writer.drain()


async def silent(_path: str, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(600)


async def unannounced_flood(_path: str, writer: asyncio.StreamWriter) -> None:
    """An endless body without a length, as fast as it is read."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n\r\n\xff\xd8")
    while True:
        writer.write(SEGMENT)
        await writer.drain()


def a_png(picture) -> bytes:
    return picture(kind="PNG")


IMPOSSIBLE = {
    "png": [(2**31, 2**31), (2**32 - 1, 2**32 - 1), (2**31, 300), (0, 300)],
    "bmp": [(300, -(2**31)), (-300, 300), (0, 300)],
}
"""Sides that a header can name and no image has."""

ZEROS = zlib.compress(bytes(10**8), 1)

# name -> (path of the image, behaviour of the server, expected status, expected HTTP status)
JPEG_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"


@lru_cache
def hostile(picture) -> dict[str, tuple[Any, Status, int | None]]:
    jpeg = picture()
    return {
        "/good.jpg": (answering(jpeg), Status.SUCCESS, 200),
        "/slow.jpg": (endless, Status.TIMEOUT, 200),
        "/silent.jpg": (silent, Status.TIMEOUT, None),
        "/headers.jpg": (endless_headers, Status.HTTP_ERROR, 200),
        "/10gb.jpg": (raw(JPEG_HEAD + b"Content-Length: 10737418240\r\n\r\n" + jpeg), Status.TOO_LARGE, 200),
        "/flood.jpg": (unannounced_flood, Status.TOO_LARGE, 200),
        "/length-too-long.jpg": (
            raw(JPEG_HEAD + b"Content-Length: %d\r\n\r\n" % (len(jpeg) + 999) + jpeg),
            Status.INCOMPLETE,
            200,
        ),
        "/length-too-short.jpg": (
            raw(JPEG_HEAD + b"Content-Length: %d\r\n\r\n" % (len(jpeg) // 2) + jpeg),
            Status.CORRUPT,
            200,
        ),
        "/truncated.jpg": (answering(jpeg[: len(jpeg) // 2]), Status.CORRUPT, 200),
        "/reset.jpg": (
            raw(JPEG_HEAD + b"Content-Length: %d\r\n\r\n" % len(jpeg) + jpeg[:500], reset=True),
            Status.INCOMPLETE,
            200,
        ),
        "/nothing.jpg": (raw(b""), Status.CONNECTION_ERROR, None),
        "/empty.jpg": (answering(b""), Status.NOT_IMAGE, 200),
        "/html.jpg": (answering(b"<html><body>not found</body></html>"), Status.NOT_IMAGE, 200),
        "/svg.jpg": (answering(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), Status.NOT_IMAGE, 200),
        "/huge.png": (answering(huge_png(), "image/png"), Status.TOO_MANY_PIXELS, 200),
        "/small.jpg": (answering(picture(19, 300)), Status.TOO_SMALL, 200),
        "/narrow.jpg": (answering(picture(301, 100)), Status.BAD_RATIO, 200),
        "/just-wide-enough.jpg": (answering(picture(300, 100)), Status.SUCCESS, 200),
        "/404.jpg": (answering(b"", status="404 Not Found"), Status.HTTP_ERROR, 404),
        "/500.jpg": (answering(b"x" * 100_000, status="500 Broken"), Status.HTTP_ERROR, 500),
        "/noai.jpg": (answering(jpeg, X_Robots_Tag="noindex, NoAI"), Status.NOAI, 200),
        "/noimageai.jpg": (answering(jpeg, X_Robots_Tag="wukong-crawler: noimageai"), Status.NOAI, 200),
        "/noindex.jpg": (answering(jpeg, X_Robots_Tag="noindex"), Status.SUCCESS, 200),  # the filter's rule decides
        "/noai-then.jpg": (
            answering(b"", status="302 Found", Location="/good.jpg", X_Robots_Tag="noai"),
            Status.NOAI,
            200,
        ),
        "/to-noai.jpg": (redirect("/noai.jpg"), Status.NOAI, 200),
        "/usage.jpg": (answering(jpeg, Content_Usage="train-ai=n"), Status.SUCCESS, 200),
        "/bad-usage.jpg": (answering(jpeg, Content_Usage="(" * 60_000), Status.SUCCESS, 200),
        "/bad-tag.jpg": (answering(jpeg, X_Robots_Tag="unavailable_after:" * 3_000), Status.SUCCESS, 200),
        "/to-4-mb.jpg": (redirect("http://images.test/" + "x" * 60_000), Status.INVALID_URL, None),
        "/loop.jpg": (redirect("/loop.jpg"), Status.REDIRECT_ERROR, 302),
        "/moved.jpg": (redirect("good.jpg", "301 Moved Permanently"), Status.SUCCESS, 200),
        "/to-loopback.jpg": (redirect("http://127.0.0.1/x.jpg"), Status.FORBIDDEN_ADDRESS, None),
        "/to-metadata.jpg": (redirect("http://169.254.169.254/latest/"), Status.FORBIDDEN_ADDRESS, None),
        "/to-mapped.jpg": (redirect("http://[::ffff:10.0.0.1]/x.jpg"), Status.FORBIDDEN_ADDRESS, None),
        "/to-decimal.jpg": (redirect("http://2130706433/x.jpg"), Status.FORBIDDEN_ADDRESS, None),
        "/to-localhost.jpg": (redirect("http://localhost/x.jpg"), Status.FORBIDDEN_ADDRESS, None),
        "/to-file.jpg": (redirect("file:///etc/passwd"), Status.INVALID_URL, None),
        "/gzip.jpg": (answering(gzip.compress(jpeg), Content_Encoding="gzip"), Status.SUCCESS, 200),
        "/gzip-bomb.jpg": (
            answering(gzip.compress(b"\xff\xd8" + SEGMENT * 1000), Content_Encoding="gzip"),
            Status.TOO_LARGE,
            200,
        ),
        "/spoilt.avif": (answering(spoilt_avif(picture)), Status.CORRUPT, 200),
        "/timeless.avif": (answering(timeless_avif(picture)), Status.CORRUPT, 200),
        "/frame-bomb.gif": (answering(small_screen(20_000, 20_000)), Status.TOO_MANY_PIXELS, 200),
        "/narrow-frame.gif": (answering(small_screen(3_000, 300)), Status.BAD_RATIO, 200),
        "/two-headers.png": (
            answering(png_with(picture, png_chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)))),
            Status.TOO_MANY_PIXELS,
            200,
        ),
        "/text-bomb.png": (
            answering(png_with(picture, png_chunk(b"zTXt", b"a\0\0" + ZEROS))),
            Status.SUCCESS,  # metadata is not read
            200,
        ),
        "/profile-bomb.png": (
            answering(png_with(picture, png_chunk(b"iCCP", b"a\0\0" + ZEROS))),
            Status.SUCCESS,
            200,
        ),
        "/pixel-bomb.png": (
            answering(png_with(picture, png_chunk(b"IDAT", zlib.compress(bytes(3 * 10**8), 1)))),
            Status.SUCCESS,  # what the pixels do not need is not decompressed
            200,
        ),
        "/scans.jpg": (answering(many_scans(picture, 100_000)), Status.TOO_COSTLY, 200),
        "/exifs.jpg": (answering(many_exifs(picture)), Status.SUCCESS, 200),
        "/canvas.webp": (answering(canvas_lies(picture)), Status.CORRUPT, 200),
        "/to-bracket.jpg": (redirect("http://[::1/x"), Status.INVALID_URL, None),
        "/to-port.jpg": (redirect(f"http://{HOST}:99999/x"), Status.INVALID_URL, None),
        "/to-nowhere.jpg": (with_header("Location", b""), Status.REDIRECT_ERROR, 302),
        "/to-idn.jpg": (with_header("Location", "http://\u200b\u200b.test/x".encode()), Status.INVALID_URL, None),
        "/to-utf8.jpg": (with_header("Location", "/熊猫.jpg".encode()), Status.SUCCESS, 200),
        "/to-gbk.jpg": (with_header("Location", "/熊猫.jpg".encode("gbk")), Status.SUCCESS, 200),
        "/%D0%DC%C3%A8.jpg": (answering(jpeg), Status.SUCCESS, 200),
        "/wait-squared.jpg": (with_header("Retry-After", "²".encode("latin-1"), b"404 No"), Status.HTTP_ERROR, 404),
        "/wait-digits.jpg": (with_header("Retry-After", b"9" * 5_000, b"404 No"), Status.HTTP_ERROR, 404),
        "/wait-date.jpg": (
            with_header("Retry-After", b"Fri, 31 Dec 99999 23:59:59 GMT", b"404 No"),
            Status.HTTP_ERROR,
            404,
        ),
        "/wait-zone.jpg": (
            with_header("Retry-After", b"Mon, 01 Jan 0001 00:00:00 +2359", b"404 No"),
            Status.HTTP_ERROR,
            404,
        ),
        "/length-squared.jpg": (
            raw(JPEG_HEAD + "Content-Length: ²\r\n\r\n".encode("latin-1") + jpeg),
            Status.CONNECTION_ERROR,
            200,
        ),
        "/status.jpg": (raw(b"HTTP/1.1 abc OK\r\n\r\n"), Status.CONNECTION_ERROR, None),
        **{
            f"/status-{len(code)}-{code[:4].decode()}.jpg": (
                raw(b"HTTP/1.1 " + code + b" OK\r\nContent-Length: 0\r\n\r\n"),
                Status.CONNECTION_ERROR,
                None,
            )
            for code in (b"2147483648", b"99999999999999999999", b"9" * 5_000, b"-200", b"+200", b"0200", b"2", b"000")
        },
        "/999.jpg": (answering(b"", status="999 Go away"), Status.HTTP_ERROR, 999),
        **{
            f"/sides-{width}-{height}.{kind}": (answering(make(width, height)), status, 200)
            for kind, make in (("png", sized_png), ("bmp", sized_bmp))
            for width, height, status in (
                (2**31 - 1, 2**31 - 1, Status.TOO_MANY_PIXELS),
                (2**31 - 1, 300, Status.BAD_RATIO),
                *((*sides, Status.CORRUPT) for sides in IMPOSSIBLE[kind]),
            )
        },
        "/exif-cut.jpg": (answering(exif_jpeg(picture, b"II*\0\x08")), Status.SUCCESS, 200),
        "/exif-lies.jpg": (
            answering(exif_jpeg(picture, b"II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff")),
            Status.SUCCESS,
            200,
        ),
        "/exif-magic.jpg": (answering(exif_jpeg(picture, b"xI*\0" + bytes(40))), Status.SUCCESS, 200),
        "/adobe-short.jpg": (
            answering(picture(250, 200)[:2] + b"\xff\xee\0\x07Adobe" + picture(250, 200)[2:]),
            Status.SUCCESS,
            200,
        ),
        "/fill.jpg": (answering(jpeg[:2] + b"\xff" * 1_900_000 + jpeg[2:]), Status.SUCCESS, 200),
        "/markers.jpg": (answering(jpeg[:2] + b"\xff\xd0" * 900_000 + jpeg[2:]), Status.CORRUPT, 200),
        "/behind.jpg": (answering(picture(250, 200) + bytes(1_900_000)), Status.SUCCESS, 200),
        "/scans-60000.jpg": (answering(many_scans(picture, 60_000)), Status.TOO_COSTLY, 200),
        "/with%20space.jpg": (answering(jpeg), Status.SUCCESS, 200),
        "/%E7%86%8A%E7%8C%AB.jpg": (answering(jpeg), Status.SUCCESS, 200),
    }


ASKED_AS = {
    "/with%20space.jpg": "/with space.jpg",
    "/%E7%86%8A%E7%8C%AB.jpg": "/熊猫.jpg",
}
NO_SERVER = {
    "http://127.0.0.1/x.jpg": Status.FORBIDDEN_ADDRESS,
    "http://[::1]/x.jpg": Status.FORBIDDEN_ADDRESS,
    "http://169.254.169.254/latest/meta-data/": Status.FORBIDDEN_ADDRESS,
    "http://0x7f000002/x.jpg": Status.FORBIDDEN_ADDRESS,
    "http://no-such-host.invalid/x.jpg": Status.DNS_ERROR,
    "ftp://example.com/x.jpg": Status.INVALID_URL,
    "https://": Status.INVALID_URL,
    "http://[::bad/x.jpg": Status.INVALID_URL,
    "http://a b.com/x.jpg": Status.INVALID_URL,
    "not a url": Status.INVALID_URL,
    "http://example.com:99999/": Status.INVALID_URL,
    f"http://{HOST}/{'x' * 9000}.jpg": Status.INVALID_URL,
    f"http://{'a.' * 2000}test/x.jpg": Status.INVALID_URL,
    f"http://{'é' * 2000}.test/x.jpg": Status.INVALID_URL,
    "http://\u200b.test/x.jpg": Status.INVALID_URL,
    "http://xn--a.test\0/x.jpg": Status.INVALID_URL,
}


@pytest.fixture(scope="module")
def hostile_part(tmp_path_factory):
    """All URLs above, downloaded in one part with limits that a busy machine can meet."""
    web = Web()
    cases = hostile(make_picture)
    web.handlers = {path: handler for path, (handler, _, _) in cases.items()}
    web.handlers["/good.jpg"] = cases["/good.jpg"][0]
    urls = [SITE + ASKED_AS.get(path, path) for path in cases] + list(NO_SERVER)
    target = tmp_path_factory.mktemp("hostile") / "00000"
    config = make_config(max_bytes=2_000_000, politeness={"per_host_concurrency": 64})
    started = time.monotonic()
    rows = download(urls, config, ConnectTo({HOST: web.connect_to}), target)
    elapsed = time.monotonic() - started
    yield rows, target, elapsed
    web.stop()


def pytest_generate_tests(metafunc) -> None:
    if "hostile_path" in metafunc.fixturenames:
        metafunc.parametrize("hostile_path", list(hostile(make_picture)))


def test_every_hostile_answer_has_its_status(hostile_part, hostile_path: str, picture) -> None:
    rows, _, _ = hostile_part
    _, status, http_status = hostile(picture)[hostile_path]
    row = rows[SITE + ASKED_AS.get(hostile_path, hostile_path)]
    assert (row["status"], row["http_status"]) == (status, http_status), row["error"]
    assert (row["error"] is None) == (status is Status.SUCCESS)


@pytest.mark.parametrize("url", NO_SERVER)
def test_every_bad_url_has_its_status(hostile_part, url: str) -> None:
    rows, _, _ = hostile_part
    assert rows[url]["status"] == NO_SERVER[url], rows[url]["error"]


def test_the_part_ends_in_time(hostile_part) -> None:
    _, _, elapsed = hostile_part
    assert elapsed < 300


def test_only_successes_have_members(hostile_part) -> None:
    rows, target, _ = hostile_part
    expected = {
        f"{row['key']}.{s}" for row in rows.values() if row["status"] == "success" for s in ("jpg", "json", "txt")
    }
    assert set(members(target)) == expected


def test_what_is_stored_is_what_every_reader_opens(hostile_part) -> None:
    rows, target, _ = hostile_part
    files = members(target)
    for row in rows.values():
        if row["status"] == "success":
            data = files[f"{row['key']}.jpg"]
            size = (row["stored_width"], row["stored_height"])
            assert decoding.decode(data, row["url"]).size == size
            assert len(data) < 100_000
            with Image.open(io.BytesIO(data)) as opened:
                assert not {"exif", "icc_profile", "comment", "xmp", "mp"} & set(opened.info)


def test_a_row_that_cannot_be_written_does_not_end_the_part(web, crawl_config, picture, tmp_path, monkeypatch) -> None:
    """Whatever number gets through, for instance from an engine or a decoder of tomorrow."""
    web.bytes_at("/good.jpg", picture())
    web.bytes_at("/odd.jpg", picture(333, 250))
    original = stored_image.store_jpeg

    def claiming(data: bytes, header: image_header.Header, config: Crawl) -> stored_image.Stored | None:
        result = original(data, header, config)
        return replace(result, width=2**31) if header.width == 333 else result

    monkeypatch.setattr(stored_image, "store_jpeg", claiming)
    urls = [f"{SITE}/{name}.jpg" for name in ("good", "odd")]
    rows = download(urls, crawl_config(), ConnectTo({HOST: web.connect_to}), tmp_path / "0")
    assert [rows[url]["status"] for url in urls] == ["success", "internal_error"]
    assert rows[urls[1]]["error"] == "unexpected ArrowInvalid"


def test_rows_have_the_schema_and_messages_contain_no_address(hostile_part) -> None:
    rows, target, _ = hostile_part
    assert pq.read_schema(f"{target}.parquet").equals(CRAWLED)
    assert not [row["error"] for row in rows.values() if row["error"] and ("127.0.0" in row["error"])]


def test_size_and_type_of_the_original_are_recorded(web, crawl_config, picture, tmp_path) -> None:
    body = picture(700, 500)
    web.bytes_at("/a.jpg", body)
    web.bytes_at("/b", picture(90, 60, kind="WEBP"), "application/octet-stream")
    config = crawl_config()
    target = tmp_path / "00000"
    rows = download([f"{SITE}/a.jpg", f"{SITE}/b"], config, ConnectTo({HOST: web.connect_to}), target)
    first, second = rows[f"{SITE}/a.jpg"], rows[f"{SITE}/b"]
    assert (first["width"], first["height"], first["mime"], first["bytes"]) == (700, 500, "image/jpeg", len(body))
    assert first["sha256"] == hashlib.sha256(body).hexdigest()
    assert (first["stored_width"], first["stored_height"]) == stored(target, f"{SITE}/a.jpg").size == (358, 256)
    assert (second["width"], second["height"], second["mime"]) == (90, 60, "image/webp")
    files = members(target)
    assert files[f"{first['key']}.txt"].decode() == "说明"
    facts = json.loads(files[f"{first['key']}.json"])
    assert facts["url"] == f"{SITE}/a.jpg"
    assert facts["sha256"] == first["sha256"]


def test_a_download_stops_when_the_size_rule_fails(web, crawl_config, picture, tmp_path) -> None:
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (400, 1600, 3), dtype=np.uint8)).save(stream, "JPEG", quality=95)
    body = stream.getvalue()
    assert len(body) > 500_000
    web.bytes_at("/narrow.jpg", body)

    async def run() -> tuple[int, dict[str, Any]]:
        config = crawl_config()
        fetcher = Fetcher(config, ConnectTo({HOST: web.connect_to}))
        record = await download_part(storage.from_path(tmp_path / "0"), [found(f"{SITE}/narrow.jpg")], fetcher, config)
        fetcher.close()
        return record["bytes_read"], record["statuses"]

    bytes_read, statuses = asyncio.run(run())
    assert statuses == {"bad_ratio": 1}
    assert 0 < bytes_read < 40_000


def test_what_owners_say_is_stored(web, crawl_config, picture, tmp_path) -> None:
    web.bytes_at("/robots.txt", b"User-agent: *\nContent-Usage: /b train-ai=n", "text/plain")
    web.bytes_at("/a.jpg", picture(), X_Robots_Tag="noindex, nofollow", Content_Usage="search=y")
    web.bytes_at("/b.jpg", picture())
    web.bytes_at("/c.jpg", picture())
    web.bytes_at("/d.jpg", picture(), X_Robots_Tag="noai")
    config = crawl_config(politeness={"respect_noai": False})
    urls = [f"{SITE}/{name}.jpg" for name in "abcd"]
    rows = download(urls, config, ConnectTo({HOST: web.connect_to}), tmp_path / "0")
    assert [rows[url]["usage"] for url in urls] == ["noindex, search=y", "train-ai=n", None, "noai"]
    assert {row["status"] for row in rows.values()} == {"success"}
    facts = json.loads(members(tmp_path / "0")[f"{key_of(urls[0])}.json"])
    assert facts["usage"] == "noindex, search=y"


def test_a_caption_that_is_too_long_is_a_reason(web, crawl_config, picture, tmp_path) -> None:
    web.bytes_at("/a.jpg", picture())
    web.bytes_at("/b.jpg", picture())
    long, short = (
        {**found(f"{SITE}/a.jpg"), "caption": "猫" * 10_001},
        {**found(f"{SITE}/b.jpg"), "caption": "猫" * 10_000},
    )

    async def run() -> dict[str, Any]:
        fetcher = Fetcher(crawl_config(), ConnectTo({HOST: web.connect_to}))
        record = await download_part(storage.from_path(tmp_path / "0"), [long, short], fetcher, crawl_config())
        fetcher.close()
        return record

    assert asyncio.run(run())["statuses"] == {"caption_too_long": 1, "success": 1}
    rows = {row["url"]: row for row in pq.read_table(f"{tmp_path / '0'}.parquet").to_pylist()}
    assert rows[f"{SITE}/a.jpg"]["error"] == "the caption has more than 10000 characters"
    assert [len(row["caption"]) for row in rows.values()] == [100, 10_000]
    assert web.requests["/a.jpg"] == 0


def test_what_is_reused_is_left_out_if_its_owner_asked_since(web, crawl_config, picture, tmp_path) -> None:
    """Results of an earlier crawl: by URL, in another spelling, by domain, by digest, and by what was said then."""
    body = picture(301, 250)
    (tmp_path / "out.txt").write_text(f"{SITE}/a.jpg\nother.test\n{hashlib.sha256(body).hexdigest()}\n")
    urls = [
        f"http://{HOST}:80/x/../%61.jpg",
        "http://www.other.test/b.jpg",
        f"{SITE}/c.jpg",
        f"{SITE}/d.jpg",
        f"{SITE}/e.jpg",
    ]
    facts = {"status": "success", "http_status": 200, "width": 320, "height": 240, "stored_width": 320}
    known = [(key_of(url), {**facts, "sha256": "0" * 64}, picture()) for url in urls]
    known[2][1]["sha256"] = hashlib.sha256(body).hexdigest()
    known[3][1]["usage"] = "noai, noindex"
    config = crawl_config(politeness={"opt_out": storage.from_path(tmp_path / "out.txt")})

    async def run() -> dict[str, Any]:
        fetcher = Fetcher(config, ConnectTo({HOST: web.connect_to}))
        rows = [found(url) for url in urls]
        record = await download_part(storage.from_path(tmp_path / "0"), rows, fetcher, config, known)
        fetcher.close()
        return record

    record = asyncio.run(run())
    assert record["statuses"] == {"noai": 1, "opted_out": 3, "success": 1}
    assert record["requested"] == 0
    rows = {row["url"]: row for row in pq.read_table(f"{tmp_path / '0'}.parquet").to_pylist()}
    assert [rows[url]["status"] for url in urls] == ["opted_out", "opted_out", "opted_out", "noai", "success"]
    assert [rows[url]["sha256"] is None for url in urls] == [True, True, False, False, False]
    assert set(members(tmp_path / "0")) == {f"{key_of(urls[4])}.{suffix}" for suffix in ("jpg", "json", "txt")}


def test_an_opted_out_digest_is_not_stored(web, crawl_config, picture, tmp_path) -> None:
    body = picture()
    (tmp_path / "out.txt").write_text(hashlib.sha256(body).hexdigest() + "\n")
    web.bytes_at("/a.jpg", body)
    web.bytes_at("/b.jpg", picture(330, 240))
    config = crawl_config(politeness={"opt_out": storage.from_path(tmp_path / "out.txt")})
    rows = download([f"{SITE}/a.jpg", f"{SITE}/b.jpg"], config, ConnectTo({HOST: web.connect_to}), tmp_path / "0")
    assert [rows[f"{SITE}/{name}.jpg"]["status"] for name in "ab"] == ["opted_out", "success"]


def test_the_same_rows_give_the_same_bytes(web, crawl_config, picture, tmp_path) -> None:
    urls = []
    for number in range(30):
        web.bytes_at(f"/{number}.jpg", picture(300 + number, 280), status="200 OK" if number % 7 else "404 Not Found")
        urls.append(f"{SITE}/{number}.jpg")
    for name in ("first", "second"):
        download(urls, crawl_config(), ConnectTo({HOST: web.connect_to}), tmp_path / name)
    for suffix in (".tar", ".parquet"):
        assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()


def test_known_results_are_not_requested_again(web, crawl_config, picture, tmp_path) -> None:
    web.bytes_at("/new.jpg", picture())
    old = picture(111, 99)
    known = [(key_of(f"{SITE}/old.jpg"), {"status": "success", "width": 111, "height": 99}, old)]
    connect_to = ConnectTo({HOST: web.connect_to})
    rows = download([f"{SITE}/old.jpg", f"{SITE}/new.jpg"], crawl_config(), connect_to, tmp_path / "0", known=known)
    assert rows[f"{SITE}/old.jpg"]["width"] == 111
    assert members(tmp_path / "0")[f"{key_of(f'{SITE}/old.jpg')}.jpg"] == old
    assert web.requests["/old.jpg"] == 0
    assert web.requests["/new.jpg"] == 1


def test_invalid_certificates_are_refused(crawl_config, picture, tmp_path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    web = Web(tls=context)
    web.bytes_at("/a.jpg", picture())
    config = crawl_config()
    rows = download(["https://tls.test/a.jpg"], config, ConnectTo({"tls.test": web.connect_to}), tmp_path / "0")
    web.stop()
    assert rows["https://tls.test/a.jpg"]["status"] == "tls_error"
    assert web.requests["/a.jpg"] == 0


def self_signed(folder: Path) -> Path:
    """A self-signed certificate for ``tls.test``, with its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tls.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("tls.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_the_event_loop_is_not_blocked_by_slow_images(web, crawl_config, picture, tmp_path) -> None:
    """While slow images are decoded, other images arrive in time, and a timer in the event loop is not delayed."""
    stream = io.BytesIO()
    Image.new("RGB", (6000, 5000), (9, 8, 7)).save(stream, "PNG", compress_level=1)
    web.bytes_at("/large.png", stream.getvalue(), "image/png")
    web.bytes_at("/scans.jpg", many_scans(picture, 450))
    web.bytes_at("/more-scans.jpg", many_scans(picture, 100_000))
    names = ["large.png", "scans.jpg", "more-scans.jpg"]
    for number in range(20):
        web.bytes_at(f"/{number}.jpg", picture(300 + number, 280))
        names.append(f"{number}.jpg")
    config = crawl_config(max_seconds=30.0, max_decode_seconds=20, politeness={"per_host_concurrency": 64})
    longest = 0.0

    async def run() -> dict[str, Any]:
        fetcher = Fetcher(config, ConnectTo({HOST: web.connect_to}))

        async def tick() -> None:
            nonlocal longest
            last = time.monotonic()
            while True:
                await asyncio.sleep(0.01)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()

        ticking = asyncio.create_task(tick())
        rows = [found(f"{SITE}/{name}") for name in names]
        record = await download_part(storage.from_path(tmp_path / "0"), rows, fetcher, config)
        ticking.cancel()
        fetcher.close()
        return record

    statuses = asyncio.run(run())["statuses"]
    assert statuses["success"] >= 21, statuses
    assert statuses.get("timeout", 0) == 0
    assert longest < 5


def test_the_size_that_the_decoder_finds_is_recorded(web, crawl_config, tmp_path) -> None:
    stream = io.BytesIO()
    Image.new("P", (400, 350)).save(stream, "GIF")
    gif = bytearray(stream.getvalue())
    gif[6:10] = struct.pack("<HH", 300, 300)
    web.bytes_at("/a.gif", bytes(gif), "image/gif")
    rows = download([f"{SITE}/a.gif"], crawl_config(), ConnectTo({HOST: web.connect_to}), tmp_path / "0")
    row = rows[f"{SITE}/a.gif"]
    assert (row["status"], row["width"], row["height"]) == ("success", 400, 350)
    assert stored(tmp_path / "0", f"{SITE}/a.gif").size == (row["stored_width"], row["stored_height"])


def test_a_part_that_waits_for_slow_hosts_is_stored_and_goes_on_to_the_same_bytes(
    web, crawl_config, picture, tmp_path
) -> None:
    """One host asks to wait for 30 seconds; what the others have sent is not asked for again."""
    slow = [f"http://slow.test/{number}.jpg" for number in range(3)]
    quick = [f"{SITE}/{number}.jpg" for number in range(20)]
    urls = [*quick[:5], *slow, *quick[5:]]
    for number in range(20):
        web.bytes_at(f"/{number}.jpg", picture(number + 300, 900))  # it is encoded anew
    gone = f"{SITE}/gone.jpg"
    patient = {"per_host_concurrency": 8}
    config = crawl_config(max_seconds=1.0, retries=3, politeness=patient)
    busy = answering(b"", status="503 Busy", Retry_After="30")
    answers = {f"/{number}.jpg": answering(picture(333 + number, 222)) for number in range(3)}
    slow_web = Web()
    connect_to = ConnectTo({HOST: web.connect_to, "slow.test": slow_web.connect_to})

    def part(target: str, **options: Any) -> dict[str, Any]:
        async def run() -> dict[str, Any]:
            fetcher = Fetcher(config, connect_to)
            try:
                uri = storage.from_path(tmp_path / target)
                known = previous.outcomes([CrawlPart(uri)], planned, False) if options.pop("again", False) else ()
                return await download_part(uri, list(planned.values()), fetcher, config, known, **options)
            finally:
                fetcher.close()

        return asyncio.run(run())

    planned = {key_of(url): found(url) for url in [*urls, gone]}
    slow_web.handlers = dict(answers)
    whole = part("whole")
    slow_web.handlers = dict.fromkeys(answers, busy)
    web.requests.clear()
    begun = part("again", to_the_end=False)
    assert (begun["urls"], begun["left"], begun["requested"]) == (21, 3, 21)
    slow_web.handlers = dict(answers)
    slow_web.requests.clear()
    ended = part("again", again=True)
    assert {path: count for path, count in web.requests.items() if path != "/robots.txt"} == dict.fromkeys(
        [url.removeprefix(SITE) for url in (*quick, gone)], 1
    )
    assert ended["requested"] == 3
    assert {**ended, "requested": 0, "bytes_read": 0} == {**whole, "requested": 0, "bytes_read": 0}
    for suffix in (".tar", ".parquet"):
        assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    slow_web.stop()


def test_a_part_that_is_put_back_leaves_no_request_behind(web, crawl_config, picture, tmp_path) -> None:
    """A host that gets one request at a time sends no picture twice, and never works on two requests."""
    names = [f"/{number}.jpg" for number in range(5)]
    config = crawl_config(max_seconds=2.0, retries=0, politeness={"per_host_concurrency": 1, "robots_txt": False})

    async def slowly(path: str, writer: Any) -> None:
        await asyncio.sleep(1.4)  # the second request is on the wire when the part is put back
        await answering(picture(300, 300))(path, writer)

    web.fallback = slowly
    planned = {key_of(SITE + name): found(SITE + name) for name in names}
    uri = storage.from_path(tmp_path / "0")

    async def run() -> dict[str, Any]:
        fetchers = [Fetcher(config, ConnectTo({HOST: web.connect_to})) for _ in range(2)]
        begun = await download_part(uri, list(planned.values()), fetchers[0], config, to_the_end=False)
        assert (begun["urls"], begun["left"]) == (web.requests.total(), 5 - web.requests.total())
        assert 0 < begun["left"] < 5
        web.fallback = answering(picture(300, 300))
        known = previous.outcomes([CrawlPart(uri)], set(planned), False)
        ended = await download_part(uri, list(planned.values()), fetchers[1], config, known)
        for fetcher in fetchers:
            fetcher.close()
        return ended

    assert asyncio.run(run())["statuses"] == {"success": 5}
    assert web.requests == dict.fromkeys(names, 1)
    assert web.most_open == 1
