"""Write the table of `make cluster-test` into docs/verified.md: ``python tests/cluster/verified.py``.

Every claim of the tests in this folder has a row; a claim that no run has tried says so. A row that was seen earlier
stays with its date and revision while its words are the same. The rest of the page stays.
"""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path

import table
from table import Row

PAGE = Path(__file__).parents[2] / "docs" / "verified.md"
BEGIN, END = "<!-- of make cluster-test: begin -->", "<!-- of make cluster-test: end -->"
TIMES_BEGIN, TIMES_END = "<!-- times of make cluster-test: begin -->", "<!-- times of make cluster-test: end -->"
SHOWN = ("Kubernetes", "KFP", "Argo", "KubeRay", "Ray")
NOT_TRIED = "not tried"
RESULTS = ("yes", "no", NOT_TRIED)
_LAST = "Last run: "
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
                    rows.append(Row(name, node.lineno, said["claim"], said["how"], NOT_TRIED, date=""))
    return rows


def earlier(page: str) -> list[Row]:
    """The rows of the page itself; only the day, the images and the products of the last run are known of them."""
    head, _, table_text = page.partition(BEGIN)[2].partition(END)[0].strip().partition("\n")
    told = dict(each.split(" ", 1) for each in head.removeprefix(_LAST).partition("; ")[0].split(", ") if " " in each)
    rows = []
    for line in table_text.splitlines():
        cells = [cell.replace("\\|", "|") for cell in line.removeprefix("| ").removesuffix(" |").split(" | ")]
        if len(cells) == 4 and (result := cells[2].partition("**: ")[0].strip("*")) in RESULTS:
            images, _, date = cells[3].strip().rpartition(" ")
            versions = told | ({"images": images} if images else {})
            rows.append(Row("", 0, cells[0], cells[1], result, cells[2].partition("**: ")[2], 0.0, date, versions))
    return rows


def whole(said: Sequence[Row], seen: Sequence[Row]) -> list[Row]:
    """The rows of all claims: as they were seen last, in the claims' own words.

    Args:
        said: all claims.
        seen: rows of runs, older ones first. A row whose words have changed was not tried, and a claim that was tried
            before keeps that row when it was left out later.
    """
    last: dict[tuple[str, str], Row] = {}
    for row in seen:
        key = (row.claim, row.how)
        if row.result != NOT_TRIED or key not in last:
            last[key] = row
    return [last.get((row.claim, row.how), row) for row in said]


def render(rows: Sequence[Row]) -> str:
    """The rows as Markdown: the products of the last run, and a table."""
    counts = ", ".join(f"{sum(row.result == result for row in rows)} {result}" for result in RESULTS)
    head = f"{len(rows)} claims: {counts}."
    if tried := [row for row in rows if row.date]:
        last = max(tried, key=lambda row: row.date)
        products = ", ".join(f"{name} {last.versions[name]}" for name in SHOWN if name in last.versions)
        head = f"{_LAST}{products}; {last.date[:10]}. {head}"
    lines = [head, "", "| claim | how it was verified | seen | images, date |", "|---|---|---|---|"]
    for row in rows:
        found = "; ".join(line.strip() for line in row.found.splitlines() if line.strip())
        found = found if len(found) <= _LONGEST else found[: _LONGEST - 1] + "…"
        seen_as = f"**{row.result}**" + (f": {found}" if found else "")
        when = " ".join(filter(None, [row.versions.get("images", "")[:12], row.date[:10]]))
        cells = (row.claim, row.how, seen_as, when)
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def times(page: str, tried: Sequence[Row]) -> str:
    """What each phase took, as Markdown: of the claims that one cluster has tried, else as the page has it.

    Args:
        page: the page as it is.
        tried: rows with their seconds.
    """
    told = page.partition(TIMES_BEGIN)[2].partition(TIMES_END)[0].strip().splitlines()[2:]
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in told}
    seen = [row for row in tried if row.result != NOT_TRIED]
    for phase in dict.fromkeys(map(_phase, seen)):
        seconds = [row.seconds for row in seen if _phase(row) == phase]
        lines[phase] = f"| {phase} | {len(seconds)} | {sum(seconds) / 60:.0f} |"
    return "\n".join(["| phase | claims that were tried | minutes |", "|---|---|---|", *lines.values()])


def _phase(row: Row) -> str:
    """What `make cluster-test ARGS='-k ...'` calls it: the end of the file's name."""
    return row.test.partition("::")[0].split("_", 3)[-1]


def replaced(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """A page with another text between two marks.

    Raises:
        ValueError: it lacks a mark.
    """
    before, has_begin, rest = page.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"{PAGE} lacks {begin} or {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main() -> int:
    """Write the page."""
    page = PAGE.read_text(encoding="utf-8")
    # A table that an earlier run has left may be older than the page.
    tried = table.read()
    rows = whole(claims(), sorted([*earlier(page), *tried], key=lambda row: row.date[:10]))
    page = replaced(page, times(page, tried), TIMES_BEGIN, TIMES_END)
    PAGE.write_text(replaced(page, render(rows)), encoding="utf-8")
    sys.stdout.write(f"{PAGE}: {len(rows)} claims\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
