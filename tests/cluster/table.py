"""The table of what was seen on a cluster: a row a claim, kept in ``build/cluster-test/table.json``."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "build" / "cluster-test"
FILE = FOLDER / "table.json"


@dataclass
class Row:
    """One claim.

    Attributes:
        test: which test says it.
        line: of the test in its file: the order of the rows.
        claim: what is said to be true.
        how: how it was verified.
        result: ``yes``, ``no``, or ``not tried``.
        found: figures and names that were seen, or why it is not so.
        seconds: how long it took, with what it needed first: an installation, a first run.
        date: UTC, when it ended.
        versions: of Kubernetes, KFP and so on.
    """

    test: str
    line: int
    claim: str
    how: str
    result: str
    found: str = ""
    seconds: float = 0.0
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M", time.gmtime()))
    versions: Mapping[str, str] = field(default_factory=dict)


def read(file: Path = FILE) -> list[Row]:
    """The rows in the tests' order; none if nothing has run."""
    if not file.exists():
        return []
    return [Row(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]


def merge(before: list[Row], now: list[Row]) -> list[Row]:
    """Replace the rows of tests that ran again, and keep the others; in the tests' order."""
    rows = {row.test: row for row in [*before, *now]}
    return sorted(rows.values(), key=lambda row: (row.test.partition("::")[0], row.line))


def write(rows: list[Row], file: Path = FILE) -> None:
    """Store rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps([asdict(row) for row in rows], ensure_ascii=False, indent=1)
    file.with_suffix(".part").write_text(text + "\n", encoding="utf-8")
    file.with_suffix(".part").replace(file)


def as_text(rows: list[Row]) -> str:
    """The rows for a terminal."""
    lines = []
    for row in rows:
        lines.append(f"{row.result:9} {row.seconds:7.1f} s  {row.claim}")
        lines += [f"{'':20} {line}" for line in row.found.splitlines()]
    return "\n".join(lines)
