"""Noise as in the results of a real search engine: useless titles, broken links, files of the wrong type.

The noise depends only on the catalogue. A noise URL serves either the bytes of an image in the catalogue or no new
image, so that a split by caption and image keeps the held-out images out of training.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from PIL import Image

from infra.corpus import Corpus, Entry
from infra.corpus.pictures import on_white
from infra.corpus.sources import spread
from wukong.data.decoding import FORMATS

SHARE = 0.12
"""Share of noise in all distinct URLs of the site."""

RETRIED_SHARE = 0.005
"""Share of the corpus's own images whose first request is answered with 503."""


class Kind(StrEnum):
    """What is wrong with a URL."""

    BOILERPLATE = "boilerplate title"
    FILE_NAME = "file name as title"
    MISSING = "broken link"
    THUMBNAIL = "thumbnail"
    BANNER = "banner"
    HTML = "HTML instead of a picture"
    TRUNCATED = "truncated JPEG"
    LONG = "over-long title"
    FOREIGN = "title without Chinese"
    PERSON = "person's name in the title"
    SENSITIVE = "sensitive word in the title"
    DISALLOWED = "disallowed by robots.txt"


PERCENT = {
    Kind.BOILERPLATE: 32,
    Kind.FILE_NAME: 12,
    Kind.MISSING: 14,
    Kind.THUMBNAIL: 14,
    Kind.BANNER: 6,
    Kind.HTML: 5,
    Kind.TRUNCATED: 4,
    Kind.LONG: 4,
    Kind.FOREIGN: 3,
    Kind.PERSON: 3,
    Kind.SENSITIVE: 1,
    Kind.DISALLOWED: 2,
}
"""Share of each kind in the noise, in percent."""

_BOILERPLATE = ("查看源网页", "展开全文", "摄影部落")
_FILE_NAMES = ("{0:03d}.jpg", "IMG_{0:04d}.JPG", "DSC{0:05d}", "微信图片_202103{0:06d}.jpg", "{1}.png")
_LONG = "{title}图片大全_{title}高清素材免费下载_{title}背景壁纸_第{number}页_摄影部落图库网站首页推荐"
_FOREIGN = ("Free vector icon pack {number}", "World's best sticker #{number}", "Stock photo {number} - royalty free")
_SURNAMES = "王李张刘陈杨赵黄周吴徐孙马朱胡郭何林高罗"
_GIVEN = ("建国", "丽华", "志强", "秀英", "海燕", "文博", "晓明", "雨桐", "国庆", "桂芳", "俊杰", "思远", "佳怡")
_PERSON = ("{name}和他的{title}", "{name}拍摄的{title}", "{name}最喜欢{title}", "{title}，作者{name}")
_SENSITIVE = ("线上娱乐城{title}", "代开发票{title}", "六合彩{title}图库", "办假证{title}")


@dataclass(frozen=True)
class Listing:
    """One URL of the site.

    Attributes:
        kind: the kind of noise; None for an image of the corpus.
        entry: the image of the corpus that is served, or from which the noise is made.
    """

    path: str
    title: str
    keywords: tuple[str, ...]
    entry: Entry
    kind: Kind | None = None


def listings(corpus: Corpus) -> list[Listing]:
    """Return all URLs of the site: the corpus's images, then the noise."""
    good = [Listing(entry.path, entry.title, entry.keywords, entry) for entry in corpus.entries]
    return good + noise(corpus.entries)


def noise(entries: Sequence[Entry]) -> list[Listing]:
    """Return the noise for these images, in the proportions of ``PERCENT``."""
    # Not from the other two sources, because their images are held out.
    plain = [entry for entry in entries if entry.source in {"noto", "iconpark"}] or list(entries)
    bases = sorted(plain, key=lambda entry: (spread(entry.path, "noise", 2**32), entry.path))
    total = round(len(entries) * SHARE / (1 - SHARE))
    result = []
    begin = 0
    for kind, end in _bounds(total):
        for index in range(end - begin):
            base = bases[(begin + index) % len(bases)]
            result.append(_listing(kind, index, end - begin, base))
        begin = end
    return result


