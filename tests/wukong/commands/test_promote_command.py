"""``wukong promote`` and ``wukong rollback``: what they ask the registry for, and how they end."""

import json
import os
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from wukong.commands import promote as command
from wukong.config import documents
from wukong.errors import ConfigError, StackError
from wukong.registry.promotion import Decision, Rules


class Played:
    """Stands for the registry, which tests/wukong/registry/test_aliases.py tries with a real server."""

    def __init__(self, promoted: bool = True) -> None:
        self.promoted = promoted
        self.asked: list[Any] = []

    def __call__(self, model: str, alias: str) -> "Played":
        self.asked.append((model, alias))
        return self

    def promote(self, version: str, *, forced: str) -> Decision:
        self.asked.append((version, forced))
        os.write(1, b"a line of a job\n")
        rules = Rules("eval/retrieval/holdouts/mean_recall", 0.04, {})
        return Decision(self.promoted, "It is so.", "demo", "champion", version or "9", "3", "", 1, rules, (), forced)

    def rollback(self, reason: str) -> tuple[str, str]:
        self.asked.append(reason)
        return "7", "3"


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    made = Played()
    monkeypatch.setattr(command, "_registry", made)
    return made


def test_the_gate_is_asked_about_a_version_or_about_the_newest(played: Played) -> None:
    ended = CliRunner().invoke(app, ["promote", "demo/7"])
    assert (ended.exit_code, ended.output) == (0, "demo/7 holds @champion. It is so.\n")
    assert CliRunner().invoke(app, ["promote", "demo", "--alias", "best"]).exit_code == 0
    assert played.asked == [("demo", "champion"), ("7", ""), ("demo", "best"), ("", "")]


def test_an_alias_that_stays_ends_with_status_1(played: Played) -> None:
    played.promoted = False
    ended = CliRunner().invoke(app, ["promote", "demo/7"])
    assert ended.exit_code == 1 and "demo/7 does not take @champion" in ended.output
    assert "demo/3 keeps it" in ended.output
    ended = CliRunner().invoke(app, ["promote", "demo/7", "--json"])
    assert json.loads(ended.stdout)["promoted"] is False and ended.exit_code == 1


def test_the_log_of_a_job_is_no_part_of_the_answer(played: Played, capfd: pytest.CaptureFixture[str]) -> None:
    json.loads(CliRunner().invoke(app, ["promote", "demo/7", "--json"]).stdout)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "a line of a job\n")


def test_force_needs_a_reason(played: Played) -> None:
    for arguments, words in (
        (["--force"], "--force needs --reason"),
        (["--reason", "x"], "--reason goes with --force"),
    ):
        refused = CliRunner().invoke(app, ["promote", "demo/7", *arguments])
        assert isinstance(refused.exception, ConfigError) and words in str(refused.exception)
    assert played.asked == []
    CliRunner().invoke(app, ["promote", "demo/7", "--force", "--reason", "by hand"])
    assert played.asked[-1] == ("7", "by hand")


def test_a_model_is_named_as_mlflow_names_it(played: Played) -> None:
    assert CliRunner().invoke(app, ["promote", "models:/demo/7"]).output == "demo/7 holds @champion. It is so.\n"
    assert CliRunner().invoke(app, ["rollback", "models:/demo"]).output.startswith("demo/3 holds")
    assert played.asked == [("demo", "champion"), ("7", ""), ("demo", "champion"), ""]


def test_a_rollback_says_who_holds_the_alias(played: Played) -> None:
    ended = CliRunner().invoke(app, ["rollback", "demo", "--reason", "slow"])
    assert ended.output == "demo/3 holds @champion again; demo/7 was rolled back.\n" and played.asked[-1] == "slow"


def test_without_the_platform_no_holder_is_evaluated_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = documents.parse({"name": "x", "crawl": {"engine": "urls", "endpoint": "file:///list.csv"}})
    monkeypatch.setattr(command, "evaluated", command._not_evaluated)
    with pytest.raises(StackError, match="needs the platform"):
        command._evaluate(experiment, "r", [])
