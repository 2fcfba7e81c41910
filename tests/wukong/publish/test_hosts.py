"""Hosts are counted as a dictionary counts them, whatever is held in memory at a time."""

import random
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pytest

from wukong.curate import exchange
from wukong.curate.exchange import File
from wukong.publish import hosts
from wukong.store import storage


def addresses(count: int) -> list[tuple[str, int | None]]:
    generator = random.Random(4)
    forms = ["http://h{}.cn/1.jpg", "https://H{}.CN:8443/a?b=http://other/", "http://u:p@h{}.cn", "//h{}.cn/x"]
    return [
        (generator.choice(forms).format(int(generator.expovariate(0.02))), generator.choice([None, 1, 500, 70_000]))
        for _ in range(count)
    ]


@pytest.mark.parametrize("held", [10, 1_000_000])
def test_hosts_are_ordered_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(hosts, "_HELD", held)
    monkeypatch.setattr(hosts, "_RANGE_ROWS", 25 * held)
    monkeypatch.setattr(hosts, "_ROW_GROUP", 7)
    monkeypatch.setattr(exchange, "FAN", 4)
    rows, files = addresses(3_000), []
    root = storage.from_path(tmp_path)
    for part in range(3):
        counter = hosts.Counter(f"{root}/counted/{part}")
        for start in range(part * 1_000, (part + 1) * 1_000, 100):
            counter.add(pl.DataFrame(rows[start : start + 100], schema=["url", "bytes"], orient="row"))
        files += counter.close()
    assert (len(files) > 20) == (held == 10)
    pairs, size = Counter[str](), Counter[str]()
    for url, number in rows:
        host = str(urlsplit(url).hostname)
        pairs[host] += 1
        size[host] += number or 0
    found, ordered = hosts.ordered(files, f"{root}/merged")
    expected = sorted(pairs, key=lambda host: (-size[host], host))
    assert found == len(pairs)
    assert [(each.name, each.pairs, each.size) for each in ordered] == [(h, pairs[h], size[h]) for h in expected]


@pytest.mark.parametrize(
    ("found", "small", "listed"), [(0, False, 0), (1, False, 1), (95, False, 10), (95, True, 5), (100_000, True, 1_000)]
)
def test_how_many_are_listed(found: int, small: bool, listed: int) -> None:
    every = (hosts.Host(str(number), 1, 1) for number in range(found))
    assert len(list(hosts.largest(found, every, small_publisher=small))) == listed


def test_no_pairs_have_no_hosts(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    counter = hosts.Counter(f"{root}/counted")
    counter.add(pl.DataFrame(schema={"url": pl.String, "bytes": pl.Int64}))
    files: list[File] = counter.close()
    found, ordered = hosts.ordered(files, f"{root}/merged")
    assert (found, list(ordered)) == (0, [])