def _bounds(total: int) -> list[tuple[Kind, int]]:
    bounds, percent = [], 0
    for kind, share in PERCENT.items():
        percent += share
        bounds.append((kind, round(total * percent / 100)))
    return bounds


def _listing(kind: Kind, index: int, count: int, base: Entry) -> Listing:
    code = hashlib.sha256(f"{kind}\n{index}\n{base.path}".encode()).hexdigest()
    made = kind in {Kind.MISSING, Kind.THUMBNAIL, Kind.BANNER, Kind.HTML, Kind.TRUNCATED}
    suffix = ".jpg" if made else Path(base.path).suffix
    folder = "private" if kind is Kind.DISALLOWED else "upload"
    path = f"/{folder}/20{index % 9 + 15}/{code[:2]}/{code[2:14]}{suffix}"
    title = _title(kind, index, count, base, code)
    return Listing(path, title, (base.title, *base.keywords), base, kind)


def _title(kind: Kind, index: int, count: int, base: Entry, code: str) -> str:
    def pick(choices: Sequence[str]) -> str:
        return choices[index % len(choices)]

    match kind:
        case Kind.BOILERPLATE:
            # A title is boilerplate only if it is frequent, so a small corpus uses fewer different ones.
            return pick(_BOILERPLATE[: max(1, count // 15)])
        case Kind.FILE_NAME:
            return pick(_FILE_NAMES).format(index, code[:16])
        case Kind.LONG:
            return _LONG.format(title=base.title, number=index + 2)
        case Kind.FOREIGN:
            return pick(_FOREIGN).format(number=index + 1)
        case Kind.PERSON:
            name = _SURNAMES[index % len(_SURNAMES)] + _GIVEN[index % len(_GIVEN)]
            return pick(_PERSON).format(name=name, title=base.title)
        case Kind.SENSITIVE:
            return pick(_SENSITIVE).format(title=base.title)
        case _:
            return base.title


def content(listing: Listing, file: Path) -> tuple[bytes, str] | None:
    """Return the bytes and MIME type that are served at a listing's path; None for a broken link.

    Args:
        listing: the requested listing.
        file: path of the image of its entry.
    """
    data = file.read_bytes()
    match listing.kind:
        case Kind.MISSING:
            return None
        case Kind.HTML:
            page = f"<!DOCTYPE html><html><head><title>{listing.title}</title></head><body>请登录后查看</body></html>"
            return page.encode(), ("text/html; charset=utf-8" if len(listing.path) % 2 else "image/jpeg")
        case Kind.THUMBNAIL:
            return thumbnail(data, 120), "image/jpeg"
        case Kind.BANNER:
            picture = on_white(Image.open(io.BytesIO(data), formats=FORMATS))
            picture.thumbnail((210, 210))
            banner = Image.new("RGB", (880, 220), "white")
            banner.paste(picture, (8, (220 - picture.height) // 2))
            return _jpeg(banner), "image/jpeg"
        case Kind.TRUNCATED:
            whole = _jpeg(on_white(Image.open(io.BytesIO(data), formats=FORMATS)))
            return whole[: len(whole) * 55 // 100], "image/jpeg"
        case _:
            return data, listing.entry.mime


def shown_size(listing: Listing) -> tuple[int, int]:
    """Return the width and height that the engine claims; one in twelve is wrong, as on Baidu."""
    match listing.kind:
        case Kind.THUMBNAIL:
            width, height = 120, 120
        case Kind.BANNER:
            width, height = 880, 220
        case _:
            width, height = listing.entry.width, listing.entry.height
    if spread(listing.path, "size", 12) == 0:
        return width * 2, height * 2
    return width, height


def answers_503_first(listing: Listing) -> bool:
    """Return whether the first request for this image fails."""
    return listing.kind is None and spread(listing.path, "503", 1000) < RETRIED_SHARE * 1000


def thumbnail(data: bytes, side: int) -> bytes:
    """Return an image as a JPEG whose longer side is ``side`` pixels."""
    picture = on_white(Image.open(io.BytesIO(data), formats=FORMATS))
    picture.thumbnail((side, side))
    return _jpeg(picture)


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()
