import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from wukong import config


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
    assert config.parse(json.loads(printed.stdout)) == config.load(experiment, ["pretrain.epochs=3"])


def test_help_teaches_every_command() -> None:
    text = wukong("--help").stdout
    for command in ("run", "submit", "config", "queries", "up", "down", "status"):
        assert command in text
        assert wukong(command, "--help").returncode == 0
