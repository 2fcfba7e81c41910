"""What commands print goes through the translation, and what is no text of this project past it."""

import ast
import contextlib
import io
import json
import logging
import tarfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text
from typer.testing import CliRunner

from wukong.commands.app import app
from wukong.commands.output import Console, Table, echo, print_data, print_json, sizes
from wukong.runtime import logs

REPOSITORY = Path(__file__).parents[3]
FOLDERS = ("wukong/commands", "cli", "infra")
ALLOWED = {
    "wukong/commands/output.py": "it makes what prints",
    "infra/install.py": "nothing is installed yet when it runs: it translates, and writes, by itself",
    "infra/site/__main__.py": "it is a service, whose output is its log",
    "cli/sweep.py": "it writes names of runs into the pipe to a worker",
}


def _past_the_translation(tree: ast.Module) -> Iterator[str]:
    """Iterate over what prints to people as it is: Rich's classes, ``typer.echo``, ``print``, the standard streams."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("rich", "rich.console", "rich.table"):
            yield from {each.name for each in node.names} & {"print", "get_console", "Console", "Table", "console"}
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in ("rich.console", "rich.table"))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("print", "typer.echo", "typer.secho", "sys.stdout.write", "sys.stderr.write"):
                yield called
            elif called == "sys.exit" and any(isinstance(each, ast.Constant | ast.JoinedStr) for each in node.args):
                yield from (called for each in node.args if not isinstance(getattr(each, "value", ""), int))


@pytest.mark.parametrize("code", ["from rich.table import Table", "import rich.console", "typer.echo('x')", "print(1)",
                                  "sys.exit('no')", "sys.stderr.write(f'{x}')"])  # fmt: skip
def test_printing_is_seen(code: str) -> None:
    assert list(_past_the_translation(ast.parse(code)))


def test_nothing_is_printed_past_the_translation() -> None:
    found = {
        path.relative_to(REPOSITORY).as_posix(): list(_past_the_translation(ast.parse(path.read_text("utf-8"))))
        for folder in FOLDERS
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
    }
    assert len(found) > 50
    assert {name: calls for name, calls in found.items() if calls and name not in ALLOWED} == {}
    assert [name for name in ALLOWED if not found[name]] == [], "no exception is needed any more"


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGUAGE", "zh")


@pytest.mark.usefixtures("chinese")
def test_texts_are_translated_and_data_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    echo("finished")
    print_data("finished")
    print_json({"state": "finished"})
    console = Console(width=100)
    console.print("Nothing is to be deleted")
    console.print(Text("Nothing is to be deleted"))
    console.out("Nothing is to be deleted")
    english = "Nothing is to be deleted"
    shown = capsys.readouterr().out.split("\n")
    assert shown == [
        "已完成",
        "finished",
        "{",
        '  "state": "finished"',
        "}",
        "没有需要删除的内容",
        english,
        english,
        "",
    ]


@pytest.mark.usefixtures("chinese")
def test_a_table_translates_headers_and_sentences_and_leaves_names() -> None:
    shown = io.StringIO()
    table = Table("stage", "run", title="Parameters that differ", box=None)
    table.add_row("finished", "as published")
    table.add_row(Text("as published"), "12 images")
    Console(file=shown, width=60).print(table)
    cells = [line.split() for line in shown.getvalue().splitlines()]
    assert cells == [["不同的参数"], ["阶段", "运行"], ["finished", "与公布的一致"],
                     ["as", "published", "12", "张图像"]]  # fmt: skip


@pytest.mark.usefixtures("chinese")
def test_a_sentence_that_is_too_long_for_its_column_is_not_cut() -> None:
    shown = io.StringIO()
    table = Table("note", box=None)
    table.add_row("unfinished, and nobody is at work on it")
    Console(file=shown, width=10).print(table)
    assert "".join(shown.getvalue().split()) == "备注未完成，没有进程在处理"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_values_begin_in_the_same_cell(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGUAGE", language)
    shown = io.StringIO()
    console = Console(file=shown, width=20)
    for title in ("Report", "Card", "MLflow run", ""):
        console.print_titled(title, "x" * 30, 12)
    lines = shown.getvalue().splitlines()
    assert [cell_len(line.partition("x")[0]) for line in lines] == [12] * 4
    assert lines[0].startswith("报告" if language == "zh" else "Report")


def test_sizes_name_what_a_set_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizes({"images": 10_000, "classes": 10}) == "10,000 images, 10 classes"
    monkeypatch.setenv("LANGUAGE", "zh")
    assert sizes({"classes": 15, "images": 3}) == "3 张图像, 15 个类别"


HOSTILE = "猫\x1b]0;title\x07\x1b[2J\x1b]8;;http://evil.test\x07\x9b31m\x7f\u202etxt.exe\ud800[/] [red]x :smile:"
HARMLESS = (
    r"猫\u001b]0;title\u0007\u001b[2J\u001b]8;;http://evil.test\u0007"
    r"\u009b31m\u007f\u202etxt.exe\ud800[/] [red]x :smile:"
)


def _is_harmless(printed: str) -> bool:
    return all(each in "\n\t" or unicodedata.category(each) not in ("Cc", "Cs") for each in printed)


def _table(*cells: str | Text) -> Table:
    table = Table("header", HOSTILE)
    table.add_row(*cells)
    return table


@pytest.mark.parametrize(
    "show",
    [
        lambda console: console.print(HOSTILE),
        lambda console: console.print(Text(HOSTILE)),
        lambda console: console.out(HOSTILE),
        lambda console: console.print_titled("title", HOSTILE, 10),
        lambda console: console.print(_table(HOSTILE, Text(HOSTILE))),
        lambda console: echo(HOSTILE),
        lambda console: print_data(HOSTILE),
        lambda console: print(logs.FORMATTER.format(logging.makeLogRecord({"msg": HOSTILE}))),
    ],
    ids=["print", "text", "out", "titled", "table", "echo", "data", "log"],
)
def test_no_control_character_reaches_a_terminal(
    show: Callable[[Console], object], capsys: pytest.CaptureFixture[str]
) -> None:
    show(Console(width=400, highlight=False))
    printed = capsys.readouterr().out
    bell = r"\u0007"  # Rich leaves it out of a Text
    assert HARMLESS.replace(bell, "") in printed.replace(bell, "")
    assert all(character.isprintable() or character == "\n" for character in printed)


@given(st.text(st.characters(), max_size=30))
def test_json_stays_the_same_value(text: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_json({"text": text})
    assert json.loads(printed.getvalue()) == {"text": text}
    assert _is_harmless(printed.getvalue())


@pytest.mark.parametrize("arguments", [["show"], ["show", "--json"]])
def test_a_command_shows_a_strangers_files_harmlessly(tmp_path: Path, arguments: list[str]) -> None:
    """Every kind of file that ``wukong show`` prints: names of files, members, columns and keys, and what they hold."""
    name = HOSTILE.replace("/", "").replace("\ud800", "")
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.txt").write_text(HOSTILE.replace("\ud800", "") + "\n")
    (folder / "a.json").write_text(json.dumps({HOSTILE: [HOSTILE]}))
    (folder / "a.bin").write_bytes(name.encode() + b"\0\xff")
    pq.write_table(pa.table({name: [name], "url": [f"http://a.test/{name}"]}), folder / "a.parquet")
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    for place in (folder, *folder.iterdir()):
        result = CliRunner().invoke(app, [arguments[0], str(place), *arguments[1:]])
        assert result.exit_code == 0, result.output
        assert _is_harmless(result.output)
