"""SearXNG, a self-hosted meta search engine, through its JSON API."""

from urllib.parse import urlencode, urljoin

from wukong.crawl.engine import Result, clean, parsed
from wukong.crawl.source import Searched


class SearXNG:
    """A SearXNG instance whose settings allow the JSON format.

    Args:
        endpoint: address, for instance ``https://searx.example.org/search``.
    """

    name = "searxng"

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def page_url(self, query: str, page: int) -> str:
        """Return the URL of one page of results; the instance chooses the number of results."""
        fields = {"q": query, "categories": "images", "format": "json", "pageno": page + 1}
        return f"{self._endpoint}?{urlencode(fields)}"

    def parse(self, body: bytes) -> list[Result]:
        """Parse ``results[]``: ``img_src`` and ``title``."""
        answer = parsed(body.decode("utf-8-sig", errors="replace"))
        items = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(items, list):
            raise ValueError("the answer has no results[]")  # noqa: TRY004
        results = []
        for item in items:
            if not isinstance(item, dict) or not isinstance(item.get("img_src"), str) or not item["img_src"]:
                continue
            title, page = item.get("title"), item.get("url")
            page_url = clean(page) if isinstance(page, str) and page else None
            url = _absolute(clean(item["img_src"]), page_url or self._endpoint)
            results.append(Result(url, clean(title) if isinstance(title, str) else "", page_url))
        return results


def _absolute(url: str, page: str) -> str:
    """Complete URLs of the form //host/path, which some engines return; return invalid URLs unchanged.

    Invalid URLs get their status when they are fetched.
    """
    try:
        return urljoin(page, url)
    except ValueError:
        return url


SOURCE = Searched(name=SearXNG.name, engine=SearXNG)
