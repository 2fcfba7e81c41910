"""Bring the catalogue of messages up to date with the code: ``python -m tools.messages``.

It adds what is new, without a translation, drops what is gone, and compiles the catalogue. Messages of the code are:

* what an error is raised with;
* what ``print`` and ``echo`` show, titles, headers and cells of tables, and what ``track`` counts;
* titles and notes of what pages show, what a rule that is off leaves unchecked, how to get the evaluation sets;
* help texts of options, and docstrings of commands;
* everything inside a call of ``message`` or ``translated``;
* in the templates of pages, what ``_`` and ``attribute`` get.

An f-string becomes a format string: ``f"{path}: {count:,} rows"`` is the message ``{path}: {count:,} rows``.
"""

import ast
import itertools
import re
import string
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from jinja2.ext import babel_extract

ROOT = Path(__file__).parents[1]
FOLDERS = ("wukong", "cli", "components", "pipelines", "ray_jobs", "infra")
CATALOGUE = ROOT / "wukong" / "locale" / "zh" / "LC_MESSAGES" / "messages.po"
FOREIGN = ROOT / "tools" / "foreign_messages.txt"
"""Messages of libraries that commands show, a line each."""

_SHOWN = {
    *("print", "print_titled", "echo", "Table", "add_column", "add_row", "track"),
    *("message", "translated", "chinese", "HowToGet"),
}
_KEYWORDS = {"help", "title", "epilog", "short_help", "note", "unchecked"}
_TEXT = (ast.Constant, ast.JoinedStr)
_WORD = re.compile(r"[A-Za-z]{2}")
_BEGUN = datetime(2026, 1, 1, tzinfo=UTC)  # the header of a catalogue has a time; this one never changes


def messages() -> dict[str, list[str]]:
    """Return all messages, each with the files that it comes from."""
    found: dict[str, set[str]] = {}
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))):
        for text in of_file(path):
            found.setdefault(text, set()).add(path.relative_to(ROOT).as_posix())
    for text in FOREIGN.read_text(encoding="utf-8").splitlines():
        found.setdefault(text, set()).add(FOREIGN.relative_to(ROOT).as_posix())
    return {text.strip(): sorted(places) for text, places in sorted(found.items()) if _has_words(text)}


def of_file(path: Path) -> Iterator[str]:
    """Iterate over the messages of a module or of a template."""
    if path.suffix == ".py":
        yield from _Messages(path).found()
    elif path.suffix == ".j2":
        with path.open("rb") as template:
            for _, _, found, _ in babel_extract(template, ("_", "title", "attribute"), [], {"encoding": "utf-8"}):
                # Of several texts, the message is the last: ``attribute`` has the attribute's name before it.
                yield from [text for text in ([found] if isinstance(found, str) else found or ()) if text][-1:]


def _has_words(message: str) -> bool:
    return any(_WORD.search(literal) for literal, *_ in string.Formatter().parse(message))


class _Messages(ast.NodeVisitor):
    """The messages of a module."""

    def __init__(self, path: Path) -> None:
        self._found: list[str] = []
        self._path = path

    def found(self) -> list[str]:
        self.visit(ast.parse(self._path.read_text(encoding="utf-8")))
        return self._found

    def visit_Call(self, node: ast.Call) -> None:  # the name that ast asks for
        name = _name(node.func)
        if name in _SHOWN or name.endswith("Error"):
            self._take(node.args)
        if name == "map" and node.args and _name(node.args[0]) in _SHOWN:
            self._take(node.args[1:])
        self._take(keyword.value for keyword in node.keywords if keyword.arg in _KEYWORDS)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:  # the name that ast asks for
        attributes = (each for each in node.body if isinstance(each, ast.Assign))
        self._take(each.value for each in attributes if _name(each.targets[0]) in _KEYWORDS)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:  # the name that ast asks for
        # A command has options, or the decorator that registers it.
        signature = [*node.decorator_list, *(each.annotation for each in node.args.args if each.annotation)]
        names = {_name(each) for part in signature for each in ast.walk(part) if isinstance(each, ast.expr)}
        if names & {"Option", "Argument", "command", "callback"} or any(name.endswith("Option") for name in names):
            self._found.append(_escaped(ast.get_docstring(node) or ""))
        self.generic_visit(node)

    def _take(self, nodes: Iterable[ast.expr]) -> None:
        for node in nodes:
            self._found.extend(_texts(node))


