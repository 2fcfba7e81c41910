"""Questions to the whole corpus: killed at every write they come to the same bytes, and requests grow as parts."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl
import pytest
import ray
from crawled import corpus, experiment
from object_store import ObjectStore

from ray_jobs import exchange as rounds
from ray_jobs import filter as filtering
from ray_jobs import groups as groups_job
from ray_jobs import repacking, validate
from wukong.crawl import plan
from wukong.crawl.found import as_table, found_row, write_found
from wukong.curate import exchange
from wukong.curate.exchange import File
from wukong.curate.pairs import PAIRS
from wukong.stages import places
from wukong.store import storage
from wukong.store.manifest import Stage
from wukong.validate import audit

REQUEST = re.compile(rb"(?:GET|HEAD|PUT|POST|DELETE) /\S* HTTP/1\.1\r\n")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run one after the other in this process, instead of by Ray; few files are merged at a time."""

    def run_all(task, arguments, num_gpus=0):
        return [task(*entry) for entry in arguments]

    for module in (rounds, groups_job, repacking, validate):
        monkeypatch.setattr(module, "run_all", run_all)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(validate, "in_order", run_all)
    monkeypatch.setattr(exchange, "FAN", 3)
    monkeypatch.setattr(rounds, "RANGE_ROWS", 40)


class Killed(BaseException):
    """The end of the process, in the midst of a write."""


