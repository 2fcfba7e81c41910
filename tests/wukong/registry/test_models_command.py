"""``wukong models`` beside MLflow's own client."""

import json

import pytest
from registered import Registered
from typer.testing import CliRunner

from wukong.commands.app import app
from wukong.errors import ConfigError


def models(*arguments: str) -> str:
    return CliRunner().invoke(app, ["models", *arguments], catch_exceptions=False, env={"COLUMNS": "80"}).stdout


@pytest.mark.slow
def test_versions_are_listed_with_their_holders_and_runs(register: Registered) -> None:
    from mlflow import MlflowClient

    for share, name in ((0.5, "first"), (0.4, "worse"), (0.6, "better")):
        register(share, name)
    client = MlflowClient()
    client.set_registered_model_alias(register.name, "old", "1")
    client.set_registered_model_alias(register.name, "older", "1")
    listed = json.loads(models(register.name, "--json"))
    known = sorted(client.search_model_versions(f"name = '{register.name}'"), key=lambda each: -int(each.version))
    assert [each["model"] for each in listed] == [f"models:/{register.name}/{each.version}" for each in known]
    assert [each["aliases"] for each in listed] == [["champion"], [], ["old", "older"]]
    assert [each["run"] for each in listed] == ["run-better", "run-worse", "run-first"]
    assert [each["value"] for each in listed] == [float(each.tags["wukong.value"]) for each in known]
    assert listed[0]["value"] > listed[2]["value"] > listed[1]["value"]
    assert "not better by more than noise" in listed[1]["decided"]
    lines = models(f"models:/{register.name}").splitlines()
    assert lines[1].split()[:4] == [f"models:/{register.name}/3", "@champion", "run-better", lines[1].split()[3]]
    assert lines[-1].strip() == f"value: {listed[0]['metric']}" and len(lines) == 5
    assert len(json.loads(models("--json"))) >= 3
    with pytest.raises(ConfigError, match="has no model 'none-such'; `wukong models` lists all"):
        models("none-such")
    with pytest.raises(ConfigError, match="has no quotes"):
        models("it's")
