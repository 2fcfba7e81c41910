"""Benchmarks run seldom, so a name that the code has lost is found here: in their code, and in code that they start."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("wukong", "ray_jobs", "infra", "cli", "components", "pipelines")


def file_of(module: str) -> Path | None:
    """The file of a module of this repository; None of another one, of a package without a file, or a name."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def names_in(module: str) -> set[str]:
    """What a module has at its top, and the modules of a package."""
    file = file_of(module)
    assert file is not None
    found = {each.stem for each in file.parent.glob("*")} if file.name == "__init__.py" else set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {(alias.asname or alias.name).partition(".")[0] for alias in names}
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
    return found


def codes(text: str) -> Iterator[ast.Module]:
    """The code of a file, and the code in its strings."""
    tree = ast.parse(text)
    yield tree
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            try:
                yield ast.parse(node.value)
            except SyntaxError:
                continue


def lost(text: str) -> list[str]:
    """The names of this repository's modules that code uses and that are not there."""
    missing = []
    for tree in codes(text):
        modules: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
                source = str(node.module)
                if file_of(source) is None and not ROOT.joinpath(*source.split(".")).is_dir():
                    missing.append(source)
                    continue
                for alias in node.names:
                    whole = f"{source}.{alias.name}"
                    if file_of(whole) is not None:
                        modules[alias.asname or alias.name] = whole
                    elif file_of(source) is None or alias.name not in names_in(source):
                        missing.append(whole)
        shadowed = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        shadowed |= {
            node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        modules = {name: module for name, module in modules.items() if name not in shadowed}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                module = modules[node.value.id]
                if not node.attr.startswith("__") and node.attr not in names_in(module):
                    missing.append(f"{module}.{node.attr}")
    return missing


@pytest.mark.parametrize(
    "file", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT / "benchmarks"))
)
def test_a_benchmark_uses_names_that_are_there(file: Path) -> None:
    assert lost(file.read_text(encoding="utf-8")) == []


def test_lost_names_are_found() -> None:
    code = "CODE = '''\nfrom ray_jobs import __main__ as driver, features\ndriver._connect()\nfeatures.run()\n'''\n"
    code += "from wukong.store import storage, nothing\nfrom wukong.gone import anything\nstorage.no_such()\n"
    assert lost(code) == [
        "wukong.store.nothing",
        "wukong.gone",
        "wukong.store.storage.no_such",
        "ray_jobs.__main__._connect",
    ]
