"""Baidu image search, through the JSON interface of its own result page (``acjson``)."""

import html
import re
from urllib.parse import urlencode

from wukong.crawl.engine import EngineRefusedError, Result, clean, parsed
from wukong.crawl.source import Searched

PAGE = 30
_CAPTCHA = ("wappass.baidu.com", "百度安全验证", "captcha")
_TAG = re.compile(r"</?strong>", re.IGNORECASE)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

_GROUPS = (("_z2C$q", ":"), ("_z&e3B", "."), ("AzdH3F", "/"))
_LETTERS = str.maketrans("0123456789abcdefghijklmnopqrstuvw", "7dgjmoru140852vsnkheb963wtqplifca")


def decode_url(encoded: str) -> str:
    """Decode ``objURL``, which Baidu writes in a substitution cipher; return other URLs unchanged."""
    if encoded.startswith(("http://", "https://")):
        return encoded
    # The groups contain letters of the alphabet, so split at the groups and translate only the text between them.
    pattern = "|".join(re.escape(group) for group, _ in _GROUPS)
    meaning = dict(_GROUPS)
    return "".join(meaning.get(piece, piece.translate(_LETTERS)) for piece in re.split(f"({pattern})", encoded))


class Baidu:
    """The engine at an ``acjson`` address.

    Args:
        endpoint: address, for instance ``https://image.baidu.com/search/acjson``.
    """

    name = "baidu"

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def page_url(self, query: str, page: int) -> str:
        """Return the URL of one page of 30 results."""
        fields = {
            "tn": "resultjson_com",
            "ipn": "rj",
            "word": query,
            "queryWord": query,
            "pn": page * PAGE,
            "rn": PAGE,
            "ie": "utf-8",
            "oe": "utf-8",
        }
        return f"{self._endpoint}?{urlencode(fields)}"

    def parse(self, body: bytes) -> list[Result]:
        """Parse ``data[]``: ``objURL`` or a replacement as URL, and the page's title as caption."""
        text = body.decode("utf-8-sig", errors="replace")
        try:
            answer = _loads(text)
        except ValueError:
            if any(sign in text for sign in _CAPTCHA):
                raise EngineRefusedError("a captcha page") from None
            raise
        if not isinstance(answer, dict):
            raise ValueError("the answer is not an object")  # noqa: TRY004
        if answer.get("antiFlag"):
            raise EngineRefusedError(f"antiFlag {clean(str(answer.get('message', '')))}".strip())
        items = answer.get("data")
        if not isinstance(items, list):
            raise ValueError("the answer has no data[]")  # noqa: TRY004
        return [result for item in items if isinstance(item, dict) and (result := _result(item)) is not None]


def _loads(text: str) -> object:
    try:
        return parsed(text)
    except ValueError:
        # Baidu escapes single quotes, which JSON forbids. Escapes are read in order, so that \\' is not changed.
        return parsed(_ESCAPE.sub(lambda m: "'" if m[1] == "'" else m[0], text))


def _result(item: dict[str, object]) -> Result | None:
    url = _address(item)
    if url is None:
        return None
    title = item.get("fromPageTitleEnc") or item.get("fromPageTitle") or ""
    caption = clean(html.unescape(_TAG.sub("", title))) if isinstance(title, str) else ""
    page = item.get("fromURL")
    return Result(url, caption, clean(decode_url(page)) if isinstance(page, str) and page else None)


def _address(item: dict[str, object]) -> str | None:
    encoded = item.get("objURL")
    if isinstance(encoded, str) and encoded:
        url = clean(decode_url(encoded))
        if url.startswith(("http://", "https://")):
            return url
    replacements = item.get("replaceUrl")
    others = (
        [replacement.get("ObjURL") for replacement in replacements if isinstance(replacement, dict)]
        if isinstance(replacements, list)
        else []
    )
    others += [item.get(name) for name in ("hoverURL", "middleURL", "thumbURL")]
    for other in others:
        if isinstance(other, str) and other.startswith(("http://", "https://")):
            return clean(other)
    return None


SOURCE = Searched(name=Baidu.name, engine=Baidu)
