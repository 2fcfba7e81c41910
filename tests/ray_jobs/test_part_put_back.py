"""A download task whose part waits for a slow host, and one that was killed between the part's files and its record."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from crawl_samples import HOST, make_config, make_picture
from loopback_web import Web, answering

from ray_jobs import crawl
from wukong.crawl import plan
from wukong.crawl.addresses import ConnectTo
from wukong.crawl.url import key_of
from wukong.store import storage
from wukong.store.manifest import Stage

URLS = [f"http://{HOST}/{number}.jpg" for number in range(6)]


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    for number in range(6):
        web.bytes_at(f"/{number}.jpg", make_picture(300 + number, 240))
    yield web
    web.stop()


def planned(folder: Path) -> Stage:
    stage = Stage(storage.from_path(folder), "crawl", {})
    rows = [{"key": key_of(url), "url": url, "caption": "词", "queries": ["词"], "page_url": None} for url in URLS]
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["key"]), schema=plan.PLANNED)
    plan.write_range(stage.path("plan/00000.parquet"), table, 100)
    return stage


def test_it_goes_on_to_the_same_record(web: Web, tmp_path: Path) -> None:
    config, connect_to = make_config(max_seconds=1.0, retries=9), ConnectTo({HOST: web.connect_to})

    def download(stage: Stage, *, slow: bool) -> dict[str, Any] | None:
        part = (0, "plan/00000.parquet", 0, [])
        ((number, record),) = crawl._download._function(
            stage, "run", config, connect_to, 1, None, False, False, slow, [part]
        )
        assert number == 0
        return record

    whole = download(planned(tmp_path / "whole"), slow=False)
    assert whole is not None and whole["requested"] == 6
    stage, answer = planned(tmp_path / "slow"), web.handlers["/3.jpg"]
    web.handlers["/3.jpg"] = answering(b"", status="408 Request Timeout", Retry_After="9")
    assert download(stage, slow=False) is None
    web.requests.clear()
    assert download(stage, slow=False) is None, "a job that was killed and goes on leaves it to a task for slow parts"
    assert not web.requests
    web.handlers["/3.jpg"] = answer
    ended = download(stage, slow=True)
    storage.delete(stage.path("_parts/part-00000.json"))
    again = download(stage, slow=True)
    assert [path for path in web.requests if path != "/robots.txt"] == ["/3.jpg"]
    for record in (ended, again):
        assert record is not None
        assert {name: record[name] for name in ("described", "requested", "statuses")} == {
            name: whole[name] for name in ("described", "requested", "statuses")
        }
