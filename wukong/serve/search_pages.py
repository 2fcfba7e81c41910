"""The pages of a search: they work without a script, and fetch nothing from elsewhere."""

import time
from importlib import resources
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from wukong.crawl import uploads
from wukong.crawl.uploads import RefusedError
from wukong.curate.text.characters import has_han
from wukong.report.template import environment
from wukong.runtime.language import chinese_of, joined, restored
from wukong.serve import answers
from wukong.serve.filters import NAMES, NO_FILTERS, Filters
from wukong.serve.metrics import RECENT, Metrics, memory_bytes
from wukong.serve.service import Picture, Service

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
_TIMED = ("/", "/api/search", "/api/captions", "/pictures/{key}")
"""Routes whose latency the page about the server shows."""
_DIGITS = 9
_ON_PAGE, _CAPTIONS_ON_PAGE, _AT_FIRST, _EXAMPLES = 24, 10, 12, 3


def add(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """Add the pages and what they load.

    Args:
        app: the application.
        service: what answers.
        metrics: what the page about the server shows.
    """
    templates = environment("wukong.serve", "pages")
    about = service.about()

    async def page(name: str, status: int = 200, **values: Any) -> HTMLResponse:
        held = (await service.router.describe()).values()
        columns: frozenset[str] = frozenset().union(*(each.columns for each in held))
        shared = {
            "about": about,
            "limits": service.limits,
            "types": ",".join(uploads.TYPES),
            "q": "",
            "problem": "",
            "filters": NO_FILTERS,
            "columns": columns,
            "lacking": joined((name for column, name in NAMES.items() if column not in columns), ", "),
            "missing": _missing(service, values.get("found")),
            "licences": list(dict.fromkeys(licence for each in held for licence in each.licences)),
        }
        return HTMLResponse(templates.get_template(name).render(shared | values), status)

    async def home_page(status: int = 200, **values: Any) -> HTMLResponse:
        """The first page, or what a query finds; without pictures and examples where no part of the index answers."""
        shown: dict[str, Any] = {"found": None, "pictures_at_first": [], "examples": [], "is_foreign": False}
        shown |= values
        try:
            if not shown["found"]:
                shown["pictures_at_first"] = await service.spread(_AT_FIRST)
            if not shown["found"] or shown["is_foreign"]:
                shown["examples"] = await service.examples(_EXAMPLES)
        except RefusedError as error:
            status, shown["problem"] = error.status, error.text
        return await page("home.html.j2", status, **shown)

    @app.get("/", include_in_schema=False)
    async def home(request: Request, q: str = "") -> HTMLResponse:
        asked: dict[str, Any] = {"q": q[: service.limits.characters], "is_foreign": bool(q.strip()) and not has_han(q)}
        fields = request.query_params
        try:
            asked["filters"] = filters = Filters.of_form(fields.multi_items())
            if not q.strip():
                return await home_page(**asked)
            found = await service.search(q, _ON_PAGE, _number(fields.get("page", "")), filters)
        except RefusedError as error:
            return await home_page(error.status, **asked, problem=error.text)
        given = {name: fields[name] for name in ("q", *Filters.model_fields) if fields.get(name)}
        turns = {number: f"/?{urlencode({**given, 'page': number})}" for number in (found.page - 1, found.page + 1)}
        return await home_page(**asked, found=found, turns=turns)

    @app.get("/about", include_in_schema=False)
    async def about_page() -> HTMLResponse:
        await service.router.describe(again=True)
        return await page(
            "about.html.j2",
            shards=[(service.router.name(number), state) for number, state in enumerate(service.router.states)],
            seconds=service.router.seconds,
            latency={route: each for route, each in metrics.quantiles().items() if route in _TIMED},
            recent=RECENT,
            memory=memory_bytes(),
            recall=service.recall,
            now=time.time(),
            loaded=metrics.loaded,
        )

    @app.get("/pictures/{key}", include_in_schema=False)
    async def picture(key: str, text: str = "", labels: str = "", q: str = "") -> HTMLResponse:
        try:
            asked = await service.stored(key)
        except RefusedError as error:
            return await home_page(error.status, problem=error.text)
        return await picture_page(asked, key, text, labels, q[: service.limits.characters])

    @app.post("/pictures", include_in_schema=False)
    async def sent_picture(request: Request, text: str = "", labels: str = "") -> HTMLResponse:
        try:
            asked = await service.sent(request.stream(), request.headers.get("content-length"))
        except RefusedError as error:
            return await home_page(error.status, problem=error.text)
        return await picture_page(asked, "", text, labels, "")

    async def picture_page(asked: Picture, key: str, text: str, labels: str, q: str) -> HTMLResponse:
        """The page of a picture: its captions, the alignment with a text, its classes; each may be refused alone.

        ``q`` is the query by which the picture was found.
        """
        mine = asked.captions
        try:
            captions = await service.captions(asked, _CAPTIONS_ON_PAGE)
        except RefusedError as error:
            return await home_page(error.status, problem=error.text)
        known = [*mine, *(hit.caption for hit in captions.captions), ""]
        text = text.strip() or q.strip() or known[0]
        problems: dict[str, str] = {}
        aligned = classified = None
        if about.token_wise and text:
            try:
                aligned = await service.align(asked, text)
            except RefusedError as error:
                problems["text"] = error.text
        if labels.strip():
            try:
                classified = await service.classify(asked, _separated(labels))
            except RefusedError as error:
                problems["labels"] = error.text
        return await page(
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


def _missing(service: Service, found: Any) -> str:
    """The parts of the index that did not answer."""
    known = chinese_of([service.router.name(number) for number in range(len(service.router.shards))])
    return joined(restored(found.missing if found else [], known), "; ")


def _number(page: str) -> int:
    """The number of a page, from 1; the first one where that is no number."""
    return max(1, int(page)) if page.isdecimal() and len(page) < _DIGITS else 1


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
