"""A small image search for a cluster without a way out: it draws its pictures itself and answers as Baidu's does.

It runs in a pod of the data image, from a ConfigMap: ``python image_search.py PORT``. Equal paths give equal bytes, so
that two crawls of it are equal.
"""

import io
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

from PIL import Image, ImageDraw

from infra.site import acjson

HOST = "search.wukong.test"
"""Of the URLs in its answers; ``WUKONG_CONNECT_TO`` leads there."""

COLOURS = {
    "红色": (200, 30, 30),
    "橙色": (230, 130, 20),
    "黄色": (235, 215, 40),
    "绿色": (40, 150, 50),
    "青色": (40, 180, 180),
    "蓝色": (40, 70, 200),
    "紫色": (130, 50, 160),
    "白色": (235, 235, 235),
    "黑色": (25, 25, 25),
    "灰色": (125, 125, 125),
}
WORDS = ("小猫", "小狗", "小鸟", "金鱼", "白马", "水牛", "山羊", "公鸡")
"""What can be searched for: each has a picture of every colour."""
BANNER = "/pictures/banner-3.jpg"
"""Found for the first word too, and too wide for the filter, so that each run has dropped a picture."""

_SIZE = (320, 240)
_BANNER_SIZE = (960, 240)
_GRID = (8, 6)


def paths() -> dict[str, str]:
    """Title of every picture, by path."""
    kept = {
        f"/pictures/{word_number}-{colour_number}.jpg": f"草地上一只{colour}的{word}"
        for word_number, word in enumerate(WORDS)
        for colour_number, colour in enumerate(COLOURS)
    }
    return {**kept, BANNER: f"草地上一只金色的{WORDS[0]}"}


def size(path: str) -> tuple[int, int]:
    """Width and height of a picture in pixels."""
    return _BANNER_SIZE if path == BANNER else _SIZE


def picture(path: str) -> bytes:
    """A JPEG in the colour of the title, with a pattern that no other picture has."""
    number = int(path.rpartition("-")[2].removesuffix(".jpg"))
    colour, generator = list(COLOURS.values())[number], random.Random(path)
    small = Image.new("RGB", _GRID)
    small.putdata(
        [
            tuple(max(0, min(255, channel + generator.randint(-70, 70))) for channel in colour)
            for _ in range(_GRID[0] * _GRID[1])
        ]
    )
    drawn = small.resize(size(path), Image.Resampling.BICUBIC)
    corners = [generator.randint(0, side - 80) for side in size(path)]
    ImageDraw.Draw(drawn).ellipse((*corners, corners[0] + 80, corners[1] + 80), fill=colour)
    target = io.BytesIO()
    drawn.save(target, "JPEG", quality=90)
    return target.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers searches and requests for pictures."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer one request."""
        address = urlsplit(self.path)
        path, titles = unquote(address.path), paths()
        if path == "/robots.txt":
            self._answer(b"User-agent: *\nDisallow:\n", "text/plain")
        elif path.startswith("/search/acjson"):
            self._answer(_search(parse_qs(address.query)).encode(), "text/plain; charset=utf-8")
        elif path in titles:
            self._answer(picture(path), "image/jpeg")
        else:
            self._answer(b"nothing here", "text/plain", 404)

    def _answer(self, body: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _search(asked: dict[str, list[str]]) -> str:
    word = (asked.get("word") or asked.get("queryWord") or [""])[0]
    offset, rows = (int((asked.get(name) or [default])[0]) for name, default in (("pn", "0"), ("rn", "30")))
    found = [(path, title) for path, title in paths().items() if word and word in title]
    page = [
        acjson.ImageResult(
            url=f"http://{HOST}{quote(path)}",
            thumbnail_url=f"http://{HOST}{quote(path)}",
            page_url=f"http://{HOST}/page{quote(path)}",
            title=title,
            width=size(path)[0],
            height=size(path)[1],
            kind="jpg",
        )
        for path, title in found[offset : offset + rows]
    ]
    return acjson.answer(word, page, len(found), offset)


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
