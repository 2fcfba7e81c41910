"""The crawl job: it searches blocks of queries, plans ranges of keys, and downloads parts of the plan.

Each block, range or group of parts is one Ray task, which writes its files and then its marker. A task that finds its
marker does nothing, so a job that was killed continues where it stopped. No process holds more than its own task.
Results are taken as tasks finish, and a part that waits for slow hosts is put back (``wukong.crawl.turns``), so that
nothing slow holds up the rest.

A crawl of which too much failed has not finished (``wukong.crawl.verdict``). It keeps what it has stored. The next run
makes another attempt under another key, which takes over every final outcome and tries the rest again.
"""

import asyncio
import itertools
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any

import ray

from ray_jobs import metrics
from ray_jobs.exchange import gathered
from wukong import stages
from wukong.config.crawl import Crawl
from wukong.config.experiment import Experiment
from wukong.crawl import attempt, plan, previous, verdict
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.decoder import Decoder
from wukong.crawl.download import AT_ONCE, download_part
from wukong.crawl.downloaded import SUFFIXES, Downloaded, name_of
from wukong.crawl.engine import Engine
from wukong.crawl.fetch import Fetcher, SlowHosts
from wukong.crawl.found import write_found
from wukong.crawl.permits import Ledger, Permits
from wukong.crawl.picture_fetcher import PictureFetcher
from wukong.crawl.previous import Previous
from wukong.crawl.robots import RobotsCache
from wukong.crawl.search import search_block
from wukong.crawl.source import Listed, Searched
from wukong.crawl.status import Status
from wukong.crawl.turns import Turn, Turns
from wukong.curate import exchange
from wukong.curate.exchange import File, Source
from wukong.data.crawl_part import CrawlPart
from wukong.data.schema import CAPTIONS, MORE_CAPTIONS
from wukong.errors import WukongError
from wukong.runtime.language import _
from wukong.runtime.progress import track
from wukong.store import contents, storage
from wukong.store import manifest as manifests
from wukong.store.manifest import Manifest, Part, Stage
from wukong.store.parts import Parts

logger = logging.getLogger(__name__)

BLOCK = 100
"""Queries of one search task."""

_SLOW_HOSTS = "slow_hosts.json"
_TOLD_HOSTS = 5

_known_rules = RobotsCache()  # of this worker process, which runs many tasks
_known_slow: dict[str, SlowHosts] = {}  # likewise, by run


def run(experiment: Experiment, parents: Mapping[str, Manifest]) -> Manifest:
    """Search, plan and download; return the manifest of the pairs (``parts/00000.tar`` and ``.parquet``).

    Raises:
        ConfigError: the query list cannot be read, or a setting is not allowed.
        DataError: a URL list cannot be read, or the previous crawl has not finished.
        EngineRefusedError: the engine refuses further requests; the results so far are kept for the next run.
        CrawlFailedError: too much failed, or nothing was stored; the next run tries again what may succeed then.
    """
    earlier = Previous.open(experiment.crawl)
    current = attempt.of(
        experiment,
        parents,
        earlier.manifest if earlier else None,
        lambda uris: [_get(task) for task in [_digest_of.remote(uri) for uri in uris]],
        stages.of("crawl").version,
    )

    def crawl() -> Manifest:
        if storage.exists(current.stage.path(attempt.FAILED)):  # another run's, for whom this one has waited
            return run(experiment, parents)
        if current.is_outdated():
            return run(experiment, parents)
        return _crawl(experiment.crawl, current, earlier)

    manifest = current.finished or current.stage.made(crawl)
    current.clean()
    return manifest


def _crawl(config: Crawl, current: attempt.Attempt, earlier: Previous | None) -> Manifest:
    if (last := current.last) is not None:
        why = verdict.failure(last.counts, config)
        if why is None:  # the limits have been raised since
            return current.failed[-1].commit(last.parts, counts=last.counts, dropped=last.dropped)
        if not verdict.may_change_if_retried(last.counts):
            raise verdict.CrawlFailedError(why)
        logger.info("an earlier attempt at this crawl failed; what it stored is kept, the rest is tried again")
        earlier = Previous.of_failed(last)
    connect_to = ConnectTo.from_environment().of_crawl(config.endpoint)
    return _Job(current.stage, config, connect_to, earlier).run(current.queries, current.lists)


