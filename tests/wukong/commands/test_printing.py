"""What commands print goes through the translation, and what is no text of this project past it."""

import ast
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.text import Text

from wukong.commands.output import Console, Table, echo, print_data, print_json, sizes

REPOSITORY = Path(__file__).parents[3]
FOLDERS = ("wukong/commands", "cli", "infra")
ALLOWED = {
    "wukong/commands/output.py": "it makes what prints",
    "infra/install.py": "nothing is installed yet when it runs: it translates, and writes, by itself",
    "infra/images/contents.py": "the Python of an image runs it, with the standard library alone",
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
