"""The parts of a crawl as its driver knows them: where each is planned, and what it came to.

They are kept in columns, because a crawl of a billion URLs has a million parts.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from wukong.crawl import previous
from wukong.store.manifest import Part

SUFFIXES = (".tar", ".parquet")
"""Of the files of a part, in the order of its record."""

_PLANNED = np.dtype([("plan", "i4"), ("group", "i4"), ("urls", "i4"), ("first", "S20"), ("last", "S20")])
_FILE = np.dtype([("rows", "i4"), ("bytes", "i8"), ("sha256", "u1", 32)])
_MOST_HOSTS = 10_000
_NAMED_AT_ONCE = 100_000


class Planned(NamedTuple):
    """Where a part is planned: URI path of the plan, row group in it, number of URLs, first and last key."""

    plan: str
    group: int
    urls: int
    first: str
    last: str


def name_of(part: int) -> str:
    """Path of a part below its stage, without a suffix."""
    return f"parts/{part:05d}"


class Downloaded:
    """The parts of a crawl, and the sums of their records. It takes 140 bytes a part.

    Args:
        planned: where each part is planned, in the order of their numbers.

    Attributes:
        statuses: number of URLs by status.
        requested: number of URLs that were requested.
        transient: number of URLs that failed for a temporary reason.
        examples: a URL and its error, by status.
        slow_hosts: seconds that hosts cost by being slow; only the hosts that cost most.
    """

    def __init__(self, planned: Iterable[tuple[str, int, int, str, str]]) -> None:
        plans: dict[str, int] = {}
        rows = ((plans.setdefault(plan, len(plans)), *place) for plan, *place in planned)
        self._planned = np.fromiter(rows, _PLANNED)
        self._plans = list(plans)
        self._files = np.zeros((len(self._planned), len(SUFFIXES)), _FILE)
        self.statuses: Counter[str] = Counter()
        self.requested = 0
        self.transient = 0
        self.examples: dict[str, Any] = {}
        self.slow_hosts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._planned)

    def __getitem__(self, part: int) -> Planned:
        plan, group, urls, first, last = self._planned[part].item()
        return Planned(self._plans[plan], group, urls, first.decode(), last.decode())

    @property
    def urls(self) -> int:
        """Number of URLs that are planned."""
        return int(self._planned["urls"].sum(dtype=np.int64))

    def add(self, part: int, record: Mapping[str, Any]) -> None:
        """Add the record of a complete part."""
        for file, described in zip(self._files[part], record["described"], strict=True):
            digest = np.frombuffer(bytes.fromhex(described["sha256"]), np.uint8)
            file["rows"], file["bytes"], file["sha256"] = described["rows"], described["bytes"], digest
        self.statuses.update(record["statuses"])
        self.requested += record["requested"]
        self.transient += record["transient"]
        self.examples = record["examples"] | self.examples
        self.slow_hosts.update(record["slow_hosts"])
        if len(self.slow_hosts) > 2 * _MOST_HOSTS:
            self.slow_hosts = Counter(dict(self.slow_hosts.most_common(_MOST_HOSTS)))

    def described(self) -> Iterator[Part]:
        """Yield what the manifest says of each file; every part must have been added."""
        for number, files in enumerate(self._files):
            for suffix, file in zip(SUFFIXES, files, strict=True):
                rows, size = int(file["rows"]), int(file["bytes"])
                yield Part(path=name_of(number) + suffix, rows=rows, bytes=size, sha256=file["sha256"].tobytes().hex())

    def index(self) -> pa.Table:
        """Return the index: names, first keys and last keys, in the order of the keys."""
        starts = range(0, len(self), _NAMED_AT_ONCE)
        ranges = (range(start, min(start + _NAMED_AT_ONCE, len(self))) for start in starts)
        names = pa.chunked_array([pa.array(map(name_of, numbers), pa.string()) for numbers in ranges], pa.string())
        first, last = (pa.array(self._planned[key]).cast(pa.string()) for key in ("first", "last"))
        return pa.table([names.combine_chunks(), first, last], schema=previous.INDEX_SCHEMA)
