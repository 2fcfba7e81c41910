"""Answers in the format of Baidu's image search at ``/search/acjson``."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_PLAIN = "7dgjmoru140852vsnkheb963wtqplifca"
_CODED = "0123456789abcdefghijklmnopqrstuvw"
_SUBSTITUTION = str.maketrans(_PLAIN, _CODED) | {ord(":"): "_z2C$q", ord("."): "_z&e3B", ord("/"): "AzdH3F"}


@dataclass(frozen=True)
class ImageResult:
    """One search result: the URLs of image, thumbnail and page; and title, size and type as the engine claims them."""

    url: str
    thumbnail_url: str
    page_url: str
    title: str
    width: int
    height: int
    kind: str


def encode_url(url: str) -> str:
    """Encode a URL like ``objURL``: substitute letters and digits, and write groups for ``:``, ``.`` and ``/``."""
    return url.translate(_SUBSTITUTION)


def answer(word: str, found: Sequence[ImageResult], total: int, offset: int) -> str:
    """Return the text of an answer. It is not strict JSON: single quotes are escaped, as Baidu does.

    Args:
        word: the query; ``fromPageTitle`` marks it with ``<strong>`` in titles that contain it.
        found: the results of this page.
        total: total number of results.
        offset: position of the first result of this page.
    """
    value = {
        "queryEnc": word,
        "queryExt": word,
        "listNum": total,
        "displayNum": total,
        "bdFmtDispNum": f"约{total:,}",
        "data": [*(_item(result, word, offset + rank) for rank, result in enumerate(found)), {}],
    }
    return json.dumps(value, ensure_ascii=False).replace("'", "\\'")


def _item(result: ImageResult, word: str, position: int) -> dict[str, Any]:
    title = html.escape(result.title, quote=False)
    return {
        "pageNum": position,
        "thumbURL": result.thumbnail_url,
        "middleURL": result.thumbnail_url,
        "hoverURL": result.thumbnail_url,
        "objURL": encode_url(result.url),
        "fromURL": encode_url(result.page_url),
        "fromPageTitle": title.replace(html.escape(word, quote=False), f"<strong>{word}</strong>") if word else title,
        "fromPageTitleEnc": result.title,
        "replaceUrl": [{"ObjURL": result.url, "ObjUrl": result.url, "FromURL": result.page_url}],
        "width": result.width,
        "height": result.height,
        "type": result.kind,
    }
