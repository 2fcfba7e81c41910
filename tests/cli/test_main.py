import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from cli.main import app
from wukong.commands import panels
from wukong.commands.model import TARGETS
from wukong.config import documents


def wukong(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("wukong")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump({"name": "x", "crawl": {"queries": "file:///q", "endpoint": "http://site.test"}}))
    return file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "pretrain.epoch=3"], "unknown key"),
        (["--set", "pretrain.epochs=none"], "pretrain.epochs"),
        (["--config", "nowhere.yaml"], "no experiment file"),
    ],
)
def test_a_mistake_ends_in_one_message_and_status_1(experiment: Path, arguments: list[str], said: str) -> None:
    ended = wukong("run", "--config", str(experiment), *arguments)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_config_command_prints_what_the_pipeline_takes(experiment: Path) -> None:
    printed = wukong("config", "--config", str(experiment), "--set", "pretrain.epochs=3")
    assert printed.returncode == 0
    assert documents.parse(json.loads(printed.stdout)) == documents.load(experiment, ["pretrain.epochs=3"])


def test_the_status_names_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path))
    free = type("Usage", (), {"free": 2**30})()
    monkeypatch.setattr("infra.stack.services.shutil.disk_usage", lambda _: free)
    said = CliRunner().invoke(app, ["status"])
    assert said.exit_code == 0
    assert f"Disk  1.0 GiB free at {tmp_path}, the embedded stack needs 2" in said.output
    free.free = 2**40
    assert "Disk" not in CliRunner().invoke(app, ["status"]).output


@pytest.mark.parametrize("name", panels.INSTEAD)
def test_a_command_that_people_look_for_names_the_right_one(name: str) -> None:
    result = CliRunner().invoke(app, [name, "x", "--y"])
    assert result.exit_code == 2
    said = " ".join(result.output.replace("│", " ").split())
    assert f"There is no command {name}: `wukong " in said or "Ctrl-C ends a run, `wukong down`" in said
    for words in re.findall("`wukong ([a-z ]+)`", panels.INSTEAD[name]):
        assert CliRunner().invoke(app, [*words.split(), "--help"]).exit_code == 0, words
    assert name not in panels.COMMANDS


def test_the_help_of_an_export_lists_the_targets() -> None:
    from wukong.export.targets import REGISTRY

    assert tuple(sorted(REGISTRY)) == TARGETS
    shown = "".join(CliRunner().invoke(app, ["model", "export", "--help"]).output.replace("│", " ").split())
    assert ",".join(TARGETS) in shown


def test_help_is_a_map_of_panels() -> None:
    text = wukong("--help").stdout
    assert [line.strip("╭─╮ ") for line in text.splitlines() if line.startswith("╭─")] == ["Options", *panels.ORDER]
    assert wukong("run", "--help").returncode == 0


def commands() -> dict[str, Any]:
    """Every command by its words."""
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        below = getattr(command, "commands", {})
        found |= {f"{name} {other}": inner for other, inner in below.items()} if below else {name: command}
    return found


@pytest.mark.parametrize("name", commands())
def test_the_help_of_every_command_has_an_example_or_takes_nothing(name: str) -> None:
    command = commands()[name]
    assert "Example:" in command.help or not [option for option in command.params if option.name != "help"]
    assert getattr(command, "rich_help_panel", "") in panels.ORDER or " " in name


def test_the_version_is_that_of_the_package() -> None:
    printed = wukong("--version")
    assert (printed.returncode, printed.stdout) == (0, f"wukong {metadata.version('wukong-vlm')}\n")


def test_what_programs_read_is_json_on_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WUKONG_HOME", str(tmp_path))
    found = json.loads(wukong("status", "--json").stdout)
    assert found["home"] == str(tmp_path) and {service["running"] for service in found["services"]} == {False}
    refused = wukong("env", "--json")
    assert (refused.returncode, refused.stdout) == (1, "") and "no stack in" in refused.stderr


def test_a_shell_can_complete_the_commands() -> None:
    command = [str(Path(sys.executable).with_name("wukong"))]
    asked = {"_WUKONG_COMPLETE": "complete_bash", "COMP_WORDS": "wukong ru", "COMP_CWORD": "1"}
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["run", "runs"]
