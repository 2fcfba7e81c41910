"""Data docs without a network: parsed for whatever a browser would load, and shown by a real one where there is one."""

import http.server
import re
import shutil
import subprocess
import threading
from copy import copy
from html.parser import HTMLParser
from pathlib import Path

import great_expectations.expectations as gxe
import polars as pl
import pytest

from wukong.validate import gate as runner

pytestmark = pytest.mark.slow

ELSEWHERE = "http://elsewhere.test"
HOSTILE = [
    f'<script src="{ELSEWHERE}/a.js"></script>',
    f'<img src="{ELSEWHERE}/b.png">',
    f"<link rel=stylesheet href={ELSEWHERE}/c.css>",
    f"<style>@import url({ELSEWHERE}/d.css)</style>",
    f'<div style="background: url({ELSEWHERE}/e.png)" onmouseover="alert(1)">猫',
    f'<svg><image href="{ELSEWHERE}/f.svg"></svg><video poster="{ELSEWHERE}/g.png" src="{ELSEWHERE}/h.mp4">',
    f'<iframe src="{ELSEWHERE}/i.html"></iframe><meta http-equiv="refresh" content="0;url={ELSEWHERE}/j">',
    f"<script>fetch('{ELSEWHERE}/k')",
    "<svg/onload=alert(1)>",
    "<svg/onload=alert(1) x",
    '<details/open/ontoggle="alert(1)">',
    "<input/autofocus/onfocus=alert(1)>",
    "a < b &amp; $c ${d} <人名>",
]
LOADING = {"script", "img", "iframe", "object", "embed", "source", "video", "audio", "track", "image", "base", "input"}


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.policy = ""
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        if tag in LOADING and (values.get("src") or values.get("href") or tag in ("script", "base")):
            self.loads.append(f"<{tag} {values}>")
        if tag == "link" or any(name.startswith("on") or name in ("srcset", "poster") for name in values):
            self.loads.append(f"<{tag} {values}>")
        if tag == "meta" and (values.get("http-equiv") or "").lower() == "content-security-policy":
            self.policy = values["content"] or ""
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    rows = pl.DataFrame({"caption": [*HOSTILE, "好"], "key": [f"k{n}" for n in range(len(HOSTILE) + 1)]})
    expectations = [
        gxe.ExpectColumnValueLengthsToBeBetween(column="caption", max_value=3, meta={"name": "length"}),
        gxe.ExpectColumnValuesToMatchRegex(column="key", regex="^k", meta={"name": "keys"}),
    ]
    result = runner.run_suite("pairs", rows, [copy(each) for each in expectations])
    runner.build_docs({"pairs-00000": result}, {"pairs": expectations}, folder)
    return folder


def pages(docs: Path) -> dict[str, Page]:
    return {str(path.relative_to(docs)): Page(path.read_text(encoding="utf-8")) for path in docs.rglob("*.html")}


def test_no_page_loads_anything(docs: Path) -> None:
    found = pages(docs)
    assert len(found) == 3
    for name, page in found.items():
        assert page.loads == [], name
        assert "default-src 'none'" in page.policy, name
    for style in re.findall(
        r"<style.*?</style>", "".join(path.read_text() for path in docs.rglob("*.html")), re.DOTALL
    ):
        assert "url(" not in style and "@import" not in style
    assert {path.suffix for path in docs.rglob("*") if path.is_file()} == {".html"}, "pictures and fonts nobody shows"


def test_what_a_caption_holds_is_text(docs: Path) -> None:
    """Parsed as a browser parses it, the page's text has the captions, and they make no tag."""
    (result,) = docs.glob("validations/*/*/*/pairs-00000.html")
    page = Page(result.read_text(encoding="utf-8"))
    text = page.text.replace(" ", "")
    shown = [caption for caption in HOSTILE if caption.replace(" ", "") in text]
    assert len(shown) == 5, "as many as Great Expectations samples"
    assert not page.tags & {"svg", "details", "video", "script", "img"}


@pytest.mark.parametrize("caption", HOSTILE)
def test_each_hostile_caption_is_text(caption: str, tmp_path: Path) -> None:
    expectations = [gxe.ExpectColumnValueLengthsToBeBetween(column="caption", max_value=3, meta={"name": "length"})]
    rows = pl.DataFrame({"caption": [caption], "key": ["k"]})
    result = runner.run_suite("pairs", rows, [copy(each) for each in expectations])
    runner.build_docs({"pairs-00000": result}, {"pairs": expectations}, tmp_path)
    (file,) = tmp_path.glob("validations/*/*/*/pairs-00000.html")
    page = Page(file.read_text(encoding="utf-8"))
    assert caption.replace(" ", "") in page.text.replace(" ", "")
    assert not page.tags & {"svg", "details", "video", "script", "img", "iframe", "人名"}


def test_the_first_page_leads_to_all_and_the_pages_say_what_failed(docs: Path) -> None:
    first = pages(docs)["index.html"]
    assert "1 of 2" in first.text and "pairs-00000" in first.text
    for link in first.links:
        assert (docs / link).is_file(), link
    (result,) = docs.glob("validations/*/*/*/pairs-00000.html")
    text = " ".join(Page(result.read_text(encoding="utf-8")).text.split())
    assert "Run Name pairs-00000" in text and "__none__" not in text
    for expected in ("Evaluated Expectations 2", "Successful Expectations 1", "caption", "92.8"):
        assert expected in text, expected


@pytest.fixture
def asked() -> "tuple[list[str], int]":
    """What a browser asks for, and the port of the proxy that it asks."""
    seen: list[str] = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def _any(self) -> None:
            seen.append(self.path)
            self.send_error(404)

        do_GET = do_CONNECT = _any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return seen, server.server_port


@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no chromium here")
def test_a_browser_asks_for_nothing_and_shows_all(docs: Path, asked: "tuple[list[str], int]", tmp_path: Path) -> None:
    seen, port = asked
    (result,) = docs.glob("validations/*/*/*/pairs-00000.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    options += [f"--proxy-server=http://127.0.0.1:{port}", "--disable-background-networking"]
    for page, expected in ((docs / "index.html", "1 of 2"), (result, "Unsuccessful Expectations")):
        shown = subprocess.run(
            ["chromium", *options, page.as_uri()], capture_output=True, text=True, timeout=240, check=True
        )
        assert expected in shown.stdout
    control = tmp_path / "control.html"
    control.write_text(f'<img src="{ELSEWHERE}/control.png"><p>here</p>')
    subprocess.run(["chromium", *options, control.as_uri()], capture_output=True, timeout=240, check=True)
    asked_for = [path for path in seen if "elsewhere.test" in path or "cdn" in path or "bootstrap" in path]
    assert asked_for == [f"{ELSEWHERE}/control.png"], seen
