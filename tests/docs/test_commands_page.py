"""The page of the command line has each command, in the row of its panel."""

from pathlib import Path

import pytest

from wukong.commands import panels

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


@pytest.mark.parametrize("panel", panels.ORDER)
def test_the_row_of_a_panel_has_all_its_commands(panel: str) -> None:
    (row,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {panel} |")]
    assert [name for name in panels.ORDER[panel] if f"`{name}`" not in row and f"`{name} " not in row] == []
