"""Repacking: the same shards however the pairs are divided, requests that grow as parts, memory of one bucket."""

import io
import json
import re
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import ray
from crawled import corpus, experiment, picture_of
from object_store import ObjectStore

from ray_jobs import exchange, groups, repacking
from ray_jobs import filter as job
from wukong.curate import bucket_files, repack
from wukong.curate.pairs import PAIRS
from wukong.data.shards import END, packed
from wukong.store import patience, storage
from wukong.store.manifest import Stage, describe

ROOT = Path(__file__).parents[2]


def expected_shards(
    rows: pl.DataFrame, pictures: Mapping[str, bytes], shard_size: int
) -> dict[str, tuple[bytes, list[str]]]:
    """The tar and the keys of each shard of a small set: everything in memory, tars by tarfile.

    Args:
        rows: all kept pairs.
        pictures: the picture of each key.
        shard_size: pairs of a shard.
    """
    shards = {}
    for (name,), own in rows.group_by("split"):
        ordered = own.with_columns(position=repack.positions(own["key"], 0)).sort("position", "key")
        bins = (ordered["position"] // (repack.POSITIONS // 1024)).to_numpy()
        count, first = -(-len(ordered) // shard_size), 0
        for low, high in repack.ranges(list(np.bincount(bins, minlength=1024)), min(count, 64)):
            inside = ordered.filter(pl.Series((bins >= low) & (bins < high)))
            number = max(1, round(len(inside) * count / len(ordered)))
            start = 0
            for shard, size in enumerate(repack.balanced(len(inside), number), first):
                part = inside.slice(start, size)
                shards[f"{name}/{shard:05d}"] = tar_of(part.to_dicts(), pictures), part["key"].to_list()
                start += size
            first += number
    return shards


def tar_of(rows: list[dict[str, Any]], pictures: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            kept = {name: row[name] for name in PAIRS.names if row[name] is not None and name != "caption_original"}
            facts = json.dumps(kept, ensure_ascii=False, sort_keys=True)
            content = {"jpg": pictures[row["key"]], "json": facts.encode(), "txt": row["caption"].encode()}
            for suffix, data in content.items():
                info = tarfile.TarInfo(f"{row['key']}.{suffix}")
                info.size, info.mtime, info.mode = len(data), 0, 0o444
                tar.addfile(info, io.BytesIO(data))
        return target.getvalue()[: tar.offset] + bytes(1024)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run tasks one after the other, in the process of the test."""
    for module in (exchange, groups, repacking):
        monkeypatch.setattr(module, "run_all", lambda task, arguments, *_: [task(*each) for each in arguments])
    monkeypatch.setattr(ray, "put", lambda value: value)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("run_bytes", "fan", "rounds"),
    [(9_000, 4, 4), pytest.param(bucket_files.RUN_BYTES, bucket_files.FAN_ON_DISK, 1, marks=pytest.mark.long)],
)
def test_shards_are_those_of_a_sort_in_memory(tmp_path, make_crawl, monkeypatch, run_bytes, fan, rounds):
    monkeypatch.setattr(bucket_files, "RUN_BYTES", run_bytes)
    monkeypatch.setattr(bucket_files, "FAN_ON_DISK", fan)
    widths = []
    plan = bucket_files.rounds
    monkeypatch.setattr(bucket_files, "rounds", lambda *asked: widths.append(plan(*asked)) or widths[-1])
    crawl = make_crawl(corpus(), part_size=7)
    made = job.run(experiment(tmp_path), {"crawl": crawl})
    assert len(widths[0]) == rounds
    tables = {
        part.path.removesuffix(".parquet"): storage.read_table(storage.join(made.uri, part.path))
        for part in made.parts
        if part.path.endswith(".parquet") and not part.path.startswith("dropped/")
    }
    rows = pl.concat([pl.DataFrame(table) for table in tables.values()])
    pictures = {row["key"]: picture_of(row) for row in rows.select("key", "sha256").to_dicts()}
    wanted = expected_shards(rows, pictures, 60)
    keys = {name: table["key"].to_pylist() for name, table in tables.items()}
    assert keys == {name: own for name, (_, own) in wanted.items()}
    for name, (tar, _) in wanted.items():
        assert storage.read_bytes(storage.join(made.uri, f"{name}.tar")) == tar, name
    assert list(made.parts) == [describe(made.uri, part.path, part.rows) for part in made.parts]


@pytest.mark.parametrize(("buckets", "pictures"), [(1, 2), (256, 2), (257, 3), (65_536, 3), (65_537, 4)])
def test_a_disk_has_room_for_each_round_and_the_shards(buckets, pictures):
    tars = [repacking.Tar(number, "tar", 500, "table") for number in range(3)]
    assert repacking.room(tars, bucket_files.Buckets({"train": np.arange(buckets)})) == pictures * 1500


class Proxy:
    """Passes connections on to a server and counts the requests, by method."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.requests: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            for source, target, counted in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(source, target, counted), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with closing(target):
            try:
                while data := source.recv(1 << 16):
                    if counted:
                        self.requests += re.findall(rb"(?:^|\r\n\r\n)(GET|HEAD|PUT|POST|DELETE) (/\S*) HTTP/1", data)
                    target.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def proxy(object_store_of_all: ObjectStore, object_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    between = Proxy(int(object_store_of_all.endpoint.rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{between.port}")
    monkeypatch.setenv(patience.VARIABLE, "60")
    yield between
    between.close()


@pytest.mark.long
@pytest.mark.usefixtures("in_process")
def test_requests_grow_as_parts(proxy, object_store, monkeypatch):
    monkeypatch.setattr(bucket_files, "RUN_BYTES", 4 * TAR_BYTES)
    monkeypatch.setattr(bucket_files, "FAN", 8)
    each_part = {}
    for parts in (16, 160):
        stage = Stage(object_store, "filter", {"parts": parts})
        tars = [tar for group in range(parts // 4) for tar in placed_group(stage, group)]
        before = len(proxy.requests)
        pieces, buckets = repacking.planned(tars, parts * 5, 25, TAR_BYTES / 5)
        spans = repacking.scattered(stage.path("_work/buckets"), tars, buckets)
        rows = [part["rows"] for piece in pieces for part in repacking.pack(stage, piece, spans)["parts"]]
        assert sum(rows) == 2 * parts * 5
        each_part[parts] = (len(proxy.requests) - before) / parts
    assert len(bucket_files.rounds(buckets.count, 8)) == 2
    assert max(each_part.values()) <= 20, each_part


TAR_BYTES = 5 * 2560 + 1024


def placed_group(stage: Stage, group: int) -> list[repacking.Tar]:
    """Write four tars of five pictures each, and the table of their pairs."""
    tars, tables, placed = [], [], stage.path(f"placed/{group:05d}.parquet")
    for number in range(4 * group, 4 * group + 4):
        keys = [f"{number:010d}{row:010d}" for row in range(5)]
        uri, tar = stage.path(f"crawl/{number:05d}.tar"), [packed(f"{key}.jpg", key.encode() * 100) for key in keys]
        storage.write_bytes(uri, b"".join([*tar, END]))
        columns = {field.name: [None if field.nullable else _VALUES[str(field.type)]] * 5 for field in PAIRS}
        table = pa.table(columns | {"key": keys, "split": ["train"] * 5}, schema=PAIRS)
        position = repack.positions(pl.Series(keys), 0)
        tables.append(pl.DataFrame(table).with_columns(position=position, part=pl.lit(number)))
        tars.append(repacking.Tar(number, uri, TAR_BYTES, placed))
    with storage.open_output(placed) as stream:
        pl.concat(tables).write_parquet(stream)
    return tars


_VALUES = {
    "string": "text",
    "list<item: string>": ["query"],
    "list<element: string>": ["query"],
    "int32": 1,
    "int64": 1,
}
_VALUES |= {"float": 1.0, "double": 1.0}

_PEAK = """
import os, re, sys
from pathlib import Path
import polars as pl
from wukong.curate import bucket_files, repack
from wukong.curate.bucket_files import Buckets, Segments
from wukong.data.shards import END, packed
from wukong.store import storage
import numpy as np
def peak():  # of this program: getrusage counts the process that it was forked from too
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10
folder, size, count = sys.argv[1], 100_000, 8_000
data = os.urandom(size)
with open(f"{folder}/0.tar", "wb") as stream:
    for number in range(count):
        stream.write(packed(f"{number:020d}.jpg", data))
    stream.write(END)
keys = pl.Series([f"{number:020d}" for number in range(count)])
pairs = pl.DataFrame({"key": keys, "split": "train", "position": repack.positions(keys, 0)})
buckets = Buckets({"train": np.array([repack.POSITIONS // 4 * n for n in range(4)])})
segments = Segments(0, 1, 4)
tables = repack.with_pictures([(f"file://{folder}/0.tar", "", pairs)], bucket_files.RUN_BYTES)
file = bucket_files.write(f"file://{folder}/0", tables, buckets, segments)
print(peak(), len(file.ends))
rows = 0
for number in range(4):
    for table in bucket_files.read([file.places(number)]):
        for part in table.sort("position", "key").iter_slices(64):
            rows += sum(len(picture) == size for picture in part["picture"])
print(peak(), rows)
"""


@pytest.mark.long
def test_a_task_holds_one_run_or_one_bucket(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    (written, runs), (read, rows) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert runs == 6
    assert rows == 8_000
    assert max(written, read) < 1024, done.stdout
