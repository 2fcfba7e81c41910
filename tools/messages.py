"""Bring the catalogue of texts up to date with code and pages, and compile it: ``python -m tools.messages``.

It adds what is new, without a translation, and drops what is gone. In Python the texts are those that ``_`` and
``ngettext`` mark, help texts of options, docstrings of commands, titles of rules and notes of evaluation sets; in the
templates of pages, what ``_``, ``title`` and ``attribute`` get.
"""

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from babel.messages.catalog import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir, extract_python
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).parents[1]
FOLDERS = ("wukong", "cli", "components", "pipelines", "ray_jobs", "infra")
CATALOGUE = ROOT / "wukong" / "locale" / "zh" / "LC_MESSAGES" / "messages.po"

_IN_PAGES = {"title": None, "attribute": (2,)}
_KEYWORDS = {"help", "epilog", "note", "title", "unchecked"}
_CALLS = {"HowToGet", "_"}  # of the second, Babel finds none in an f-string
_OF_COMMANDS = {"Option", "Argument", "command", "callback"}


def updated() -> Catalog:
    """Return the catalogue with the texts of code and pages, and the translations that the stored one has."""
    fresh = Catalog()
    for folder in FOLDERS:
        methods = [("**.py", _in_python), ("**.j2", "jinja2")]
        found = extract_from_dir(ROOT / folder, methods, keywords=DEFAULT_KEYWORDS | _IN_PAGES)  # type: ignore[arg-type]
        for name, _, text, _, _ in found:
            fresh.add(text, locations=[(f"{folder}/{name}", 0)])
    with CATALOGUE.open("rb") as stored:
        catalogue = read_po(stored)
    catalogue.update(fresh, no_fuzzy_matching=True, update_creation_date=False)
    catalogue.obsolete.clear()
    return catalogue


def _in_python(
    source: IO[bytes], _keywords: object, tags: Sequence[str], options: Mapping[str, Any]
) -> Iterator[tuple[Any, ...]]:
    """Iterate over the texts of a module, as Babel's extraction methods do."""
    yield from extract_python(source, DEFAULT_KEYWORDS, tags, dict(options))  # type: ignore[arg-type]
    source.seek(0)
    for node in ast.walk(ast.parse(source.read())):
        yield from ((0, "_", text, []) for text in _declared(node))


def _declared(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call):
        yield from _texts(*(each.value for each in node.keywords if each.arg in _KEYWORDS))
        yield from _texts(*(node.args if _name(node.func) in _CALLS else ()))
    elif isinstance(node, ast.ClassDef):
        assigned = (each for each in node.body if isinstance(each, ast.Assign))
        yield from _texts(*(each.value for each in assigned if _name(each.targets[0]) in _KEYWORDS))
    elif isinstance(node, ast.FunctionDef):
        signature = [*node.decorator_list, *(each.annotation for each in node.args.args if each.annotation)]
        names = {_name(each) for part in signature for each in ast.walk(part) if isinstance(each, ast.expr)}
        if names & _OF_COMMANDS or any(name.endswith("Option") for name in names):
            yield from filter(None, [ast.get_docstring(node)])


def _texts(*nodes: ast.expr) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and any(map(str.isalpha, node.value)):
            yield node.value
        elif isinstance(node, ast.IfExp):
            yield from _texts(node.body, node.orelse)
        elif isinstance(node, ast.Tuple | ast.List):
            yield from _texts(*node.elts)


def _name(node: ast.expr) -> str:
    return getattr(node, "id", getattr(node, "attr", ""))


def main() -> int:
    """Write the catalogue, and what gettext reads; returns 1 if a text lacks a translation."""
    catalogue = updated()
    with CATALOGUE.open("wb") as target:
        write_po(target, catalogue, width=120, sort_output=True, include_lineno=False)
    with CATALOGUE.with_suffix(".mo").open("wb") as target:
        write_mo(target, catalogue)
    missing = [each.id for each in catalogue if each.id and not each.string]
    sys.stdout.write(f"{len(catalogue):,} texts, {len(missing):,} without a translation: {CATALOGUE}\n")
    return min(len(missing), 1)


if __name__ == "__main__":
    sys.exit(main())
