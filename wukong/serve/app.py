"""The search page and its JSON API as one ASGI application."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wukong.crawl import uploads
from wukong.crawl.uploads import RefusedError
from wukong.serve import answers, openai_api, search_pages
from wukong.serve.embedder import Embedder
from wukong.serve.filters import Filters
from wukong.serve.metrics import Metrics
from wukong.serve.service import Picture, Service

log = logging.getLogger(__name__)

_HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_ALL_HOSTS = "*"
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]]+?)\.?(:\d{1,5})?")
_OTHER_HOST = "this server is not served under that host: use the address that it printed"
_API_VERSION = "1"
_UNREAD_BYTES, _UNREAD_SECONDS = 64 * 2**20, 30.0
"""What is read and thrown away of a body behind an early answer: who still sends when a connection ends loses it."""
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.Problem, "description": text}
    for status, text in {
        400: "The body is missing, or the host is not served.",
        404: "The collection has no such picture.",
        408: "The picture arrives too slowly.",
        413: "The picture is too large.",
        415: "The body is no picture of a known type.",
        422: "A parameter is wrong, or the picture is damaged.",
        503: "Too many requests wait, or no part of the index answers.",
    }.items()
}
_PICTURE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of the picture's file.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in uploads.TYPES},
    }
}


def create_app(service: Embedder, hosts: Sequence[str] = (_ALL_HOSTS,), metrics: Metrics | None = None) -> FastAPI:
    """Make the application.

    Args:
        service: what answers; the application closes it when it ends. One without a collection gives vectors alone.
        hosts: names under which it may be asked, without ports, IPv6 addresses in brackets; ``*`` for any. A server on
            loopback names its own, so that no web page can reach it under a name that resolves to loopback.
        metrics: those of the server, if it has served other versions before.
    """
    metrics = metrics or Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="Wukong search",
        version=_API_VERSION,
        description="Search pictures by Chinese text and captions by picture, align words with patches, classify; get "
        "vectors of texts and pictures by OpenAI's API.",
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_server(app, metrics)
    openai_api.add(app, service)
    if isinstance(service, Service):
        metrics.serve(service)
        _add_api(app, service)
        search_pages.add(app, service, metrics)
    app.add_middleware(Guard, metrics=metrics, hosts=hosts)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        if isinstance(error, openai_api.WrongError):
            return openai_api.problem(error.status, str(error), error.param, error.code)
        return _problem(request.url.path, error.status, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{entry['loc'][-1]}: {entry['msg']}" for entry in error.errors())
        return _problem(request.url.path, 422, f"{wrong}. /openapi.json says what each parameter takes")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        wrong = f"{error.detail}: /openapi.json lists paths and methods"
        answer = _problem(request.url.path, error.status_code, wrong)
        answer.headers.update(error.headers or {})
        return answer

    return app


def _problem(path: str, status: int, message: str) -> JSONResponse:
    if path.startswith(openai_api.PREFIX):
        return openai_api.problem(status, message)
    return JSONResponse({"error": message}, status, {"retry-after": "1"} if status == 503 else None)


class Guard:
    """Around every request: the host, headers for security, metrics, and an answer to errors without their traceback.

    Args:
        app: the application inside.
        metrics: counts the requests.
        hosts: see ``create_app``.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: Sequence[str]) -> None:
        self._app, self._metrics, self._hosts = app, metrics, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, ended, status = time.perf_counter(), 0.0, 0
        body = _Body(scope, receive)

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            elif not message.get("more_body", False) and body.is_left:
                nonlocal ended
                await send({**message, "more_body": True})
                ended = time.perf_counter()
                await body.read_to_end()
                message = {"type": "http.response.body"}
            await send(message)

        try:
            wrong = "" if self._served(scope) else _OTHER_HOST
            if sum(name == b"host" for name, _ in scope["headers"]) > 1:
                wrong = "the request has several headers Host: send one"
            answer = _problem(scope["path"], 400, wrong) if wrong else self._app
            await answer(scope, body.receive, send_guarded)
        except ClientDisconnect:
            log.info("%s %s: the client left before it had sent all", scope["method"], scope["path"])
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise
            await _problem(scope["path"], 500, "an error in the server; its log says more")(
                scope, body.receive, send_guarded
            )
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.observe(route, status, (ended or time.perf_counter()) - began)

    def _served(self, scope: Scope) -> bool:
        if _ALL_HOSTS in self._hosts:
            return True
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        match = _HOST.fullmatch(host.lower())
        return match is not None and match["name"] in self._hosts


