"""The crawl as a distributed job: blocks of queries are searched, ranges of keys planned, parts of URLs downloaded.

Each block, range and part is one Ray task that writes its files and then its marker. A task finds its own marker, so a
job killed anywhere continues where it stopped, and no process ever holds more than its own block, range or part.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ray

from wukong.config import Crawl, Experiment
from wukong.crawl import plan
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.download import download_part
from wukong.crawl.engines import open_engine
from wukong.crawl.engines.urls import list_files, read_list
from wukong.crawl.fetch import Fetcher, RobotsCache
from wukong.crawl.queries import read_queries
from wukong.crawl.search import search_block, write_found
from wukong.crawl.status import Status
from wukong.errors import WukongError
from wukong.manifest import Manifest, Part, Stage, digest_of
from wukong.progress import track

logger = logging.getLogger(__name__)

VERSION = 1
BLOCK = 100
"""Queries a search task."""

_PACE = {"concurrency", "max_seconds", "retries"}
_PACE_POLITE = {"per_host_concurrency", "per_host_delay"}
_known_rules: RobotsCache = {}  # of the worker process, which runs many parts


def run(experiment: Experiment, parents: Mapping[str, Manifest]) -> Manifest:
    """Crawl: search, plan, download; give the manifest of the pairs (``parts/00000.tar`` and ``.parquet``).

    Raises:
        ConfigError: the query list cannot be read, or a setting is not allowed.
        EngineRefusedError: the engine wants to be asked no further; what was found is kept for the next run.
    """
    config = experiment.crawl
    queries = [] if config.engine == "urls" else read_queries(config.queries, config.max_queries)
    stage = Stage(experiment.root, "crawl", identity(config, queries), list(parents.values()), VERSION)
    if (manifest := stage.finished()) is not None:
        return manifest
    job = _Job(stage, config, ConnectTo.from_environment())
    searched = job.search_list() if config.engine == "urls" else job.search(queries)
    results = sum(record["results"] for record in searched)
    files = [stage.path(path) for record in searched for path in record["files"]]
    logger.info("found %d results of %d queries", results, len(queries))
    planned = job.plan(files, results)
    parts, statuses = job.download(planned)
    counts = {
        "queries": len(queries),
        "queries_without_results": sum(record["empty"] for record in searched),
        "queries_failed": sum(len(record["failed"]) for record in searched),
        "results": results,
        "urls": statuses.total(),
        **{status.value: statuses[status.value] for status in Status},
    }
    dropped = {status: n for status, n in sorted(statuses.items()) if status != Status.SUCCESS}
    return stage.commit(parts, counts=counts, dropped=dropped)


def identity(config: Crawl, queries: list[str]) -> dict[str, Any]:
    """What decides a crawl's output: its settings but for the pace, and the queries themselves, not where they lie."""
    value = config.model_dump(mode="json", exclude={"queries", "max_queries", *_PACE})
    value["politeness"] = {k: v for k, v in value["politeness"].items() if k not in _PACE_POLITE}
    return value | {"queries_sha256": digest_of(queries)}


