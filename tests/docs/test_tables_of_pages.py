"""The tables of the command line and of README: each command, and each page."""

from pathlib import Path

import pytest

from wukong.commands import panels

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "commands.md"


@pytest.mark.parametrize("panel", panels.ORDER)
def test_the_row_of_a_panel_has_all_its_commands(panel: str) -> None:
    (row,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {panel} |")]
    assert [name for name in panels.ORDER[panel] if f"`{name}`" not in row and f"`{name} " not in row] == []


def test_the_readmes_table_has_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")) if path.stem != "index"]
    assert [page for page in pages if f"| `{page}` |" not in text] == []