class _Body:
    """The body of a request, of which an application may leave a part unread.

    Attributes:
        is_left: whether a part is left that the client sends whatever the answer is.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = dict(scope["headers"])
        self._receive = receive
        has_body = b"content-length" in headers or b"transfer-encoding" in headers
        is_long = uploads.is_above(headers.get(b"content-length", b"0").decode("latin-1"), _UNREAD_BYTES)
        # Whoever waits for "100 Continue" sends nothing before it.
        self.is_left = has_body and not is_long and b"expect" not in headers

    async def receive(self) -> Message:
        """Receive the next part."""
        message = await self._receive()
        self.is_left = self.is_left and message.get("more_body", False)
        return message

    async def read_to_end(self) -> None:
        """Throw away what is left, within limits."""
        read = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_UNREAD_SECONDS):
                while self.is_left and read < _UNREAD_BYTES:
                    read += len((await self.receive()).get("body", b""))


async def _filters(asked: Annotated[Filters, Query()]) -> Filters:
    """Alone in a function, because FastAPI divides a model into parameters only where there are no others."""
    return asked


def _add_api(app: FastAPI, service: Service) -> None:
    limits = service.limits
    text = Query(min_length=1, max_length=limits.characters)
    key = Query(description="Key of a picture of the collection.", max_length=64)
    count = Query(ge=1, le=limits.results, description="How many results, of a page.")
    label = Query(min_length=2, max_length=limits.labels, description="Two or more labels; repeat the parameter.")

    async def sent(request: Request) -> Picture:
        return await service.sent(request.stream(), request.headers.get("content-length"))

    number = Query(ge=1, le=limits.ranks, description="Which page of the results, in an order that stays the same.")

    @app.get("/api/search", responses=_REFUSALS, tags=["search"])
    async def search(
        request: Request,
        q: Annotated[str, text],
        filters: Annotated[Filters, Depends(_filters)],
        top: Annotated[int, count] = 20,
        page: Annotated[int, number] = 1,
    ) -> answers.SearchAnswer:
        """Find the pictures that are most similar to a text, among those that pass the filters."""
        # FastAPI takes the last one of several.
        Filters.refuse_repeated(name for name, _ in request.query_params.multi_items())
        return await service.search(q, top, page, filters)

    @app.get("/api/captions", responses=_REFUSALS, tags=["search"])
    async def captions(picture: Annotated[str, key], top: Annotated[int, count] = 10) -> answers.CaptionsAnswer:
        """Find captions, and other pictures, for a picture of the collection."""
        return await service.captions(await service.stored(picture), top)

    @app.post("/api/captions", responses=_REFUSALS, tags=["search"], openapi_extra=_PICTURE_BODY)
    async def captions_of_sent(request: Request, top: Annotated[int, count] = 10) -> answers.CaptionsAnswer:
        """Find captions and pictures for a picture that is sent as the body."""
        return await service.captions(await sent(request), top)

    @app.get("/api/align", responses=_REFUSALS, tags=["understand"])
    async def align(
        picture: Annotated[str, key],
        text: Annotated[str, text],
        word: Annotated[str | None, Query(max_length=limits.characters, description="A part of the text.")] = None,
    ) -> answers.AlignAnswer:
        """Find which token of a text each patch of a picture of the collection matches best."""
        return await service.align(await service.stored(picture), text, word)

    @app.post("/api/align", responses=_REFUSALS, tags=["understand"], openapi_extra=_PICTURE_BODY)
    async def align_sent(
        request: Request,
        text: Annotated[str, text],
        word: Annotated[str | None, Query(max_length=limits.characters, description="A part of the text.")] = None,
    ) -> answers.AlignAnswer:
        """Find which token of a text each patch of a picture that is sent matches best."""
        return await service.align(await sent(request), text, word)

    @app.get("/api/classify", responses=_REFUSALS, tags=["understand"])
    async def classify(picture: Annotated[str, key], label: Annotated[list[str], label]) -> answers.ClassifyAnswer:
        """Compare a picture of the collection with labels (zero-shot classification)."""
        return await service.classify(await service.stored(picture), label)

    @app.post("/api/classify", responses=_REFUSALS, tags=["understand"], openapi_extra=_PICTURE_BODY)
    async def classify_sent(request: Request, label: Annotated[list[str], label]) -> answers.ClassifyAnswer:
        """Compare a picture that is sent with labels."""
        return await service.classify(await sent(request), label)

    @app.get("/api/about", tags=["server"])
    async def about() -> answers.AboutAnswer:
        """Say what is searched, with what, and what a request may hold."""
        return service.about()


def _add_server(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/healthz", tags=["server"])
    async def health() -> answers.Health:
        """Say that the server answers; it does once model and index are loaded."""
        return answers.Health(status="ok")

    @app.get("/metrics", include_in_schema=False)
    async def metrics_text() -> PlainTextResponse:
        return PlainTextResponse(await metrics.text(), media_type="text/plain; version=0.0.4")
