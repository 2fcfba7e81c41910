"""The JSON API on a real server."""

import asyncio
import io
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import colours
import jsonschema
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from search_site import HOSTILE, LIMITS, Site, nearly, running, served

from wukong.serve import collection, encode
from wukong.serve.service import Service
from wukong.store import manifest, storage

RED = colours.encoded(colours.picture("红"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("site")) as started:
        yield started


@pytest.fixture(scope="module")
def global_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("global"), "global") as started:
        yield started


def test_traditional_full_width_and_simplified_queries_find_the_same(site: Site) -> None:
    answers = [site.ask("/api/search", q=q, top=5).json for q in ("红色黄色", "紅色黃色", "　紅色\u200b黄色")]
    assert answers[0]["results"][0]["captions"] in (["红色和黄色"], ["黄色和红色"])
    assert [each["results"] for each in answers[1:]] == [answers[0]["results"]] * 2
    assert {each["read_as"] for each in answers} == {"红色黄色"}


def test_a_sent_picture_finds_its_captions_and_pictures(site: Site) -> None:
    picture = colours.encoded(colours.picture("绿", "蓝"))
    found = site.ask("/api/captions", picture, top=2).json
    assert {hit["caption"] for hit in found["captions"]} == {"绿色和蓝色", "蓝色和绿色"}
    assert found["similar"][0]["captions"] == ["绿色和蓝色"]
    key = found["similar"][0]["picture"]
    assert site.ask(found["similar"][0]["url"]).headers["Content-Type"] == "image/jpeg"
    stored = site.ask("/api/captions", picture=key, top=2).json
    assert {hit["caption"] for hit in stored["captions"]} == {"绿色和蓝色", "蓝色和绿色"}
    assert key not in [hit["picture"] for hit in stored["similar"]]


def test_the_alignment_is_that_of_the_colours(site: Site) -> None:
    """The left half is red, the right half blue; 紅 is read as 红."""
    found = site.ask("/api/align", colours.encoded(colours.picture("红", "蓝")), text="紅色和藍色", word="蓝").json
    assert found["tokens"] == ["[CLS]", "红", "色", "和", "蓝", "色", "[SEP]"]
    assert found["best"] == [[1, 1, 4, 4]] * 4
    assert found["highlighted"] == [4]
    assert found["shown"].startswith("data:image/jpeg;base64,")
    refused = site.ask("/api/align", RED, text="红", word="绿")
    assert (refused.status, refused.json["error"]) == (422, "'绿' is not in '红': highlight a part of the text")


def test_a_global_model_says_why_it_has_no_alignment(global_site: Site) -> None:
    refused = global_site.ask("/api/align", RED, text="红")
    assert refused.status == 422
    assert "serve a token-wise model" in refused.json["error"]
    assert global_site.ask("/api/search", q="红").json["results"]
    assert global_site.ask("/api/about").json["token_wise"] is False


def test_labels_are_ranked(site: Site) -> None:
    found = site.ask("/api/classify", RED, label=["藍", "紅", "绿"]).json["labels"]
    assert found[0]["label"] == "紅"
    assert sum(hit["probability"] for hit in found) == pytest.approx(1, abs=1e-3)
    for labels, said in ((["红", "红"], "1 different"), (["红", "绿", "蓝", "黄", "黑"], "at most 4")):
        refused = site.ask("/api/classify", RED, label=labels)
        assert refused.status == 422
        assert said in refused.json["error"]


