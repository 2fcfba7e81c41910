"""What must be true of the source wherever names and pictures of strangers come in: found by the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("wukong", "ray_jobs", "components", "pipelines", "cli", "infra", "tools", "examples")

_LISTINGS = {"list_files", "list_names", "sizes", "files_below", "getmembers", "getnames", "namelist", "infolist"}
_NAMES = {"path", "paths"}
"""Attributes of a file in a store, of a part of a manifest, and of the pictures that a list names."""

_KEEP = {
    "Path",
    "PurePath",
    "PurePosixPath",
    "dict",
    "enumerate",
    "list",
    "reversed",
    "set",
    "sorted",
    "str",
    "unquote",
}
_CHECKED = {"local_path", "download"}
_OTHERS = {
    ("wukong/evaluate/formats/pictures.py", "source"),  # pictures of a person's own set, which may be links to anywhere
    ("wukong/crawl/set_pairs.py", "_urls"),
    ("infra/corpus/packages.py", "_by_https"),  # paths that stand in the source
}
"""Functions that write nothing by a stranger's name."""


def trees() -> Iterator[tuple[str, ast.Module]]:
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text("utf-8"))


def called(node: ast.AST) -> str:
    """The last part of the name of a function that is called; empty for anything else."""
    function = node.func if isinstance(node, ast.Call) else None
    return (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )


def opens_a_picture(node: ast.AST) -> bool:
    function = node.func if isinstance(node, ast.Call) else None
    return (
        isinstance(function, ast.Attribute)
        and function.attr == "open"
        and isinstance(function.value, ast.Name)
        and function.value.id in ("Image", "PILImage")
    )


def opened_as_anything(tree: ast.Module) -> list[int]:
    """Lines that open a picture without ``formats=``."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and opens_a_picture(node)]
    return [call.lineno for call in calls if not any(keyword.arg == "formats" for keyword in call.keywords)]


def joined_by_hand(tree: ast.Module) -> list[tuple[str, int]]:
    """Functions and lines that make a local path of a name from a listing other than by ``local_path``."""
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return sorted({(function.name, line) for function in functions for line in _joins(function)})


def _joins(function: ast.AST) -> Iterator[int]:
    strange = _strange(function)
    for node in ast.walk(function):
        joined: list[ast.expr] = []
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            joined = [node.right]
        elif called(node) in ("Path", "joinpath", "join") and isinstance(node, ast.Call) and not _is_uri_join(node):
            joined = node.args[1:] if called(node) != "joinpath" else node.args
        if any(_is_strange(each, strange) for each in joined):
            yield node.lineno


def _is_uri_join(call: ast.Call) -> bool:
    function = call.func
    is_os = isinstance(function, ast.Attribute) and ast.unparse(function) == "os.path.join"
    return called(call) == "join" and not is_os


def _strange(function: ast.AST) -> set[str]:
    """The variables of a function that hold names from a listing, or what holds these."""
    strange: set[str] = set()
    known = -1
    while known < len(strange):
        known = len(strange)
        for node in ast.walk(function):
            if isinstance(node, (ast.For, ast.comprehension)) and _is_strange(node.iter, strange):
                strange |= _targets(node.target)
            elif isinstance(node, ast.Assign) and _is_strange(node.value, strange):
                strange |= set().union(*map(_targets, node.targets))
            elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value and _is_strange(node.value, strange):
                strange |= _targets(node.target)
            elif called(node) == "extractfile" and isinstance(node, ast.Call):
                strange |= _targets(node.args[0])
    return strange


def _targets(target: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def _is_strange(value: ast.expr, strange: set[str]) -> bool:
    match value:
        case ast.Name():
            return value.id in strange
        case ast.Call() if called(value) in _LISTINGS:
            return True
        case ast.Call() if called(value) in _CHECKED:
            return False
        case ast.Call(func=ast.Attribute(value=owner)) if called(value) not in _KEEP:
            return _is_strange(owner, strange)
        case ast.Call():
            return called(value) in _KEEP and any(_is_strange(each, strange) for each in value.args)
        case ast.Attribute():
            return value.attr in _NAMES or _is_strange(value.value, strange)
        case ast.Subscript(slice=ast.Slice(lower=ast.Call() as start)) if called(start) == "len":
            return True
        case ast.Compare() | ast.Constant():
            return False
    return any(_is_strange(each, strange) for each in ast.iter_child_nodes(value) if isinstance(each, ast.expr))


def test_a_picture_is_opened_as_one_of_the_named_formats() -> None:
    """Without names Pillow takes every format it knows: an EPS, whatever its file is called, starts Ghostscript."""
    found = {name: lines for name, tree in trees() if (lines := opened_as_anything(tree))}
    assert found == {}


def test_a_name_from_a_listing_becomes_a_path_by_one_function_alone() -> None:
    found = [(name, *where) for name, tree in trees() for where in joined_by_hand(tree)]
    assert [each for each in found if each[:2] not in _OTHERS] == []


@pytest.mark.parametrize(
    "line",
    [
        "for uri in storage.list_files(docs): copy(uri, Path(folder, uri[len(docs) :].lstrip('/')))",
        "for path in manifest.parts.below('a').paths: fetch(Path(folder, path))",
        "for uri, size in sorted(storage.sizes(a).items()): fetch(folder / PurePosixPath(uri).name)",
        "names = {each: 1 for each in storage.list_names(a)}; [root.joinpath(name) for name in names]",
        "for member in tar: tar.extractfile(member); open(os.path.join(target, member.name))",
    ],
)
def test_the_look_for_such_paths_finds_them(line: str) -> None:
    assert joined_by_hand(ast.parse(f"def function():\n    {line}"))


def test_the_look_for_pictures_finds_them() -> None:
    assert opened_as_anything(ast.parse("a = Image.open(b)\nImage.open(c, formats=FORMATS)")) == [1]
