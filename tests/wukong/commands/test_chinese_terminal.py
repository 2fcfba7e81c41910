"""``wukong`` in a Chinese locale: help and tables are Chinese; errors, JSON and what programs wrote are English.

Most commands run in one process, because each process imports for seconds.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
from rich.cells import cell_len

from cli.main import app

_PROGRAM = Path(sys.executable).with_name("wukong")
_SEVERAL = """
import contextlib, io, json, os, sys
from wukong.commands.main import main
ended = []
for columns, words in json.load(sys.stdin):
    os.environ["COLUMNS"], sys.argv = str(columns), ["wukong", *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            ended.append((words, end.code or 0, out.getvalue(), err.getvalue()))
json.dump(ended, sys.stdout)
"""
_WIDE = 400
_HAN = re.compile(r"[\u4e00-\u9fff]")
_CODE = re.compile(
    r"[!-~]*[/=_@\d][!-~]*|[!-~]*[:.](?=\w)[!-~]*"  # paths, keys, addresses, versions
    r"|--?[a-z][\w-]*|<[^>]*>|[\[{][^\]}]*[\]}]"  # options, types, places of arguments
)
_ENGLISH = re.compile(r"[A-Za-z][A-Za-z'-]*(?:[ ,.;:]{1,2}[A-Za-z][A-Za-z'-]*){3,}")


@dataclass(frozen=True)
class Ended:
    """A command that has ended: its status, and what it printed."""

    status: int
    out: str
    err: str


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("LANGUAGE", "LC_ALL", "LC_MESSAGES")}
    return {**kept, "LANG": "zh_CN.UTF-8", "COLUMNS": str(_WIDE), "WUKONG_HOME": str(home), "HOME": str(home.parent)}


def _run(home: Path, command: Sequence[str], said: str | None = None) -> Ended:
    ended = subprocess.run(
        command, env=_environment(home), cwd=home.parent, input=said, capture_output=True, text=True, check=False
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def _run_all(home: Path, commands: Sequence[tuple[int, Sequence[str]]]) -> list[Ended]:
    """Run commands in one process, each in a terminal of so many columns."""
    ended = _run(home, [sys.executable, "-c", _SEVERAL], json.dumps(commands))
    assert ended.status == 0, ended.err
    answers = [Ended(status, out, err) for _, status, out, err in json.loads(ended.out)]
    assert len(answers) == len(commands)
    return answers


def _english(text: str) -> list[str]:
    """Return what is an English sentence in a text: four words or more that are no code."""
    lines = (re.sub("`[^`]*`", "|", line.strip(" │")) for line in text.splitlines())
    said = (line for line in lines if not line.startswith(("wukong ", "WUKONG_HOME=", 'eval "')))
    return [found[0] for line in said for found in _ENGLISH.finditer(_CODE.sub("|", line))]


def _commands(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, *words, name)


def test_english_is_seen() -> None:
    said = "Show what would be removed, and change nothing"
    assert _english(f"│ --top  显示 {said}. │") == [said]
    assert not _english("│ --model  models:/NAME@ALIAS 或 MLflow，见 docs/own-data.md，`wukong run it as is` │")


def test_the_help_of_every_command_is_chinese(tmp_path: Path) -> None:
    commands = dict(_commands(typer.main.get_command(app)))
    assert len(commands) > 35
    asked = [*((_WIDE, [*words, "--help"]) for words in commands), (80, ["run", "--help"])]
    *helps, narrow = _run_all(tmp_path, asked)
    for (words, command), ended in zip(commands.items(), helps, strict=True):
        lines = ended.out.splitlines()
        assert (ended.status, ended.err) == (0, "")
        assert lines[1].startswith(" 用法：wukong"), words
        assert "显示此帮助" in ended.out and "─ 选项 ─" in ended.out, words
        assert not _english(ended.out), words
        for each in command.params:
            if each.help and not getattr(each, "hidden", False):
                name = each.opts[0] if each.opts[0].startswith("-") else each.metavar or each.name
                rows = [line for line in lines if re.match(rf"│ \*?\s*{re.escape(name)}  ", line)]
                assert rows and all(map(_HAN.search, rows)), (words, name)
    wide = helps[list(commands).index(("run",))]
    for ended in (wide, narrow):
        example = "     wukong run --config configs/demo.yaml --set pretrain.epochs=3"
        assert example in map(str.rstrip, ended.out.splitlines())
        assert "…" not in ended.out, "a sentence without spaces is cut off"
    assert len(_HAN.findall(narrow.out)) == len(_HAN.findall(wide.out)) > 100


_ERRORS = {
    ("--wrong",): (2, "No such option: --wrong"),
    ("init",): (2, "Missing argument 'FILE'."),
    ("runs", "--last", "x"): (2, "Invalid value for '--last' / '-n': .*integer"),
    ("remove",): (2, "There is no command remove: `wukong takedown` takes pictures out of data"),
    ("takedown", "list.txt"): (1, "error: say why, for the record: --reason"),
    ("logs", "demo"): (1, "error: .*demo"),
    ("config", "--config", "x.yaml", "--set", "filter.foo=1"): (1, "error: x.yaml .*filter.foo: unknown key"),
}


def test_errors_are_english(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\ncrawl: {queries: 'file:///q', endpoint: 'http://site.test'}\n")
    answers = _run_all(tmp_path / "home", [(_WIDE, words) for words in _ERRORS])
    for (words, (status, said)), ended in zip(_ERRORS.items(), answers, strict=True):
        assert (ended.status, ended.out) == (status, ""), words
        assert re.search(said, ended.err, re.DOTALL), ended.err
        lines = [line for line in ended.err.splitlines() if not line.strip().startswith("用法：")]
        assert not [line for line in lines if _HAN.search(line)], ended.err


def test_an_empty_home_is_shown_in_chinese_and_as_the_same_json(tmp_path: Path) -> None:
    home, place = tmp_path / "home", (tmp_path / "data").as_uri()
    runs = ["runs", "--storage", place]
    asked = [runs, [*runs, "--json"], ["status"], ["status", "--json"]]
    listed, listed_json, status, described = _run_all(home, [(_WIDE, words) for words in asked])
    assert listed.out == f"{place} 中还没有运行：用 `wukong run` 开始一次。\n"
    assert listed_json.out == "[]\n"
    services = status.out.splitlines()[:4]
    assert [cell_len(line.partition("已停止")[0]) for line in services] == [16] * 4
    assert f"主目录 {home}（还没有内容）" in status.out
    assert not _english(status.out + status.err)
    s3 = {"name": "object store (S3)", "running": False, "address": ""}
    assert json.loads(described.out)["services"][0] == s3


def test_the_program_itself_reads_the_locale(tmp_path: Path) -> None:
    shown = _run(tmp_path, [str(_PROGRAM), "--help"])
    assert "从中文词表到经过评测的中文视觉语言模型。" in shown.out
    for panel in ("选项", "训练", "数据", "查看结果", "评测与选择", "使用模型", "集群", "本机内置服务"):
        assert f"╭─ {panel} ─" in shown.out


def test_what_a_program_wrote_is_below_the_error_as_it_is(tmp_path: Path) -> None:
    fails = """
from wukong.commands.app import app, run_app
from wukong.errors import StackError

@app.command()
def fails() -> None:
    error = StackError("Ray ended with status 3 while starting:")
    error.add_note("error: no stack in /x: `wukong up` starts one")
    raise error

run_app()
"""
    ended = _run(tmp_path, [sys.executable, "-c", fails, "fails"])
    note = "error: no stack in /x: `wukong up` starts one"
    assert ended == Ended(1, "", f"error: Ray ended with status 3 while starting:\n{note}\n")