class _Job:
    def __init__(self, stage: Stage, config: Crawl, connect_to: ConnectTo) -> None:
        self._stage = stage
        self._config = config
        self._connect_to = connect_to
        self._cores = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def search(self, queries: list[str]) -> list[dict[str, Any]]:
        blocks = range(0, len(queries), BLOCK)
        share = min(self._cores, len(blocks)) or 1
        records = []
        with track("search", len(queries), "queries") as advance:
            for record in self._each(
                _search.remote(
                    self._stage, self._config, self._connect_to, share, first // BLOCK, queries[first : first + BLOCK]
                )
                for first in blocks
            ):
                records.append(record)
                advance(record["queries"])
        return records

    def search_list(self) -> list[dict[str, Any]]:
        files = list_files(self._config.endpoint)
        return list(
            self._each(_search_list.remote(self._stage, self._config, number, uri) for number, uri in enumerate(files))
        )

    def plan(self, files: list[str], results: int) -> list[tuple[str, int, int]]:
        """Plan every range; give each part's plan, row group and number of URLs."""
        count = plan.ranges_for(results)
        records = self._each(
            _plan.remote(self._stage, files, index, count, self._config.part_size) for index in range(count)
        )
        return [(record["plan"], group, size) for record in records for group, size in enumerate(record["sizes"])]

    def download(self, planned: list[tuple[str, int, int]]) -> tuple[list[Part], Counter[str]]:
        parts: list[Part] = []
        statuses: Counter[str] = Counter()
        share = min(self._cores, len(planned)) or 1
        with track("download", sum(size for _, _, size in planned), "pictures") as advance:
            for record in self._each(
                _download.remote(self._stage, self._config, self._connect_to, share, number, path, group)
                for number, (path, group, _) in enumerate(planned)
            ):
                parts += [Part.model_validate(part) for part in record["files"]]
                statuses.update(record["statuses"])
                advance(record["urls"])
        return parts, statuses

    def _each(self, tasks: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Give the tasks' records in order, with a few more tasks submitted than can run."""
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(task)
                if len(waiting) > 4 * self._cores:
                    yield _get(waiting.popleft())
            while waiting:
                yield _get(waiting.popleft())
        finally:
            for task in waiting:
                ray.cancel(task)


def _get(task: Any) -> dict[str, Any]:
    try:
        record: dict[str, Any] = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WukongError):
            raise error.cause from None
        raise
    return record


def _once(stage: Stage, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do a unit of work unless its marker is there, then write the marker."""
    record = stage.part(name)
    if record is None:
        record = work()
        stage.commit_part(name, record)
    return record


@ray.remote(num_cpus=1)
def _search(
    stage: Stage, config: Crawl, connect_to: ConnectTo, share: int, number: int, queries: list[str]
) -> dict[str, Any]:
    async def search() -> dict[str, Any]:
        fetcher = Fetcher(config, connect_to, share=share, rules=_known_rules)
        try:
            searched = await search_block(queries, number * BLOCK, open_engine(config), fetcher, config)
        finally:
            fetcher.close()
        path = f"search/{number:05d}.parquet"
        write_found(stage.path(path), searched.table)
        return {
            "files": [path],
            "queries": searched.queries,
            "results": searched.table.num_rows,
            "empty": searched.empty,
            "failed": searched.failed,
        }

    return _once(stage, f"search-{number:05d}", lambda: asyncio.run(search()))


@ray.remote(num_cpus=1)
def _search_list(stage: Stage, config: Crawl, number: int, uri: str) -> dict[str, Any]:
    def read() -> dict[str, Any]:
        files, rows = [], 0
        for piece, table in enumerate(read_list(uri, number, config)):
            path = f"search/{number:05d}-{piece:05d}.parquet"
            write_found(stage.path(path), table)
            files.append(path)
            rows += table.num_rows
        return {"files": files, "queries": 0, "results": rows, "empty": 0, "failed": {}}

    return _once(stage, f"search-{number:05d}", read)


@ray.remote(num_cpus=1)
def _plan(stage: Stage, files: list[str], index: int, count: int, part_size: int) -> dict[str, Any]:
    def write() -> dict[str, Any]:
        path = f"plan/{index:05d}.parquet"
        planned = plan.merge(plan.read_range(files, *plan.bounds(index, count)))
        return {"plan": path, "sizes": plan.write_range(stage.path(path), planned, part_size)}

    return _once(stage, f"plan-{index:05d}", write)


@ray.remote(num_cpus=1)
def _download(
    stage: Stage, config: Crawl, connect_to: ConnectTo, share: int, number: int, path: str, row_group: int
) -> dict[str, Any]:
    async def download() -> dict[str, Any]:
        found = plan.read_part(stage.path(path), row_group).to_pylist()
        name = f"parts/{number:05d}"
        fetcher = Fetcher(config, connect_to, share=share, rules=_known_rules)
        try:
            rows = [{**row, "engine": config.engine} for row in found]
            record = await download_part(stage.path(name), rows, fetcher, config)
        finally:
            fetcher.close()
        pairs = record["statuses"].get(Status.SUCCESS, 0)
        files = [stage.describe(f"{name}.tar", pairs), stage.describe(f"{name}.parquet", len(found))]
        return record | {"files": [part.model_dump(mode="json") for part in files]}

    return _once(stage, f"part-{number:05d}", lambda: asyncio.run(download()))
