"""A small experiment with an output of each stage, made as jobs make them; and processes that die at a write."""

import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from typing import Any

import polars as pl
import pyarrow as pa

from wukong import stages
from wukong.crawl import attempt, previous
from wukong.crawl.url import key_of
from wukong.data.shards import END, packed
from wukong.publish import croissant, release, takedown, takedown_plan
from wukong.publish.unneeded import Collection, Policy
from wukong.store import manifest, storage, takedowns
from wukong.store.manifest import Manifest, Part, Stage

URLS = [f"http://h{n}.example.com/{n}.jpg" for n in range(8)]
GONE = (URLS[2], URLS[5])
MADE = [entry.name for entry in stages.TABLE if entry.version and entry.name not in ("pack", "fingerprints")]
NOW = datetime(2026, 11, 28, tzinfo=UTC)


def picture(key: str) -> bytes:
    return f"picture of {key}".encode()


def pairs(urls: list[str]) -> pl.DataFrame:
    rows = [
        {"key": key_of(url), "url": url, "caption": f"图片{url[-5]}", "sha256": f"{url[-5]}" * 64, "status": "success"}
        for url in urls
    ]
    return pl.DataFrame(rows).sort("key")


def _shard(stage: Stage, name: str, rows: pl.DataFrame) -> list[Part]:
    storage.write_table(stage.path(f"{name}.parquet"), rows.to_arrow())
    tar = b"".join(packed(f"{key}.jpg", picture(key)) for key in rows["key"]) + END
    storage.write_bytes(stage.path(f"{name}.tar"), tar)
    return [stage.describe(f"{name}.{end}", len(rows)) for end in ("tar", "parquet")]


def _crawl(stage: Stage, rows: pl.DataFrame) -> Manifest:
    half = len(rows) // 2
    some = {"parts/00000": rows[:half], "parts/00001": rows[half:]}
    parts = [part for name, each in some.items() for part in _shard(stage, name, each)]
    bounds = [(name, each["key"][0], each["key"][-1]) for name, each in some.items()]
    index = dict(zip(previous.INDEX_SCHEMA.names, zip(*bounds, strict=True), strict=True))
    storage.write_table(stage.path(previous.INDEX), pa.table(index, schema=previous.INDEX_SCHEMA))
    for path in ("search/00000.parquet", "plan/00000.parquet"):
        storage.write_table(stage.path(path), rows.select("key", "url", "caption").to_arrow())
    parts += [stage.describe(path) for path in (previous.INDEX, "search/00000.parquet")]
    return stage.commit(parts, counts={"urls": len(rows), "success": len(rows), "results": len(rows)})


def _filter(stage: Stage, rows: pl.DataFrame) -> Manifest:
    rows, gone = rows.drop("status")[:-1], rows.drop("status")[-1:]
    parts = _shard(stage, "train/00000", rows)
    storage.write_table(stage.path("dropped/00000.parquet"), gone.with_columns(dropped_by=pl.lit("size")).to_arrow())
    parts.append(stage.describe("dropped/00000.parquet", 1))
    counts = {"pairs": len(rows) + 1, "kept": len(rows), "train": len(rows)}
    return stage.commit(parts, counts=counts, dropped={"size": 1})


def _validate(stage: Stage, rows: pl.DataFrame) -> Manifest:
    samples = [{"key": key, "caption": "x"} for key in rows["key"]]
    outcome = {"name": "captions", "unexpected": len(samples), "samples": samples}
    storage.write_json(stage.path(takedown_plan.RESULTS), {"expectations": [outcome]})
    storage.write_bytes(stage.path("docs/index.html"), str(rows["key"].to_list()).encode())
    parts = [stage.describe(path) for path in (takedown_plan.RESULTS, "docs/index.html")]
    return stage.commit(parts, counts={"pairs": len(rows)})


def _release(stage: Stage, rows: pl.DataFrame) -> Manifest:
    release.write_csv(stage.path("set.csv"), rows.select("url", "caption"))
    parts = [stage.describe("set.csv", len(rows))]
    storage.write_json(stage.path(croissant.PATH), croissant.with_files({}, parts))
    parts.append(stage.describe(croissant.PATH))
    storage.write_bytes(stage.path(release.SUMS), release.sums(parts))
    parts.append(stage.describe(release.SUMS))
    return stage.commit(parts, counts={"pairs": len(rows)})


def _computed(stage: Stage, rows: pl.DataFrame) -> Manifest:
    storage.write_bytes(stage.path("data/00000.bin"), json.dumps(rows["key"].to_list()).encode())
    return stage.commit([stage.describe("data/00000.bin", len(rows))])


def _other(stage: Stage, rows: pl.DataFrame) -> Manifest:
    storage.write_json(stage.path("metrics.json"), {"pairs": len(rows)})
    return stage.commit([stage.describe("metrics.json")])


_WRITE = {"crawl": _crawl, "filter": _filter, "validate": _validate, "release": _release}
_WRITE |= {"look": _computed, "features": _computed}


def _rows_of(read: list[Manifest], opted_out: tuple[str, ...]) -> pl.DataFrame:
    for made in read:
        if made.stage in ("crawl", "filter"):
            uris = [uri for uri in made.part_uris(suffix=".parquet") if "/parts/" in uri or "/train/" in uri]
            rows = pl.concat(pl.DataFrame(storage.read_table(uri)) for uri in uris)
            return rows if "status" in rows.columns else rows.with_columns(status=pl.lit("success"))
    return pairs([url for url in URLS if url not in opted_out])


