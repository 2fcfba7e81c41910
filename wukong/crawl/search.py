"""Search an engine for queries: request pages of results until each query has its maximum number of results."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from wukong.config.crawl import Crawl
from wukong.crawl.engine import Engine, EngineRefusedError, Result, clean
from wukong.crawl.fetch import Fetcher, RequestOptions
from wukong.crawl.found import FOUND, FoundRow, as_table, found_row
from wukong.crawl.status import FetchError, Status
from wukong.crawl.unexpected import unexpected
from wukong.errors import WukongError

logger = logging.getLogger(__name__)

_MAX_ANSWER = 8 * 2**20
_PARSED_IN_LOOP = 1 << 20
"""An answer with more bytes than this is parsed in a thread."""

_SHOWN = 200
"""Characters of an engine's own text that a message shows."""

_REFUSING_CODES = frozenset({401, 403, 429})


@dataclass
class Searched:
    """The results of one block of queries.

    Attributes:
        table: the results, with schema ``FOUND``.
        empty: number of queries without results.
        failed: the error message of each query that failed.
        unexpected: number of queries that failed with an unexpected error.
    """

    table: pa.Table
    empty: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    unexpected: int = 0


async def search_block(block: Sequence[tuple[int, str]], engine: Engine, fetcher: Fetcher, config: Crawl) -> Searched:
    """Search for each query until it has ``max_results_per_query`` results or the engine has no more.

    Args:
        block: queries, each with its position in the query list.
        engine: the search engine.
        fetcher: sends all requests.
        config: the crawl's settings.

    Returns:
        The results.

    Raises:
        EngineRefusedError: the engine refuses further requests.
        WukongError: an error that concerns more than one query.
    """
    stopped: list[Exception] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_search(query, engine, fetcher, config)) for _, query in block]
    except* WukongError as errors:
        stopped += errors.exceptions
    if stopped:
        raise stopped[0]
    rows: list[FoundRow] = []
    searched = Searched(FOUND.empty_table())
    for (position, query), task in zip(block, tasks, strict=True):
        outcome = task.result()
        if isinstance(outcome, FetchError):
            searched.failed[query] = str(outcome)
            searched.unexpected += outcome.status is Status.INTERNAL_ERROR
            continue
        searched.empty += not outcome
        for rank, (key, url, caption, _, _, page_url) in enumerate(outcome):
            rows.append((key, url, caption, query, position * config.max_results_per_query + rank, page_url))
    searched.table = as_table(rows)
    return searched


async def _search(query: str, engine: Engine, fetcher: Fetcher, config: Crawl) -> list[FoundRow] | FetchError:
    """Return a query's results, one for each key, or the error if its first page fails."""
    results: dict[str, FoundRow] = {}
    page = 0
    while len(results) < config.max_results_per_query:
        try:
            fresh = await _results_of_page(engine.page_url(query, page), engine, fetcher, config)
        except FetchError as error:
            if error.status is Status.HTTP_ERROR and error.http_status in _REFUSING_CODES:
                raise _refused(engine, f"HTTP {error.http_status}") from error
            if error.status is Status.ROBOTS_DISALLOWED:
                raise EngineRefusedError(
                    f"the robots.txt of {config.endpoint} disallows searching. If its owner allows you to, "
                    "set crawl.politeness.search_robots_txt: false"
                ) from error
            if page == 0:
                return error
            logger.warning("query %r: page %d failed (%s); its earlier pages are kept", query, page, error)
            break
        known = len(results)
        for result in fresh:
            row = found_row(result.url, result.caption, query, 0, result.page_url)
            results.setdefault(row[0], row)
        if len(results) == known:  # after its last page, an engine repeats results or returns none
            break
        page += 1
    return list(results.values())[: config.max_results_per_query]


async def _results_of_page(url: str, engine: Engine, fetcher: Fetcher, config: Crawl) -> list[Result]:
    try:
        results = await _request_page(url, engine, fetcher, config)
    except (FetchError, WukongError):
        raise
    except Exception as error:  # it concerns one page, and becomes its status; it is logged
        raise unexpected(url, error) from error
    # Engines clean what they return, but one that forgets it must not end the crawl: no table holds half a surrogate.
    return [Result(clean(each.url), clean(each.caption), each.page_url and clean(each.page_url)) for each in results]


async def _request_page(url: str, engine: Engine, fetcher: Fetcher, config: Crawl) -> list[Result]:
    options = RequestOptions(
        max_bytes=_MAX_ANSWER, obey_robots=config.politeness.search_robots_txt, follow_redirects=False
    )
    async with fetcher.get(url, options) as response:
        if response.location is not None:
            raise _refused(engine, f"a redirect to {response.location[:_SHOWN]}")
        body = bytes(response.body)
        try:
            if len(body) <= _PARSED_IN_LOOP:
                return engine.parse(body)
            return await asyncio.to_thread(engine.parse, body)
        except EngineRefusedError as error:
            raise _refused(engine, str(error)[:_SHOWN]) from error
        except RecursionError as error:
            raise FetchError(Status.CORRUPT, f"not an answer of {engine.name}: nested too deep") from error
        except ValueError as error:
            raise FetchError(Status.CORRUPT, f"not an answer of {engine.name}: {str(error)[:_SHOWN]}") from error


def _refused(engine: Engine, answer: str) -> EngineRefusedError:
    return EngineRefusedError(
        f"{engine.name} answered with {answer}: it refuses further requests, so searching stops. The results so far "
        "are kept; run again later to continue from there."
    )
