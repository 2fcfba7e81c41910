"""What the driver of a crawl holds of its parts: the same as their records say, in few bytes."""

import random
from types import SimpleNamespace

import pyarrow as pa
import pytest

from wukong.crawl import previous
from wukong.crawl.downloaded import Downloaded
from wukong.store.manifest import Part
from wukong.store.parts import Parts

PLANNED = [(f"plan/{n // 3:05d}.parquet", n % 3, 10 + n, f"{n:020x}", f"{n:019x}f") for n in range(10)]
PLANNED[4] = ("plan/00001.parquet", 1, 0, "", "")  # of which a takedown left nothing


def record(number: int) -> dict[str, object]:
    rng = random.Random(number)
    described = [
        {
            "path": f"parts/{number:05d}{end}",
            "rows": number,
            "bytes": 3 * 2**31 + number,
            "sha256": rng.randbytes(32).hex(),
        }
        for end in (".tar", ".parquet")
    ]
    return {
        "described": described,
        "urls": 10 + number,
        "statuses": {"success": number, "timeout": 10},
        "requested": number,
        "transient": 1,
        "examples": {"timeout": [f"http://x/{number}", "late"]},
        "slow_hosts": {"slow.test": 1.5},
    }


def test_it_says_what_the_records_say_in_whatever_order_they_came() -> None:
    parts = Downloaded(iter(PLANNED))
    order = list(range(10))
    random.Random(1).shuffle(order)
    for number in order:
        parts.add(number, record(number))
    assert [tuple(parts[number]) for number in range(10)] == PLANNED
    assert parts.urls == sum(urls for _, _, urls, _, _ in PLANNED)
    records = [record(number) for number in range(10)]
    assert [*parts.described()] == [Part.model_validate(each) for one in records for each in one["described"]]  # type: ignore[attr-defined]
    assert parts.statuses == {"success": 45, "timeout": 100}
    assert (parts.requested, parts.transient, parts.slow_hosts) == (45, 10, {"slow.test": 15.0})
    assert parts.index().to_pydict() == {
        "part": [f"parts/{number:05d}" for number in range(10)],
        "first_key": [first for *_, first, _ in PLANNED],
        "last_key": [last for *_, last in PLANNED],
    }


@pytest.mark.parametrize("count", [0, 1])
def test_an_index_of_few_parts(count: int) -> None:
    index = Downloaded(PLANNED[:count]).index()
    assert index.schema.equals(previous.INDEX_SCHEMA)
    assert index.num_rows == count


def test_only_the_hosts_that_cost_most_are_kept() -> None:
    parts = Downloaded(PLANNED)
    for number in range(10):
        hosts = {f"{number}-{host}.test": 1.0 + host for host in range(5_000)}
        parts.add(number, record(number) | {"slow_hosts": hosts})
    assert len(parts.slow_hosts) <= 20_000
    assert [cost for _, cost in parts.slow_hosts.most_common(10)] == [5_000.0] * 10


def test_an_earlier_crawl_names_the_parts_that_may_hold_a_range_of_keys() -> None:
    bounds = [("parts/00000", "a", "c"), ("parts/00001", "d", "f"), ("parts/00002", "g", "i")]
    columns = dict(zip(("part", "first_key", "last_key"), map(list, zip(*bounds, strict=True)), strict=True))
    earlier = object.__new__(previous.Previous)
    table = pa.table(columns, schema=previous.INDEX_SCHEMA)
    object.__setattr__(earlier, "index", table)
    object.__setattr__(earlier, "manifest", SimpleNamespace(uri="file:///x", parts=Parts.of(())))
    for first in "abcdefghij":
        for last in "abcdefghij":
            overlap = [f"file:///x/{part}" for part, low, high in bounds if low <= last and high >= first]
            if first <= last:
                assert [part.uri for part in earlier.parts_between(first, last)] == overlap
