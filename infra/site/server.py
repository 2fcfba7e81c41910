"""The site's HTTP server: search, images, thumbnails and robots.txt."""

import re
import socket
from collections.abc import Callable

from aiohttp import web

from infra.corpus import HOST, Corpus
from infra.site import acjson, noise
from infra.site.noise import Listing
from infra.site.search import Index

_ROBOTS = "User-agent: *\nDisallow: /private/\n"
_REPEATS_AFTER = 1000
_MAX_PAGE = 60
_THUMBNAIL_SIDE = 180


class Site:
    """The site of one corpus; it ignores the Host header of requests.

    Args:
        corpus: the corpus to serve.
        origin: the beginning of the URLs in answers.
    """

    def __init__(self, corpus: Corpus, origin: str = f"http://{HOST}") -> None:
        self._corpus = corpus
        self._origin = origin.rstrip("/")
        listings = noise.listings(corpus)
        self._by_path = {listing.path: listing for listing in listings}
        self._index = Index(listings)
        self._failed_once: set[str] = set()

    def application(self) -> web.Application:
        """Create the aiohttp application."""
        application = web.Application()
        application.router.add_get("/search/acjson", self._search)
        # The same search under the name of a sample, so that crawls of different samples have different addresses.
        application.router.add_get("/search/acjson/{sample}", self._search)
        application.router.add_get("/robots.txt", self._robots)
        application.router.add_get("/thumb/{path:.+}", self._thumbnail)
        application.router.add_get("/{path:.+}", self._picture)
        return application

    async def _robots(self, _: web.Request) -> web.Response:
        return web.Response(text=_ROBOTS)

    async def _search(self, request: web.Request) -> web.Response:
        word = request.query.get("word") or request.query.get("queryWord") or ""
        offset = _number(request, "pn", 0)
        rows = min(_number(request, "rn", 30), _MAX_PAGE)
        hits = self._index.search(word)
        # Baidu shows about a thousand results; later pages repeat them.
        begin = offset % _REPEATS_AFTER
        page = hits[begin : min(begin + rows, _REPEATS_AFTER)]
        text = acjson.answer(word, [self._found(listing) for listing in page], len(hits), offset)
        return web.Response(text=text, content_type="text/plain")

    def _found(self, listing: Listing) -> acjson.ImageResult:
        width, height = noise.shown_size(listing)
        return acjson.ImageResult(
            url=self._origin + listing.path,
            thumbnail_url=f"{self._origin}/thumb{listing.path}",
            page_url=f"{self._origin}/page{re.sub(r'[.][a-z]+$', '.html', listing.path)}",
            title=listing.title,
            width=width,
            height=height,
            kind=listing.path.rpartition(".")[2],
        )

    async def _picture(self, request: web.Request) -> web.Response:
        listing = self._by_path.get(request.path)
        if listing is None:
            raise web.HTTPNotFound(text="没有找到")
        if noise.answers_503_first(listing) and listing.path not in self._failed_once:
            self._failed_once.add(listing.path)
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "1"})
        served = noise.content(listing, self._corpus.file(listing.entry))
        if served is None:
            raise web.HTTPNotFound(text="没有找到")
        data, mime = served
        return web.Response(body=data, headers={"Content-Type": mime})

    async def _thumbnail(self, request: web.Request) -> web.Response:
        listing = self._by_path.get("/" + request.match_info["path"])
        if listing is None:
            raise web.HTTPNotFound(text="没有找到")
        data = noise.thumbnail(self._corpus.file(listing.entry).read_bytes(), _THUMBNAIL_SIDE)
        return web.Response(body=data, content_type="image/jpeg")


def serve(site: Site, port: int, ready: Callable[[int], None]) -> None:
    """Serve on 127.0.0.1 until SIGTERM or SIGINT.

    Args:
        site: the site to serve.
        port: the port; 0 for any free one.
        ready: called with the port when connections are accepted.

    Raises:
        OSError: the port is in use.
    """
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    # The socket listens already, so clients can connect as soon as they know the port.
    ready(listener.getsockname()[1])
    web.run_app(site.application(), sock=listener, access_log=None, print=None, handle_signals=True)


def _number(request: web.Request, name: str, default: int) -> int:
    value = request.query.get(name, "")
    return int(value) if value.isascii() and value.isdigit() else default