def _name(node: ast.expr) -> str:
    return getattr(node, "id", getattr(node, "attr", ""))


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _texts(node: ast.expr) -> Iterator[str]:
    """Iterate over the messages that an expression may give: of a choice, each; of a sum, all combinations."""
    if isinstance(node, ast.IfExp):
        yield from itertools.chain(_texts(node.body), _texts(node.orelse))
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        yield from itertools.chain.from_iterable(map(_texts, node.elts))
    elif isinstance(node, ast.Dict):
        yield from itertools.chain.from_iterable(map(_texts, node.values))
    elif isinstance(node, ast.JoinedStr | ast.Constant | ast.BinOp):
        names: dict[str, str] = {}
        for parts in _combined(_parts(node)):
            yield "".join(part if isinstance(part, str) else _field(part, names) for part in parts)
    else:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr) and not isinstance(node, ast.Call | ast.Compare | ast.Subscript):
                yield from _texts(child)


def _parts(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.JoinedStr):
        return node.values
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_parts(node.left), *_parts(node.right)]
    return [node]


def _combined(parts: Iterable[ast.expr]) -> Iterator[tuple[str | ast.expr, ...]]:
    """Iterate over all combinations of what may stand at the places of a message."""
    return map(tuple, map(itertools.chain.from_iterable, itertools.product(*map(_alternatives, parts))))


def _alternatives(part: ast.expr) -> Iterator[tuple[str | ast.expr, ...]]:
    """Iterate over what may stand at a place of a message: texts, and expressions that make a field."""
    value = part.value if isinstance(part, ast.FormattedValue) else part
    if isinstance(value, ast.Constant):
        yield (_escaped(value.value) if isinstance(value.value, str) else "",)
    elif isinstance(value, ast.IfExp) and any(isinstance(each, _TEXT) for each in (value.body, value.orelse)):
        yield from itertools.chain(_alternatives(value.body), _alternatives(value.orelse))
    elif isinstance(value, ast.JoinedStr):
        yield from _combined(value.values)
    else:
        yield (part,)


def _field(part: ast.expr, names: dict[str, str]) -> str:
    """Return the field of an expression, with a name that no other expression of the message has."""
    value = part.value if isinstance(part, ast.FormattedValue) else part
    source = ast.unparse(value)
    if source not in names:
        expressions = (each for each in ast.walk(value) if isinstance(each, ast.Name | ast.Attribute))
        wanted = next(map(_name, expressions), "value")
        candidates = itertools.chain([wanted], (f"{wanted}_{number}" for number in itertools.count(2)))
        names[source] = next(name for name in candidates if name not in names.values())
    spec = part.format_spec if isinstance(part, ast.FormattedValue) else None
    return f"{{{names[source]}{':n' if spec is not None and _is_number(spec) else ''}}}"


def _is_number(spec: ast.expr) -> bool:
    return ast.unparse(spec).removeprefix("f").strip("'\"").endswith(tuple(",dfeg%"))


def updated(catalogue: Catalog) -> Catalog:
    """Return a catalogue with the messages of the code, and those translations of another that they have there."""
    fresh = Catalog(locale="zh", project="Wukong", creation_date=_BEGUN, revision_date=_BEGUN, fuzzy=False)
    for text, places in messages().items():
        known = catalogue.get(text)
        fresh.add(text, known.string if known else "", locations=[(place, 0) for place in places])
    return fresh


def load() -> Catalog:
    """Return the catalogue as it is stored."""
    if not CATALOGUE.exists():
        return Catalog(locale="zh")
    with CATALOGUE.open("rb") as stored:
        return read_po(stored, locale="zh")


def main() -> int:
    """Write the catalogue, and what programs read; returns the number of messages without a translation, 1 at most."""
    catalogue = updated(load())
    CATALOGUE.parent.mkdir(parents=True, exist_ok=True)
    with CATALOGUE.open("wb") as target:
        write_po(target, catalogue, width=120, sort_output=True, include_lineno=False)
    with CATALOGUE.with_suffix(".mo").open("wb") as target:
        write_mo(target, catalogue)
    missing = [entry.id for entry in catalogue if entry.id and not entry.string]
    sys.stdout.write(f"{len(catalogue):,} messages, {len(missing):,} without a translation: {CATALOGUE}\n")
    return min(len(missing), 1)


if __name__ == "__main__":
    sys.exit(main())