class _Job:
    """The three passes of a crawl, each as Ray tasks."""

    def __init__(self, stage: Stage, config: Crawl, connect_to: ConnectTo, earlier: Previous | None) -> None:
        self._stage = stage
        self._config = config
        self._connect_to = connect_to
        self._earlier = earlier
        self._cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._ledger: Any = None
        self._run = uuid.uuid4().hex

    def run(self, queries: Sequence[str], lists: Sequence[str]) -> Manifest:
        source = self._config.source
        if isinstance(source, Searched):
            searched = [*self._take_over(queries), *self._search(source.engine(self._config.endpoint), queries)]
        else:
            searched = self._read_lists(source, lists)
        files = [path for record in searched for path in record["files"]]
        results = sum(record["results"] for record in searched)
        logger.info("found %d results of %d queries", results, len(queries))
        planned = self._plan([self._stage.path(path) for path in files], results)
        parts = ((record["plan"], group, *part) for record in planned for group, part in enumerate(record["parts"]))
        downloaded = Downloaded(parts)
        several = sum(record["several"] for record in planned)
        self._download(downloaded, several=several > 0)

        failed = {query: why for record in searched for query, why in record["failed"].items()}
        previous.write_queries(self._stage.path(previous.QUERIES), queries, failed)
        storage.write_table(self._stage.path(previous.INDEX), downloaded.index())
        statuses = downloaded.statuses
        counts = {
            "queries": len(queries),
            "queries_without_results": sum(record["empty"] for record in searched),
            "queries_failed": len(failed),
            "queries_unexpected": sum(record["unexpected"] for record in searched),
            "results": results,
            "urls": statuses.total(),
            "requested": downloaded.requested,
            "transient": downloaded.transient,
            **{each.value: statuses[each] for each in Status if statuses[each] or each is not Status.MEASURED},
            **({MORE_CAPTIONS: several} if several else {}),
        }
        own = [self._stage.describe(path) for path in (previous.QUERIES, previous.INDEX)]
        found = (Part.model_validate(part) for record in searched for part in record["described"])
        described = Parts.in_order(chain(own, downloaded.described(), found))
        dropped = {status: n for status, n in sorted(statuses.items()) if status != Status.SUCCESS}
        self._tell_slow_hosts(downloaded.slow_hosts)
        examples = downloaded.examples | ({"search": next(iter(failed.items()))} if failed else {})
        why = verdict.failure(counts, self._config, examples)
        if why is not None:
            failed_attempt = Manifest(
                stage=self._stage.name,
                uri=self._stage.uri,
                config=self._stage.config,
                parents=self._stage.parents,
                parts=described,
                counts=counts,
                dropped=dropped,
                provenance=manifests.provenance(),
            )
            manifests.save(failed_attempt, self._stage.path(attempt.FAILED))
            raise verdict.CrawlFailedError(why)
        return self._stage.commit(described, counts=counts, dropped=dropped)

    def _tell_slow_hosts(self, seconds: Counter[str]) -> None:
        """Log the time that slow hosts cost and write it beside the parts. It differs between runs."""
        for host, cost in seconds.most_common(_TOLD_HOSTS):
            logger.info("%s cost %.0f s by being slow", host, cost)
        cost_by_host = {host: round(cost, 1) for host, cost in seconds.most_common()}
        storage.write_json(self._stage.path(_SLOW_HOSTS), cost_by_host)

    def _take_over(self, queries: Sequence[str]) -> list[dict[str, Any]]:
        """Copy the results of the queries that the previous crawl has searched."""
        if self._earlier is None:
            return []
        positions = {query: position for position, query in enumerate(queries) if query in self._earlier.queries}
        if not positions:
            return []
        shared = ray.put(positions)
        return list(
            self._each(
                _take_over.remote(self._stage, self._config, number, uri, sha256, shared)
                for number, (uri, sha256) in enumerate(self._earlier.search_files())
            )
        )

    def _search(self, engine: Engine, queries: Sequence[str]) -> list[dict[str, Any]]:
        known = self._earlier.queries if self._earlier else frozenset()
        blocks = [
            (first // BLOCK, block)
            for first in range(0, len(queries), BLOCK)
            if (
                block := [
                    (first + i, query) for i, query in enumerate(queries[first : first + BLOCK]) if query not in known
                ]
            )
        ]
        if not blocks:
            return []
        share = self._share(len(blocks))
        records = []
        with track(_("search"), sum(len(block) for _, block in blocks), _("queries")) as advance:
            for record in self._each(
                _search.remote(
                    self._stage, self._run, self._config, engine, self._connect_to, share, self._ledger, number, block
                )
                for number, block in blocks
            ):
                records.append(record)
                advance(record["queries"])
        return records

    def _read_lists(self, source: Listed, lists: Sequence[str]) -> list[dict[str, Any]]:
        tasks = (_read_list.remote(self._stage, self._config, source, number, uri) for number, uri in enumerate(lists))
        return list(self._each(tasks))

    def _plan(self, files: list[str], results: int) -> list[dict[str, Any]]:
        """Plan every range; return the records of ``_plan``."""
        edges = plan.edges(plan.ranges_for(results))
        ranges = range(len(edges) + 1)
        finished = [self._stage.finished_task(_plan_name(index), _files) for index in ranges]
        records = [record for record in finished if record is not None]
        if len(records) < len(ranges):
            found = [File(uri, results // len(files)) for uri in files]
            spans = gathered(found, edges, self._stage.path("_work/plan"), plan.MERGE_ROWS)
            tasks = (
                _plan.remote(self._stage, index, exchange.source(spans, edges, index), self._config.part_size)
                for index in ranges
            )
            records = list(self._each(tasks))
        return records

    def _download(self, parts: Downloaded, *, several: bool) -> None:
        turns = Turns(len(parts), self._cores)
        share = self._share(turns.tasks)
        retry_failed = self._earlier is not None and self._earlier.retry_failed
        common = (self._stage, self._run, self._config, self._connect_to, share, self._ledger, retry_failed, several)

        def begin(running: int) -> Any:
            turn = turns.next(running)
            return turn and _download.remote(*common, turn.slow, self._work(parts, turn))

        left = parts.urls
        metrics.show("wukong_crawl_queue", left)
        with track(_("download"), left, _("pictures")) as advance:
            for _task, done in self._as_finished(begin):
                for number, record in done:
                    if record is None:
                        turns.put_back(number)
                        continue
                    parts.add(number, record)
                    advance(record["urls"])
                    left -= record["urls"]
                    metrics.add("wukong_crawl_bytes", sum(part["bytes"] for part in record["described"]))
                    for status, urls in record["statuses"].items():
                        metrics.add("wukong_crawl_urls", urls, status=str(status))
                metrics.show("wukong_crawl_queue", left)

    def _work(self, parts: Downloaded, turn: Turn) -> list[tuple[int, str, int, list[CrawlPart]]]:
        """Return a task's parts: number, plan, row group in the plan, and the overlapping parts of an earlier crawl."""
        work = []
        for number in turn.parts:
            planned = parts[number]
            earlier = self._earlier.parts_between(planned.first, planned.last) if self._earlier else []
            work.append((number, planned.plan, planned.group, earlier))
        return work

    def _share(self, tasks: int) -> int:
        """Return how many tasks crawl at once; if a host allows fewer, make a ledger of permits."""
        share = min(self._cores, tasks) or 1
        limit = self._config.politeness.per_host_concurrency
        if share > limit and self._ledger is None:
            # It may be started again anywhere: the tasks send it everything that it holds again.
            self._ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger).remote(limit)
        return share

    def _each(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield the tasks' records in order; none waits for an earlier one to be submitted or taken."""
        waiting, numbers = iter(tasks), itertools.count()
        number_of: dict[Any, int] = {}

        def begin(_running: int) -> Any:
            if (task := next(waiting, None)) is not None:
                number_of[task] = next(numbers)
            return task

        records: dict[int, Any] = {}
        turn = 0
        for task, record in self._as_finished(begin):
            records[number_of.pop(task)] = record
            while turn in records:
                yield records.pop(turn)
                turn += 1

    def _as_finished(self, begin: Callable[[int], Any]) -> Iterator[tuple[Any, Any]]:
        """Yield tasks and their records as they finish.

        Args:
            begin: submits the next task, or returns None if there is none now; it gets the number of those that run or
                wait. A few more are submitted than can run at once.
        """
        running: set[Any] = set()
        try:
            while True:
                while len(running) <= 4 * self._cores and (task := begin(len(running))) is not None:
                    running.add(task)
                if not running:
                    return
                (done,), _ = ray.wait(list(running), num_returns=1)
                running.remove(done)
                yield done, _get(done)
        finally:
            for task in running:
                ray.cancel(task)


def _get(task: Any) -> Any:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, WukongError):
            raise error.cause from None
        raise


def _once(stage: Stage, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do a task and write its marker, unless the marker and the task's files are there."""
    record = stage.finished_task(name, _files)
    if record is None:
        record = work()
        stage.commit_task(name, record)
    return record


def _files(record: Mapping[str, Any]) -> Iterator[str]:
    """Return the files that a record tells of: those of results, a plan, or a part."""
    yield from record.get("files", ())
    yield from [record["plan"]] if "plan" in record else ()
    yield from (part["path"] for part in record.get("described", ()))


_digest_of = ray.remote(num_cpus=1)(contents.sha256)


@ray.remote(num_cpus=1)
def _take_over(
    stage: Stage, config: Crawl, number: int, uri: str, sha256: str, positions: Mapping[str, int]
) -> dict[str, Any]:
    def copy() -> dict[str, Any]:
        path = f"search/previous-{number:05d}.parquet"
        table = previous.reuse_results(uri, sha256, positions, config.max_results_per_query)
        write_found(stage.path(path), table)
        return _found(stage, [path], table.num_rows)

    return _once(stage, f"previous-{number:05d}", copy)


@asynccontextmanager
async def _fetcher(
    run: str, config: Crawl, connect_to: ConnectTo, share: int, ledger: Any, holder: str
) -> AsyncIterator[Fetcher]:
    """The fetcher of one task; its permits are given back when the task ends."""

    async def exchange(held: list[str], wanted: list[str]) -> list[str]:
        granted: list[str] = await ledger.exchange.remote(holder, held, wanted)
        return granted

    permits = None if ledger is None else Permits(exchange)
    if run not in _known_slow:  # what an earlier run found out does not count
        _known_slow.clear()
        _known_rules.forget_failures()
    slow = _known_slow.setdefault(run, {})
    kind = PictureFetcher if config.source.reads_files else Fetcher
    fetcher = kind(config, connect_to, share=share, rules=_known_rules, slow=slow, permits=permits)
    try:
        yield fetcher
    finally:
        fetcher.close()
        if permits is not None:
            await permits.close()


@ray.remote(num_cpus=1)
def _search(
    stage: Stage,
    run: str,
    config: Crawl,
    engine: Engine,
    connect_to: ConnectTo,
    share: int,
    ledger: Any,
    number: int,
    block: list[tuple[int, str]],
) -> dict[str, Any]:
    name = f"search-{number:05d}"

    async def search() -> dict[str, Any]:
        async with _fetcher(run, config, connect_to, share, ledger, name) as fetcher:
            searched = await search_block(block, engine, fetcher, config)
        path = f"search/{number:05d}.parquet"
        write_found(stage.path(path), searched.table)
        record = _found(stage, [path], searched.table.num_rows)
        return record | {
            "queries": len(block),
            "empty": searched.empty,
            "failed": searched.failed,
            "unexpected": searched.unexpected,
        }

    return _once(stage, name, lambda: asyncio.run(search()))


@ray.remote(num_cpus=1)
def _read_list(stage: Stage, config: Crawl, source: Listed, number: int, uri: str) -> dict[str, Any]:
    def read() -> dict[str, Any]:
        files, rows = [], 0
        for piece, table in enumerate(source.read(uri, number, config)):
            path = f"search/{number:05d}-{piece:05d}.parquet"
            write_found(stage.path(path), table)
            files.append(path)
            rows += table.num_rows
        return _found(stage, files, rows)

    return _once(stage, f"search-{number:05d}", read)


def _found(stage: Stage, files: list[str], results: int) -> dict[str, Any]:
    described = [stage.describe(path).model_dump(mode="json") for path in files]
    counts = {"results": results, "queries": 0, "empty": 0, "unexpected": 0}
    return {"files": files, "described": described, "failed": {}, **counts}


@ray.remote(num_cpus=1)
def _plan(stage: Stage, index: int, source: Source, part_size: int) -> dict[str, Any]:
    def write() -> dict[str, Any]:
        path = f"plan/{index:05d}.parquet"
        planned = plan.merge(source.read())
        parts = plan.write_range(stage.path(path), planned, part_size)
        return {"plan": path, "parts": parts, "several": plan.with_several(planned)}

    return _once(stage, _plan_name(index), write)


def _plan_name(index: int) -> str:
    return f"plan-{index:05d}"


@ray.remote(num_cpus=1)
def _download(
    stage: Stage,
    run: str,
    config: Crawl,
    connect_to: ConnectTo,
    share: int,
    ledger: Any,
    retry_failed: bool,
    several: bool,
    slow: bool,
    parts: list[tuple[int, str, int, list[CrawlPart]]],
) -> list[tuple[int, dict[str, Any] | None]]:
    """Download parts, given as number, plan, row group in the plan, and the overlapping parts of an earlier crawl.

    The parts have the column of several captions if a URL of the crawl has ``several``.

    Returns:
        The number and record of each part; None for the record of one that waits for slow hosts. What there is of it is
        stored, and a task that is ``slow``, which works on all of its parts at the same time, goes on from there.
    """

    async def download(
        fetcher: Fetcher, decoder: Decoder, number: int, path: str, row_group: int, earlier: list[CrawlPart]
    ) -> dict[str, Any] | None:
        begun = stage.finished_task(_begun(number), lambda _: [name_of(number) + suffix for suffix in SUFFIXES])
        if begun is not None and not slow:
            return None
        uri = stage.path(name_of(number))
        urls = plan.read_part(stage.path(path), row_group)
        urls = urls if several else urls.drop_columns(CAPTIONS.name)
        planned = [{**row, "engine": config.engine} for row in urls.to_pylist()]
        keys = {row["key"] for row in planned}
        known = (
            previous.outcomes([CrawlPart(uri)], keys, False)
            if begun
            else previous.outcomes(earlier, keys, retry_failed)
        )
        record = await download_part(uri, planned, fetcher, config, known, decoder, to_the_end=slow)
        if begun:  # not a sum of the requests, which a task that is killed before its record would not add to
            record["requested"] = record["urls"] - begun["reused"]
        if record["left"]:
            stage.commit_task(_begun(number), {"reused": record["urls"] - record["requested"]})
            return None
        pairs = record["statuses"].get(Status.SUCCESS, 0)
        rows = zip(SUFFIXES, (pairs, len(planned)), strict=True)
        described = [stage.describe(name_of(number) + suffix, count) for suffix, count in rows]
        return record | {
            "described": [part.model_dump(mode="json") for part in described],
            "slow_hosts": fetcher.slow_hosts(),
        }

    async def download_all(fetcher: Fetcher, decoder: Decoder) -> list[tuple[int, dict[str, Any] | None]]:
        under_way = asyncio.Semaphore(len(parts) if slow else AT_ONCE)

        async def one(
            number: int, path: str, row_group: int, earlier: list[CrawlPart]
        ) -> tuple[int, dict[str, Any] | None]:
            async with under_way:
                record = stage.finished_task(f"part-{number:05d}", _files)
                if record is None:
                    record = await download(fetcher, decoder, number, path, row_group, earlier)
                    if record is not None:
                        stage.commit_task(f"part-{number:05d}", record)
                return number, record

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(*part)) for part in parts]
        return [task.result() for task in tasks]

    async def with_a_fetcher() -> list[tuple[int, dict[str, Any] | None]]:
        holder = _begun(parts[0][0]) if slow else f"part-{parts[0][0]:05d}"
        with Decoder(config) as decoder:
            async with _fetcher(run, config, connect_to, share, ledger, holder) as fetcher:
                return await download_all(fetcher, decoder)

    try:
        return asyncio.run(with_a_fetcher())
    except BaseExceptionGroup as errors:  # the first has stopped the others
        raise _first_of(errors) from None


def _first_of(errors: BaseException) -> BaseException:
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


def _begun(part: int) -> str:
    """Name of the record of a part that was put back: its files hold what there is of it."""
    return f"slow-{part:05d}"