def make(
    root: str,
    name: str,
    parents: dict[str, str],
    number: int,
    opted_out: tuple[str, ...] = (),
    at_work: Callable[[], None] = lambda: None,
) -> Manifest:
    """Make an output of a stage as its job does: from manifests at addresses, under its lease."""
    takedowns.wait_for_end(root)
    read = [manifest.load(parents[parent]) for parent in stages.of(name).key_parents]
    stage = Stage(root, name, {"number": number}, read)

    def write() -> Manifest:
        rows = _rows_of(read, opted_out)
        at_work()
        return _WRITE.get(name, _other)(stage, rows)

    return stage.made(write)


def make_all(root: str) -> dict[str, str]:
    """Make an output of each stage; return the addresses by the names."""
    made: dict[str, str] = {}
    for name in MADE:
        made[name] = make(root, name, made, 0).uri
    killed = Stage(root, "crawl", {"number": "killed"})  # before its manifest
    failed = _crawl(killed, pairs(URLS[:6]))
    storage.delete(killed.path("manifest.json"))
    record = {"described": [part.model_dump() for part in failed.parts], "results": 6}
    storage.write_json(killed.path("_parts/search-00000.json"), record)
    tried = Stage(root, "crawl", {"number": "failed"})
    failed = _crawl(tried, pairs(URLS[1:7]))
    storage.delete(tried.path("manifest.json"))
    manifest.save(failed, tried.path(attempt.FAILED))
    storage.write_bytes(killed.path("parts/00002.tar.0123456789abcdef.partial"), picture(key_of(GONE[1])))
    storage.write_json(f"{root}/runs/a/examples.json", [{"image": key_of(GONE[0]), "caption": "图片"}])
    return made


def work(root: str, name: str, parents: dict[str, str], number: int, at_work: Event, may_end: Event) -> None:
    """Be a job that has read its parents, and commits when it may."""

    def hold() -> None:
        at_work.set()
        may_end.wait()

    make(root, name, parents, number, at_work=hold)


def work_on_all(root: str, parents: dict[str, str], number: int, at_work: Event, may_end: Event) -> None:
    """Be a job of each stage at once."""
    barrier = threading.Barrier(len(MADE), at_work.set)

    def hold() -> None:
        barrier.wait()
        may_end.wait()

    with ThreadPoolExecutor(len(MADE)) as threads:
        jobs = [threads.submit(make, root, name, parents, number, at_work=hold) for name in MADE]
    for job in jobs:
        job.result()


def die_at(write: int) -> None:
    """Let this process die before its write of a number, deletions among them."""
    left = write

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(uri: str, *args: Any, **options: Any) -> Any:
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return original(uri, *args, **options)

        return call

    for name in ("open_output", "delete", "write_if"):
        setattr(storage, name, counted(getattr(storage, name)))


def take_down(root: str, listed: str, write: int | None = None) -> None:
    """Be the command, and die at a write."""
    if write is not None:
        die_at(write)
    planned = takedown.pending(root) or takedown_plan.plan(root, listed, "case 1", NOW)
    takedown.carry_out(root, planned)


def collect(place: str, write: int) -> None:
    """Be ``wukong gc --delete``, and die at a write."""
    found = Collection(place, Policy(), None)
    die_at(write)
    for each in found.garbage:
        found.delete(each)


def traces(root: str) -> dict[str, list[str]]:
    """The files that still have something of the pairs that are gone, and what; a record may have their keys."""
    words = [word for url in GONE for word in (url, f"图片{url[-5]}", url[-5] * 64, key_of(url))]
    found = {}
    for uri in storage.list_files(root):
        if uri.endswith(".partial") and f"/{takedowns.FOLDER}/" in uri:
            continue
        data = storage.read_bytes(uri)
        text = str(pl.read_parquet(data).to_dicts()) if uri.endswith(".parquet") else data.decode("utf-8", "replace")
        if hits := [
            word for word in words if word in text and not (f"/{takedowns.FOLDER}/" in uri and len(word) == 20)
        ]:
            found[uri] = hits
    return found


def untrue(root: str) -> list[str]:
    """What manifests say and is not so."""
    found = []
    digests = {}
    for uri in storage.list_files(root, "/manifest.json") + storage.list_files(root, attempt.FAILED):
        made = manifest.load(uri)
        digests[uri] = made
        for part in made.parts:
            at = storage.join(made.uri, part.path)
            if not storage.exists(at) or manifest.describe(made.uri, part.path, part.rows) != part:
                found.append(f"{uri}: {part.path}")
            elif part.path.endswith(".parquet") and part.rows and len(storage.read_table(at)) != part.rows:
                found.append(f"{uri}: rows of {part.path}")
    there = {made.digest for made in digests.values()}
    for uri, made in digests.items():
        if stages.of(made.stage).takedown == "rewrite":  # models keep the digests of what they were made from
            found += [f"{uri}: parent {each.uri}" for each in made.parents if each.digest not in there]
        if made.stage == "filter" and made.counts["kept"] != sum(
            part.rows for part in made.parts if part.path[-3:] == "tar"
        ):
            found.append(f"{uri}: counts {made.counts}")
    return found
