"""The search page and its JSON API as one ASGI application; the page fetches nothing from elsewhere."""

import logging
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wukong.crawl import uploads
from wukong.crawl.uploads import RefusedError
from wukong.curate.text.characters import has_han
from wukong.report.template import environment
from wukong.serve import answers, openai_api
from wukong.serve.embedder import Embedder
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
_PAGES, _REPORT = resources.files("wukong.serve") / "pages", resources.files("wukong.report")
_ASSETS = {
    "style.css": (_PAGES, "text/css"),
    "page.js": (_PAGES, "text/javascript"),
    "icon.svg": (_PAGES, "image/svg+xml"),
    "language.css": (_REPORT, "text/css"),
    "language.js": (_REPORT, "text/javascript"),
}
"""The folder and the type of each."""
_FOR_A_DAY = {"cache-control": "private, max-age=86400"}
_ON_PAGE, _CAPTIONS_ON_PAGE, _AT_FIRST, _EXAMPLES = 24, 10, 12, 3
_ALL_HOSTS = "*"
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]]+?)\.?(:\d{1,5})?")
_API_VERSION = "1"
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.Problem, "description": text}
    for status, text in {
        400: "The body is missing, or the host is not served.",
        404: "The collection has no such picture.",
        408: "The picture arrives too slowly.",
        413: "The picture is too large.",
        415: "The body is no picture of a known type.",
        422: "A parameter is wrong, or the picture is damaged.",
        503: "Too many requests wait.",
    }.items()
}
_PICTURE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of the picture's file.",
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in uploads.TYPES},
    }
}


def create_app(service: Embedder, hosts: Sequence[str] = (_ALL_HOSTS,)) -> FastAPI:
    """Make the application.

    Args:
        service: what answers; the application closes it when it ends. One without a collection gives vectors alone.
        hosts: names under which it may be asked, without ports, IPv6 addresses in brackets; ``*`` for any. A server on
            loopback names its own, so that no web page can reach it under a name that resolves to loopback.
    """

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
    metrics = Metrics(len(service.index.keys) if isinstance(service, Service) else 0)
    _add_server(app, metrics)
    openai_api.add(app, service)
    if isinstance(service, Service):
        _add_api(app, service)
        _add_pages(app, service)
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
        began, status = time.perf_counter(), 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            if self._served(scope):
                await self._app(scope, receive, send_guarded)
            else:
                wrong = "this server is not served under that host: use the address that it printed"
                answer = _problem(scope["path"], 400, wrong)
                await answer(scope, receive, send_guarded)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise
            await _problem(scope["path"], 500, "an error in the server; its log says more")(
                scope, receive, send_guarded
            )
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.observe(route, status, time.perf_counter() - began)

    def _served(self, scope: Scope) -> bool:
        if _ALL_HOSTS in self._hosts:
            return True
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        match = _HOST.fullmatch(host.lower())
        return match is not None and match["name"] in self._hosts


def _add_api(app: FastAPI, service: Service) -> None:
    limits = service.limits
    text = Query(min_length=1, max_length=limits.characters)
    key = Query(description="Key of a picture of the collection.", max_length=64)
    count = Query(ge=1, le=limits.results, description="How many results.")
    label = Query(min_length=2, max_length=limits.labels, description="Two or more labels; repeat the parameter.")

    async def sent(request: Request) -> Picture:
        return await service.sent(request.stream(), request.headers.get("content-length"))

    @app.get("/api/search", responses=_REFUSALS, tags=["search"])
    async def search(q: Annotated[str, text], top: Annotated[int, count] = 20) -> answers.SearchAnswer:
        """Find the pictures that are most similar to a text."""
        return await service.search(q, top)

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
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")


def _add_pages(app: FastAPI, service: Service) -> None:
    templates = environment("wukong.serve", "pages")
    about, pictures, examples = service.about(), service.spread(_AT_FIRST), service.examples(_EXAMPLES)

    def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
        shared = {"about": about, "limits": service.limits, "types": ",".join(uploads.TYPES), "q": "", "problem": ""}
        return HTMLResponse(templates.get_template(name).render(shared | values), status)

    def home_page(status: int = 200, **values: Any) -> HTMLResponse:
        shared = {"found": None, "pictures_at_first": pictures, "examples": examples, "is_foreign": False}
        return page("home.html.j2", status, **shared | values)

    @app.get("/", include_in_schema=False)
    async def home(q: str = "") -> HTMLResponse:
        if not q.strip():
            return home_page()
        asked: dict[str, Any] = {"q": q[: service.limits.characters], "is_foreign": not has_han(q)}
        try:
            return home_page(**asked, found=await service.search(q, _ON_PAGE))
        except RefusedError as error:
            return home_page(error.status, **asked, problem=str(error))

    @app.get("/pictures/{key}", include_in_schema=False)
    async def picture(key: str, text: str = "", labels: str = "", q: str = "") -> HTMLResponse:
        try:
            asked = await service.stored(key)
        except RefusedError as error:
            return home_page(error.status, problem=str(error))
        return await picture_page(asked, key, text, labels, q[: service.limits.characters])

    @app.post("/pictures", include_in_schema=False)
    async def sent_picture(request: Request, text: str = "", labels: str = "") -> HTMLResponse:
        try:
            asked = await service.sent(request.stream(), request.headers.get("content-length"))
        except RefusedError as error:
            return home_page(error.status, problem=str(error))
        return await picture_page(asked, "", text, labels, "")

    async def picture_page(asked: Picture, key: str, text: str, labels: str, q: str) -> HTMLResponse:
        """The page of a picture: its captions, the alignment with a text, its classes; each may be refused alone.

        ``q`` is the query by which the picture was found.
        """
        mine = service.captions_of(asked.row) if asked.row is not None else []
        captions = await service.captions(asked, _CAPTIONS_ON_PAGE)
        known = [*mine, *(hit.caption for hit in captions.captions), ""]
        text = text.strip() or q.strip() or known[0]
        problems: dict[str, str] = {}
        aligned = classified = None
        if about.token_wise and text:
            try:
                aligned = await service.align(asked, text)
            except RefusedError as error:
                problems["text"] = str(error)
        if labels.strip():
            try:
                classified = await service.classify(asked, _separated(labels))
            except RefusedError as error:
                problems["labels"] = str(error)
        return page(
            "picture.html.j2", q=q, key=key, captions=mine, found=captions, text=text, labels=labels, aligned=aligned,
            classified=classified, problems=problems, counts=_counts(aligned),
            shown=f"/pictures/{key}/file" if key else uploads.data_url(asked.data),
        )  # fmt: skip

    @app.get("/pictures/{key}/file", include_in_schema=False)
    async def file(key: str) -> Response:
        data, kind = await service.file(await service.stored(key))
        return Response(data, media_type=kind, headers=_FOR_A_DAY)

    @app.get("/assets/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in _ASSETS:
            raise HTTPException(404, "there is no such file")
        folder, kind = _ASSETS[name]
        return Response((folder / name).read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})


def _separated(labels: str) -> list[str]:
    """Labels as a person separates them: by lines, commas, semicolons and 、, of either width."""
    for mark in ",，;；、\r":
        labels = labels.replace(mark, "\n")
    return labels.split("\n")


def _counts(aligned: answers.AlignAnswer | None) -> list[int]:
    """Patches of each token."""
    if aligned is None:
        return []
    best = [patch for row in aligned.best for patch in row]
    return [best.count(patch) for patch in range(len(aligned.tokens))]
