"""Write the table of `make cluster-test` into docs/verified.md: ``python tests/cluster/verified.py``.

Every claim of the tests in this folder has a row; a claim that no run has tried says so. The rest of the page stays.
"""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

import table
from table import Row

PAGE = Path(__file__).parents[2] / "docs" / "verified.md"
BEGIN, END = "<!-- of make cluster-test: begin -->", "<!-- of make cluster-test: end -->"
SHOWN = ("Kubernetes", "KFP", "Argo", "KubeRay", "Ray")
_LONGEST = 700  # characters of what was seen


def claims(folder: Path = Path(__file__).parent) -> list[Row]:
    """What the tests of a folder say, as rows that nobody has tried, in the tests' order."""
    rows = []
    for file in sorted(folder.glob("test_cluster_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.cluster":
                    said = {entry.arg: ast.literal_eval(entry.value) for entry in mark.keywords}
                    name = f"{file.stem}::{node.name}"
                    rows.append(Row(name, node.lineno, said["claim"], said["how"], "not tried", date=""))
    return rows


def whole(said: Sequence[Row], seen: Sequence[Row]) -> list[Row]:
    """The rows of all claims: as they were seen last, in the claims' own words."""
    last = {row.test: row for row in seen}
    rows = []
    for row in said:
        found = last.get(row.test)
        if found is not None and (found.claim, found.how) == (row.claim, row.how):
            rows.append(found)
        else:
            rows.append(row)
    return rows


def render(rows: Sequence[Row]) -> str:
    """The rows as Markdown: what ran, and a table."""
    tried = [row for row in rows if row.date]
    lines = []
    if tried:
        seen = {name: sorted({row.versions[name] for row in tried if name in row.versions}) for name in SHOWN}
        dates = sorted(row.date for row in tried)
        products = ", ".join(f"{name} {' and '.join(found)}" for name, found in seen.items() if found)
        counts = ", ".join(
            f"{sum(row.result == result for row in rows)} {result}" for result in ("yes", "no", "not tried")
        )
        lines += [f"{products}. From {dates[0]} to {dates[-1]} UTC. {len(rows)} claims: {counts}.", ""]
    lines += ["| claim | how it was verified | seen | images, date |", "|---|---|---|---|"]
    for row in rows:
        found = "; ".join(line.strip() for line in row.found.splitlines() if line.strip())
        found = found if len(found) <= _LONGEST else found[: _LONGEST - 1] + "…"
        seen_as = f"**{row.result}**" + (f": {found}" if found else "")
        when = " ".join(filter(None, [row.versions.get("images", "")[:12], row.date[:10]]))
        cells = (row.claim, row.how, seen_as, when)
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def replaced(page: str, text: str) -> str:
    """A page with another text between the two marks.

    Raises:
        ValueError: it lacks a mark.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE} lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main() -> int:
    """Write the page."""
    rows = whole(claims(), table.read())
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), render(rows)), encoding="utf-8")
    sys.stdout.write(f"{PAGE}: {len(rows)} claims\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