def upright(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def bomb() -> bytes:
    """A PNG of 200 bytes that says it has 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def turned() -> bytes:
    """Blue above red, stored on its side with the EXIF orientation 6."""
    picture = colours.picture("蓝", "红").rotate(-90)
    exif = Image.Exif()
    exif[0x0112] = 6
    return colours.encoded(picture.rotate(90, expand=True), "JPEG", exif=exif.tobytes(), quality=95)


def cmyk() -> bytes:
    return colours.encoded(colours.picture("红").convert("CMYK"), "JPEG", quality=95)


def animated() -> bytes:
    frames = [colours.picture("绿"), colours.picture("蓝")]
    return colours.encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("make", "best"),
    [
        (turned, [[1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]]),
        (cmyk, [[2] * 4] * 4),
        (animated, [[3] * 4] * 4),
        (lambda: colours.encoded(colours.picture("红"), "WEBP", lossless=True), [[2] * 4] * 4),
        (lambda: colours.encoded(colours.picture("红"), "AVIF"), [[2] * 4] * 4),
        (lambda: colours.encoded(colours.picture("红"), "BMP"), [[2] * 4] * 4),
    ],
    ids=["turned by EXIF", "CMYK", "animated", "WebP", "AVIF", "BMP"],
)
def test_every_kind_of_picture_is_seen_as_a_person_sees_it(site: Site, make: Any, best: list[list[int]]) -> None:
    assert site.ask("/api/align", make(), text="蓝红绿").json["best"] == best


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "send the bytes"),
        (b"hello", 415, "send JPEG, PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "send JPEG, PNG"),
        (bomb(), 413, "send a smaller one"),
        (RED[:50], 422, "send another one"),
        (colours.encoded(Image.new("RGB", (1, 1))), 422, "send another one"),
        (b"\xff\xd8\xff" + bytes(250_000), 413, "send a smaller one"),
    ],
    ids=["nothing", "text", "SVG", "bomb", "cut", "one pixel", "too large"],
)
def test_what_is_no_usable_picture_is_refused(site: Site, body: bytes, status: int, said: str) -> None:
    for path, query in (
        ("/api/captions", {}),
        ("/api/align", {"text": "红"}),
        ("/api/classify", {"label": ["红", "绿"]}),
    ):
        answer = site.ask(path, body, **query)
        assert (answer.status, said in answer.json["error"]) == (status, True), answer.text
    assert site.ask("/api/captions", RED).status == 200


def connected(site: Site) -> socket.socket:
    parts = urlsplit(site.address)
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def test_a_body_that_is_too_large_is_not_read_to_its_end(site: Site) -> None:
    """Sent in chunks, so that no header says how large it is: the answer comes before the end."""
    with connected(site) as sent:
        sent.sendall(b"POST /api/captions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = bytes(50_000)
        for _ in range(LIMITS.upload_bytes // len(piece) + 1):
            sent.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        assert sent.recv(12) == b"HTTP/1.1 413"


@pytest.mark.parametrize("path", ["/api/captions", "/pictures", "/v1/embeddings", "/api/none"])
def test_a_client_that_sends_too_much_reads_the_answer(site: Site, path: str) -> None:
    """Clients send all before they read; if the connection ended before, they would see no answer."""
    url, status = f"{site.address}{path}", 404 if path == "/api/none" else 413
    for size in (LIMITS.upload_bytes * 3 // 2 + 1, 10 * 2**20 + 1):
        assert site.ask(path, bytes(size)).status == status
        pieces = (bytes(10_000) for _ in range(size // 10_000 + 1))
        for sent in (bytes(size), pieces):
            assert requests.post(url, sent, headers={"connection": "close"}, timeout=60).status_code == status


def test_two_hosts_are_refused(site: Site) -> None:
    for hosts in (["127.0.0.1", "evil.example"], ["127.0.0.1", "127.0.0.1"], ["evil.example", "127.0.0.1"]):
        with connected(site) as sent:
            lines = "".join(f"Host: {host}\r\n" for host in hosts)
            sent.sendall(f"GET /api/about HTTP/1.1\r\n{lines}\r\n".encode())
            assert sent.recv(12) == b"HTTP/1.1 400"


@pytest.mark.parametrize("count", [1, 700])
def test_headers_that_are_too_long_are_refused(site: Site, count: int) -> None:
    value = "x" * (70_000 // count)
    with connected(site) as sent:
        lines = "".join(f"X-{number}: {value}\r\n" for number in range(count))
        sent.sendall(f"GET /api/about HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n".encode())
        assert sent.recv(12) == b"HTTP/1.1 431"
    assert site.ask("/api/about", headers={"X-A": "x" * 40_000}).status == 200


def test_who_leaves_during_an_upload_is_one_line_of_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for path in ("/api/captions", "/pictures", "/v1/embeddings"):
        with connected(site) as sent:
            sent.sendall(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n".encode())
            sent.sendall(b"part")
            time.sleep(0.1)
    for _ in range(1_000):
        if "POST /v1/embeddings" in caplog.text:
            break
        time.sleep(0.01)
    assert "Traceback" not in caplog.text
    assert [record.levelname for record in caplog.records if "left" in record.getMessage()] == ["INFO"] * 3


def test_no_page_and_no_answer_has_a_path_of_the_machine(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = site.service.collection.uri.removeprefix("file://").rpartition("/")[0]
    monkeypatch.setattr(site.service.model, "name", f"{folder}/model")
    key = site.index.keys[0]
    service = Service(site.service.collection, site.service.model, manifest.load(site.index.uri), LIMITS)
    with served(service) as other:
        paths = ["/", "/about", "/api/about", "/v1/models", "/metrics", "/openapi.json", f"/pictures/{key}", "/?q=红"]
        for path in [*paths, "/api/search?q=红", f"/api/captions?picture={key}", "/api/captions?picture=x"]:
            assert folder not in other.ask(quote(path, safe="/?=")).text, path
        about = other.ask("/api/about").json
        assert (about["data"], about["model"]) == ("pictures", "model")
        assert other.ask("/v1/models").json["data"][0]["id"] == "model"


def test_a_body_that_does_not_arrive_is_refused(site: Site) -> None:
    with connected(site) as sent:
        sent.sendall(b"POST /api/captions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n\xff")
        assert sent.recv(12) == b"HTTP/1.1 408"


@pytest.mark.parametrize(
    ("path", "query", "status", "said"),
    [
        ("/api/search", {}, 422, "q: Field required"),
        ("/api/search", {"q": ""}, 422, "q: String should have at least 1"),
        ("/api/search", {"q": " \u200b"}, 422, "there is nothing to read in the query"),
        ("/api/search", {"q": "\U0001f9ff\U0001f9ff"}, 422, "vocabulary knows none"),
        ("/api/search", {"q": "红" * 61}, 422, "at most 60"),
        ("/api/search", {"q": "红", "top": 0}, 422, "top: Input should be greater"),
        ("/api/search", {"q": "红", "top": "x"}, 422, "top: Input should be a valid integer"),
        ("/api/captions", {"picture": "../../etc/passwd"}, 404, "no picture with this key"),
        ("/api/search", {"q": "红", "source": "."}, 422, "names no host"),
        ("/api/search", {"q": "红", "source": " .. "}, 422, "names no host"),
        ("/api/align", {"picture": "x", "text": "红"}, 404, "no picture with this key"),
        ("/api/nothing", {}, 404, "openapi.json lists"),
    ],
)
def test_wrong_requests_say_what_is_wrong(site: Site, path: str, query: dict[str, Any], status: int, said: str) -> None:
    answer = site.ask(path, **query)
    assert answer.status == status
    assert said in answer.json["error"]


def test_a_long_text_is_cut_and_says_so(site: Site) -> None:
    assert site.ask("/api/search", q="红色" * 20).json["cut"] is True
    assert site.ask("/api/search", q="红色").json["cut"] is False
    refused = site.ask("/api/align", RED, text="红色" * 20)
    assert (refused.status, "reads 32 tokens" in refused.json["error"]) == (422, True)


def test_nothing_similar_is_said_below_the_threshold(site: Site) -> None:
    """Characters that name no colour have a direction in which no picture lies."""
    about = site.ask("/api/about").json
    threshold = about["calibration"]["threshold"]
    far, near = site.ask("/api/search", q="猫狗").json, site.ask("/api/search", q="红蓝").json
    assert far["stands_out"] < threshold <= near["stands_out"]
    assert (far["nothing_similar"], near["nothing_similar"]) == (True, False)
    assert "Nothing here is similar" in site.ask("/", q="猫狗").text


@pytest.mark.parametrize(
    ("used", "words"), [(False, "there is no score that tells"), (None, "has too few captions to find a score")]
)
def test_a_page_without_a_threshold_says_so(site: Site, used: bool | None, words: str) -> None:
    service = Service(site.service.collection, site.service.model, manifest.load(site.index.uri), LIMITS)
    service.calibration = {} if used is None else {**service.calibration, "used": used, "p": 0.4}
    with served(service) as other:
        assert words in other.ask("/").text
        answer = other.ask("/api/search", q="猫狗").json
        assert (answer["nothing_similar"], answer["threshold"]) == (False, None)


def test_examples_are_frequent_short_chinese_captions(tmp_path: Path) -> None:
    """Two with a character in common come only where there are no others."""
    times = {"大海": 3, "苹果": 2, "苹果树": 2, "一只小狗": 1, "猫": 9, "apple": 8, "一" * 13: 7}
    captions = {f"{number}-{row}.png": [text] for row, text in enumerate(times) for number in range(times[text])}
    pictures = {
        name: colours.encoded(colours.picture("红", size=(64, 64 + place))) for place, name in enumerate(captions)
    }
    found, model = collection.of(colours.folder(tmp_path / "p", captions, pictures)), colours.model("global")
    made = encode.build(found, model, storage.from_path(tmp_path / "i"))
    with served(Service(found, model, made, LIMITS)) as site:
        examples, spread = site.service.examples, site.service.spread
        assert asyncio.run(examples(3)) == ["大海", "苹果", "一只小狗"]
        assert asyncio.run(examples(9)) == ["大海", "苹果", "一只小狗", "苹果树"]
        keys = [each.picture for each in asyncio.run(spread(4))]
        assert keys == [site.index.keys[row] for row in (0, 8, 16, 24)]
        assert [each.picture for each in asyncio.run(spread(99))] == list(site.index.keys)
        assert "Some of the 32 pictures" in site.ask("/").text


def test_a_collection_without_chinese_captions_has_no_examples(tmp_path: Path) -> None:
    found = collection.of(colours.folder(tmp_path / "p", {"a.png": ["apple"]}, {"a.png": RED}))
    model = colours.model("global")
    with served(Service(found, model, encode.build(found, model, storage.from_path(tmp_path / "i")), LIMITS)) as site:
        page = site.ask("/").text
        assert "All pictures" in page and "Queries to begin with" not in page
        assert "Please try Chinese." in site.ask("/", q="apple").text


def test_another_host_is_refused(site: Site) -> None:
    """A page elsewhere whose name resolves to loopback cannot read what is served there."""
    answer = site.ask("/api/about", headers={"Host": "evil.example"})
    assert (answer.status, answer.json["error"]) == (
        400,
        "this server is not served under that host: use the address that it printed",
    )


def test_every_answer_has_the_headers_of_security(site: Site) -> None:
    for path in (
        "/",
        "/api/about",
        "/none",
        "/assets/page.js",
        "/assets/language.js",
        f"/pictures/{site.key_of_hostile}/file",
    ):
        headers = site.ask(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_hostile_captions_and_queries_are_text(site: Site) -> None:
    for text in (
        site.ask("/", q=HOSTILE).text,
        site.ask("/", q="黑").text,
        site.ask(f"/pictures/{site.key_of_hostile}", text=HOSTILE, labels=f"{HOSTILE},红").text,
    ):
        assert "<script>alert" not in text
        assert "{{7*7}}" in text
        assert text.count("</main>") == 1
        assert "&lt;script&gt;" in text


def test_metrics_count_requests_by_route(site: Site) -> None:
    def value(line: str) -> float:
        lines = site.ask("/metrics").text.splitlines()
        return next((float(each.rsplit(" ", 1)[1]) for each in lines if each.startswith(line)), 0.0)

    counted = 'wukong_serve_requests_total{route="/api/search",status="200"}'
    before = value(counted)
    site.ask("/api/search", q="红")
    assert value(counted) == before + 1
    assert value('wukong_serve_seconds_count{route="/api/search"}') >= before + 1
    assert value("wukong_serve_index_pictures") == 22
    site.ask("/x/" + "y" * 50)
    assert value('wukong_serve_requests_total{route="other",status="404"}') >= 1


def test_many_at_once_get_what_each_alone_gets(site: Site) -> None:
    queries = [f"{a}{b}" for a in colours.COLOURS for b in colours.COLOURS] * 2
    alone = [site.ask("/api/search", q=q).json for q in queries]
    with ThreadPoolExecutor(25) as pool:
        assert list(pool.map(lambda q: site.ask("/api/search", q=q).json, queries)) == nearly(alone)


# --- the OpenAPI description


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Right and wrong values of a parameter."""
    text = st.text(max_size=80) | st.sampled_from(["红", "", "\x00", "𠮷", "a" * 500, HOSTILE])
    if schema.get("type") == "array":
        return st.lists(text, max_size=6)
    if schema.get("type") == "integer":
        return st.integers(-5, 200) | text
    return text


OPERATIONS = [
    (path, method)
    for path in ("/api/search", "/api/captions", "/api/align", "/api/classify", "/api/about", "/healthz")
    for method in (("get", "post") if path in ("/api/captions", "/api/align", "/api/classify") else ("get",))
]
BODIES = [RED, RED[:70], b"", b"x", bomb(), cmyk(), bytes(1000)]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_is_asked_the_answer_is_as_described(site: Site, path: str, method: str, data: st.DataObject) -> None:
    """The status and the body are those of the description, and never an error of the server."""
    described = site.ask("/openapi.json").json
    operation = described["paths"][path][method]
    query: dict[str, Any] = {}
    for parameter in operation.get("parameters", []):
        if data.draw(st.integers(0, 9)):
            schema = parameter["schema"]
            query[parameter["name"]] = data.draw(values(schema.get("anyOf", [schema])[0]))
    if "picture" in query and data.draw(st.booleans()):
        query["picture"] = data.draw(st.sampled_from(site.index.keys))
    body = data.draw(st.sampled_from(BODIES) | st.binary(max_size=200)) if method == "post" else None
    answer = site.ask(path, body, **query)
    assert answer.status < 500
    assert str(answer.status) in operation["responses"], answer.text
    schema = operation["responses"][str(answer.status)]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json, {**schema, "components": described["components"]})


def test_every_operation_of_the_description_is_asked(site: Site) -> None:
    """Those of OpenAI's API are in ``test_embeddings_api``."""
    described = site.ask("/openapi.json").json["paths"]
    operations = {(path, method) for path, methods in described.items() for method in methods}
    assert operations == {*OPERATIONS, ("/v1/embeddings", "post"), ("/v1/models", "get")}
