"""What must be true of every notebook before it is run; ``tests/end_to_end`` runs them on a finished run."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
_LONGEST_FUNCTION = 4  # lines; what is longer belongs to the library


def cells(name: str, kind: str) -> list[dict[str, Any]]:
    notebook = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_there_are_notebooks() -> None:
    assert [name[:3] for name in NAMES] == [f"{number:02d}_" for number in range(1, len(NAMES) + 1)]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped(name: str) -> None:
    for cell in cells(name, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert cell["metadata"] == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_story_ends_in_a_conclusion_that_is_checked(name: str) -> None:
    texts, code = cells(name, "markdown"), cells(name, "code")
    assert texts[0]["source"].startswith("# ")
    assert texts[-1]["source"].startswith("## Conclusion")
    last = ast.parse(code[-1]["source"])
    assert isinstance(last.body[-1], ast.Assert)


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_does_the_librarys_work(name: str) -> None:
    defined = 0
    for cell in cells(name, "code"):
        for node in ast.walk(ast.parse(cell["source"])):
            assert not isinstance(node, ast.ClassDef | ast.AsyncFunctionDef), name
            if isinstance(node, ast.FunctionDef):
                defined += 1
                assert (node.end_lineno or 0) - node.lineno < _LONGEST_FUNCTION, (name, node.name)
    assert defined <= 2


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_one_machine_stands_in_it(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    for place in ("/home/", "/root/", "/tmp/", "/work/", "127.0.0.1"):
        assert place not in text
