"""No module imports itself through others, neither by an import in a function, nor by name, nor by a registry."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("wukong", "cli", "components", "pipelines", "ray_jobs", "infra")
NOT_AT_IMPORT = re.compile(r"TYPE_CHECKING|^__name__ == '__main__'$")


def modules(root: Path, packages: tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for package in packages:
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """What a module imports of ours, wherever in it, but for what only type checkers read and what only a command runs.

    A package that asks what its own modules register (``registered(__name__, …)``) imports each of them.
    """
    skipped: set[ast.AST] = set()
    text = path.read_text(encoding="utf-8")
    if "registered(__name__" in text:
        yield from (name for name, other in known.items() if other.parent == path.parent and other != path)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.If) and NOT_AT_IMPORT.search(ast.unparse(node.test)):
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
        if node in skipped:
            continue
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (each.value for each in node.args if isinstance(each, ast.Constant) and each.value in known)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                # A package from which only modules are taken need not be whole.
                name = f"{node.module}.{alias.name}"
                if name in known:
                    yield name
                elif node.module in known:
                    yield node.module


def cycle(root: Path, packages: tuple[str, ...]) -> list[str]:
    known = modules(root, packages)
    try:
        TopologicalSorter({name: set(imported(path, known)) for name, path in known.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_through_others() -> None:
    """Not by an import inside a function either: that only hides the cycle."""
    assert cycle(ROOT, PACKAGES) == []


@pytest.mark.parametrize(
    "line",
    [
        "from p import a",
        "import p.a",
        "def f():\n    from p.a import x",
        "import importlib\ndef f():\n    importlib.import_module('p.a')",
    ],
)
def test_a_cycle_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "__init__.py").write_text("")
    (tmp_path / "p" / "a.py").write_text("from p import b\nx = 1\n")
    (tmp_path / "p" / "b.py").write_text(line)
    assert set(cycle(tmp_path, ("p",))) == {"p.a", "p.b"}


def test_a_cycle_through_a_registry_is_found(tmp_path: Path) -> None:
    (tmp_path / "p" / "rules").mkdir(parents=True)
    (tmp_path / "p" / "__init__.py").write_text("")
    (tmp_path / "p" / "rules" / "__init__.py").write_text('found = registered(__name__, "RULE", Rule)')
    (tmp_path / "p" / "rules" / "size.py").write_text("def f():\n    from p import config")
    (tmp_path / "p" / "config.py").write_text("from p import rules")
    assert set(cycle(tmp_path, ("p",))) == {"p.config", "p.rules", "p.rules.size"}


def test_what_only_type_checkers_read_is_no_cycle(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.py").write_text("from p import b")
    (tmp_path / "p" / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a")
    assert cycle(tmp_path, ("p",)) == []


def test_a_command_that_runs_as_the_module_of_its_name_is_no_cycle(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.py").write_text(
        "import importlib\nif __name__ == '__main__':\n    importlib.import_module('p.a')"
    )
    assert cycle(tmp_path, ("p",)) == []
