"""The catalogue has a translation for each message of the code, and for nothing else; it is compiled."""

import ast
import io
import re
import string
from pathlib import Path

import pytest
from babel.messages.mofile import write_mo

from tools import messages
from wukong.runtime import language

_HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def stored() -> dict[str, str]:
    return {entry.id: entry.string for entry in messages.load() if entry.id}


def _fields(text: str) -> set[str | None]:
    return {name for _, name, *_ in string.Formatter().parse(text)} - {None}


def test_nothing_is_missing_or_unused(stored: dict[str, str]) -> None:
    code = messages.messages().keys()
    assert not code - stored.keys(), "run `python -m tools.messages`, and translate what is new"
    assert not stored.keys() - code, "run `python -m tools.messages`: it drops what the code lacks"
    assert not [each for each, translation in stored.items() if not translation]


def test_fields_of_message_and_translation_are_equal(stored: dict[str, str]) -> None:
    assert not {each: text for each, text in stored.items() if text and _fields(each) != _fields(text)}


def test_each_translation_is_found(stored: dict[str, str]) -> None:
    catalogue = language.Catalogue(stored)
    for message, translation in stored.items():
        if all(map(str.isidentifier, filter(None, _fields(message)))) and "" not in _fields(message):
            kinds = {name: spec for _, name, spec, _ in string.Formatter().parse(message) if name}
            values = {name: "7" if spec else f"v/{number}" for number, (name, spec) in enumerate(kinds.items())}
            sample = message.replace(":n}", "}").format(**values)
            assert catalogue.translate(sample) == translation.format(**values), message


def test_is_compiled(stored: dict[str, str]) -> None:
    compiled = io.BytesIO()
    write_mo(compiled, messages.updated(messages.load()))
    assert compiled.getvalue() == messages.CATALOGUE.with_suffix(".mo").read_bytes(), "run `python -m tools.messages`"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('raise DataError(f"{path}: {count:,} rows of {a.name!r}" + f", not {b}")',
         ["{path}: {count:n} rows of {name}, not {b}"]),
        ("""echo(f"{n} picture{'' if n == 1 else 's'}")""", ["{n} picture", "{n} pictures"]),
        ("""echo(f"{n:.1f} s{f', {m:,} left' if m else ''}")""", ["{n:n} s, {m:n} left", "{n:n} s"]),
        ("""echo(f"it {f'ended {a}' if a else f'goes on {b}'}")""", ["it ended {a}", "it goes on {b}"]),
        ('table.add_row(name, f"{n} here", x); track("search", n, "pages"); c.print_titled("Run", y, 9)',
         ["{n} here", "search", "pages", "Run", ""]),
        ('echo("nothing here" if x else f"{y} here")', ["nothing here", "{y} here"]),
        ('echo(f"{a} is wrong" + (f"; {b.c}" if b else ""))', ["{a} is wrong; {c}", "{a} is wrong"]),
        ('message(f"{x:+.1f} of {y:.{n}f}, {z:>{n}}")', ["{x:n} of {y:n}, {z}"]),
        ('for c in map(message, ("place", "stage")): pass', ["place", "stage"]),
        ('table.add_column("where {it} is")', ["where {{it}} is"]),
        ('x: A = Option(help="Ends it.")', ["Ends it."]),
        ('class A(Rule):\n    title, unit = 1, "no text"\n    title = "a cat"', ["a cat"]),
        ('log.info("not shown %s", x)', []),
    ],
)  # fmt: skip
def test_messages_of_code(tmp_path: Path, code: str, expected: list[str]) -> None:
    ast.parse(code)
    module = tmp_path / "module.py"
    module.write_text(code)
    assert list(messages.of_file(module)) == expected


def test_messages_of_a_template(tmp_path: Path) -> None:
    template = tmp_path / "page.html.j2"
    template.write_text(
        """{{ _("one") if x else _("{count} of them", count=x) }} {{ title("a page of {run}", run=run) }} {{ _(x) }}
        <img {{ attribute("alt", "a picture") }} {{ attribute("title", "that of {name}", name="it") }}>"""
    )
    expected = ["one", "{count} of them", "a page of {run}", "a picture", "that of {name}"]
    assert sorted(messages.of_file(template)) == sorted(expected)
