"""The catalogue has a translation for each marked text of code and pages, and for nothing else; it is compiled."""

import ast
import io
import string
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog, Message
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from tools import messages


@pytest.fixture(scope="module")
def stored() -> Catalog:
    with messages.CATALOGUE.open("rb") as file:
        return read_po(file)


def _entries(catalogue: Catalog) -> dict[str | tuple[str, ...], Message]:
    return {each.id if isinstance(each.id, str) else tuple(each.id): each for each in catalogue if each.id}


def _said(text: str | list[str] | tuple[str, ...]) -> list[str]:
    return [text] if isinstance(text, str) else list(text)


def _fields(text: str) -> set[tuple[str, str | None, str | None]]:
    """Return the fields of a text; a lone brace is none."""
    try:
        return {(name, spec, kind) for _, name, spec, kind in string.Formatter().parse(text) if name is not None}
    except ValueError:
        return set()


def test_nothing_is_missing_or_unused(stored: Catalog) -> None:
    known, found = _entries(stored), _entries(messages.updated())
    assert not found.keys() - known.keys(), "run `make generate`, and translate what is new"
    assert not known.keys() - found.keys(), "run `make generate`: it drops what the code lacks"
    assert [each for each, entry in known.items() if not all(_said(entry.string))] == []
    places, now = (
        {name: {file for file, _ in each.locations} for name, each in all_.items()} for all_ in (known, found)
    )
    assert places == now, "run `make generate`"


def test_a_translation_has_the_fields_of_its_text(stored: Catalog) -> None:
    """With their formats: they get the same values."""
    assert len([each for each in _entries(stored) if _fields(_said(each)[-1])]) > 200
    differ = {
        each
        for each, entry in _entries(stored).items()
        for translation in _said(entry.string)
        if _fields(_said(each)[-1]) != _fields(translation)
    }
    assert differ == set()


def test_is_compiled(stored: Catalog) -> None:
    compiled = io.BytesIO()
    write_mo(compiled, stored)
    assert compiled.getvalue() == messages.CATALOGUE.with_suffix(".mo").read_bytes(), "run `make generate`"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('echo(_("{count:,} rows" " of {name}").format(count=1, name=x))', ["{count:,} rows of {name}"]),
        ('table.add_row(_("Run"), _(name), f"{x} here", "as it is")', ["Run"]),
        ("f'# {_(\"Run\")}'", ["Run"]),
        ('ngettext("{n} seed", "{n} seeds", n)', [("{n} seed", "{n} seeds")]),
        ('x: A = Option(help="Ends it.")', ["Ends it."]),
        ('@app.command()\ndef run(x: Option) -> None:\n    """Run it.\n\n    Twice.\n    """', ["Run it.\n\nTwice."]),
        ('class A(Rule):\n    title, unit = 1, "no text"\n    title = "a cat"', ["a cat"]),
        ('def run() -> None:\n    """No command."""\n    raise DataError(f"{x} is damaged")', []),
    ],
)  # fmt: skip
def test_texts_of_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: list[str]) -> None:
    ast.parse(code)
    assert _found(tmp_path, monkeypatch, "module.py", code) == set(expected)


def test_texts_of_a_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = """{{ _("one") if x else _("{count} of them", count=x) }} {{ title("a page of {run}", run=run) }} {{ _(x) }}
        <img {{ attribute("alt", "a picture") }} {{ attribute("title", "that of {name}", name="it") }}>
        {% trans %}in between{% endtrans %}"""
    expected = {"one", "{count} of them", "a page of {run}", "a picture", "that of {name}", "in between"}
    assert _found(tmp_path, monkeypatch, "page.html.j2", page) == expected


def _found(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str) -> set[str | tuple[str, ...]]:
    """Return the texts that are taken from a file."""
    (folder / "code").mkdir()
    (folder / "code" / name).write_text(content)
    monkeypatch.setattr(messages, "ROOT", folder)
    monkeypatch.setattr(messages, "FOLDERS", ("code",))
    return set(_entries(messages.updated()))