def kill_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End at a write, by turns before and after the file is there."""
    left, write = iter(range(number)), storage.open_output

    @contextmanager
    def open_output(uri, **options):
        last = next(left, None) is None
        if last and number % 2:
            raise Killed
        with write(uri, **options) as stream:
            yield stream
        if last:
            raise Killed

    monkeypatch.setattr(storage, "open_output", open_output)


def settings_of(tmp_path):
    return experiment(tmp_path, duplicate_images="equal")


def rows_with_repeats():
    rows = [row for row in corpus() if row.get("status") is None]
    return [row | {"sha256": f"{n // 30 if n % 5 == 0 else n + 1000:016x}" * 4} for n, row in enumerate(rows)]


@pytest.mark.long
@pytest.mark.usefixtures("in_this_process")
def test_a_filter_that_is_killed_at_every_write_comes_to_the_same_bytes(tmp_path, make_crawl) -> None:
    crawl = make_crawl(rows_with_repeats(), part_size=70)
    undisturbed = filtering.run(settings_of(tmp_path / "a"), {"crawl": crawl})
    kills = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            kill_at(kills, patch)
            try:
                manifest = filtering.run(settings_of(tmp_path / "b"), {"crawl": crawl})
                break
            except Killed:
                kills += 1
    assert kills > 20
    assert manifest.parts == undisturbed.parts
    assert manifest.digest == undisturbed.digest


@pytest.mark.usefixtures("in_this_process")
def test_the_number_of_groups_and_of_ranges_changes_no_byte_of_what_is_kept(tmp_path, make_crawl, monkeypatch):
    rows = rows_with_repeats()
    made = {}
    for groups, fan in ((1, 32), (3, 32), (17, 2)):
        monkeypatch.setattr(exchange, "FAN", fan)
        monkeypatch.setattr(rounds, "RANGE_ROWS", -(-len(rows) // groups))
        crawl = make_crawl(rows, part_size=-(-len(rows) // groups), name=f"crawl-{groups}")
        assert len(groups_job.groups_of(crawl)) == groups
        manifest = filtering.run(settings_of(tmp_path), {"crawl": crawl})
        kept = [part for part in manifest.parts if not part.path.startswith("dropped/")]
        dropped = [pl.DataFrame(storage.read_table(uri)) for uri in manifest.part_uris("dropped/")]
        made[groups] = manifest.counts, manifest.dropped, kept, pl.concat(dropped).sort("key").to_dicts()
    assert made[1][1]["duplicate_image"] > 10
    assert made[1] == made[3] == made[17]


@pytest.mark.usefixtures("in_this_process")
def test_a_picture_of_a_held_out_caption_is_held_out_in_whichever_group_it_lies(tmp_path, make_crawl) -> None:
    """Each picture has a pair in both groups; with a picture for each pair it is seen which captions are held out."""
    trained = {}
    for pictures in (40, 20):
        rows = [
            {"url": f"http://x/noto/{n}", "caption": f"第{n}张图片", "sha256": f"{n % pictures:016x}" * 4}
            for n in range(40)
        ]
        crawl = make_crawl(rows, part_size=20, name=f"crawl-{pictures}")
        assert len(groups_job.groups_of(crawl)) == 2
        manifest = filtering.run(experiment(tmp_path, split={"held_out_captions": 0.3}), {"crawl": crawl})
        tables = [storage.read_table(uri) for uri in manifest.part_uris("train/", ".parquet")]
        trained[pictures] = {int(url.rpartition("/")[2]) for each in tables for url in each["url"].to_pylist()}
    assert trained[20] == {n for n in trained[40] if (n + 20) % 40 in trained[40]} != trained[40]


class CountingProxy:
    """Passes bytes on to a server, and counts the requests among them."""

    def __init__(self, port: int) -> None:
        self.requests = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        tail = b""
        try:
            while data := source.recv(1 << 16):
                if counted:
                    seen = tail + data
                    ends = [match.end() for match in REQUEST.finditer(seen)]
                    self.requests += len(ends)
                    tail = seen[max(ends, default=0) :][-2_000:]
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            each.close()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def counting(
    object_store_of_all: ObjectStore, object_store: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CountingProxy]:
    proxy = CountingProxy(int(object_store_of_all.endpoint.rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
    yield proxy
    proxy.close()


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.long
def test_requests_grow_as_parts(counting, object_store, tmp_path, make_crawl, monkeypatch) -> None:
    rows_a_part, parts_a_group = 6, 10
    for module in (groups_job, validate):
        monkeypatch.setattr(module, "_MAX_ROWS", rows_a_part * parts_a_group)
    monkeypatch.setattr(groups_job, "_GROUPS", 1)
    monkeypatch.setattr(exchange, "FAN", 8)
    monkeypatch.setattr(rounds, "RANGE_ROWS", rows_a_part * parts_a_group)
    monkeypatch.setattr(validate.runner, "run_suite", lambda *_: {"success": True, "results": []})  # asks no store
    requests = {}
    for parts in (10, 40, 160):
        root = f"{object_store}/{parts}"
        rows = [{"url": f"http://x/noto/{n}", "caption": f"第{n}只猫在家"} for n in range(parts * rows_a_part)]
        crawl = make_crawl(rows, part_size=rows_a_part, root=root)
        settings = experiment(tmp_path, duplicate_images="equal", mask_names=False, shard_size=rows_a_part)
        settings = settings.model_copy(update={"storage": root})
        stage = places.filtering(settings, crawl)
        files = []
        for first in range(0, len(rows), 60):
            found = [found_row(row["url"], row["caption"], None, n) for n, row in enumerate(rows[first : first + 60])]
            write_found(f"{root}/search/{first:05d}.parquet", as_table(found))
            files.append(File(f"{root}/search/{first:05d}.parquet", 60))

        before = counting.requests
        edges = plan.edges(max(1, parts // 10))
        spans = rounds.gathered(files, edges, f"{root}/merged", 480)
        for number in range(len(edges) + 1):
            planned = plan.merge(exchange.source(spans, edges, number).read())
            plan.write_range(f"{root}/plan/{number}.parquet", planned, rows_a_part)
        planned = counting.requests - before

        groups = groups_job.groups_of(crawl)
        assert len(groups) == parts // parts_a_group
        before = counting.requests
        counted = filtering._count(stage, groups, settings.filter)
        told = [counted.of(group.number) for group in groups]
        count = counting.requests - before
        assert sum(map(len, told)) == 0
        groups_job.run_missing("rules", stage, filtering._apply_rules, groups, lambda: (settings.filter, counted))  # noqa: B023
        before = counting.requests
        repeats = filtering._repeats(stage, groups, settings.filter)
        for group in groups:
            repeats["repeats_picture"].of(group.number)
        compare = counting.requests - before

        shards = Stage(root, "filter", {})
        for number in range(parts):
            judged = pl.DataFrame(storage.read_table(stage.path(groups_job.judged_path(number))))
            pairs = judged.with_columns(split=pl.lit("train")).select(PAIRS.names)
            storage.write_table(shards.path(f"train/{number:05d}.parquet"), pairs.to_arrow().cast(PAIRS))
        filtered = shards.commit([shards.describe(f"train/{n:05d}.parquet", rows_a_part) for n in range(parts)])
        batches = validate._batches(filtered, settings)
        assert len(batches) == len(groups)
        checked = places.validation(settings, filtered)
        before = counting.requests
        facts = [validate._check(checked, settings, number, batch).facts for number, batch in enumerate(batches)]
        found = [validate._summarize(source) for source in rounds.hash_ranges(facts, checked.path("_work/facts"))]
        validate._statistics(checked, ("train",), len(batches))
        gate = counting.requests - before
        assert audit.join(found).row["duplicate_keys"] == 0
        requests[parts] = {"plan": planned, "count": count, "compare": compare, "validate": gate}
    each = {parts: sum(numbers.values()) / parts for parts, numbers in requests.items()}
    assert max(each.values()) <= 20, requests
    assert each[160] < 1.3 * each[40], "more parts, no more requests for each"
