"""The alias in a real MLflow server; MLflow's own client says who holds it and what was recorded."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from registered import HARD, Registered

from wukong.errors import ConfigError, DataError
from wukong.registry import aliases, choices
from wukong.registry.aliases import held_before
from wukong.store import storage
from wukong.store.manifest import Manifest, Stage
from wukong.tracking.mlflow_rest import Server


@pytest.mark.parametrize(
    ("moves", "holder", "before"),
    [
        ([], "", ""),
        ([("promote", "1", "")], "1", ""),
        ([("promote", "1", ""), ("promote", "3", "1")], "3", "1"),
        ([("promote", "1", ""), ("promote", "3", "1"), ("rollback", "1", "3"), ("promote", "4", "1")], "4", "1"),
        ([("promote", "1", ""), ("promote", "3", "1"), ("rollback", "1", "3")], "1", ""),
        ([("promote", "3", "2")], "3", "2"),  # 2 had the alias before moves were recorded
        ([("promote", "1", ""), ("promote", "3", "1")], "9", "3"),  # a person moved it in MLflow
    ],
)
def test_who_held_the_alias_before(moves: list[tuple[str, str, str]], holder: str, before: str) -> None:
    history = [{"action": action, "version": version, "from": left} for action, version, left in moves]
    assert held_before(history, holder) == before


def champion(register: Registered) -> str:
    from mlflow import MlflowClient

    return str(MlflowClient().get_model_version_by_alias(register.name, "champion").version)


def tags(register: Registered) -> Mapping[str, str]:
    from mlflow import MlflowClient

    found: Mapping[str, str] = MlflowClient().get_registered_model(register.name).tags
    return found


@pytest.mark.slow
def test_the_alias_moves_only_to_a_model_that_is_better_by_more_than_noise(register: Registered) -> None:
    from mlflow import MlflowClient

    assert register(0.5) | {"eval/retrieval/holdouts/mean_recall": 0} == {
        "version": 1, "promoted": 1, "attempt": 0, "eval/retrieval/holdouts/mean_recall": 0,
    }  # fmt: skip
    assert (register(0.4)["attempt"], champion(register)) == (1, "1")
    noise = float(np.sort(HARD)[(HARD < 0.5).sum() + 2])  # two queries more, which is p = 0.25
    assert (register(noise)["promoted"], champion(register)) == (0, "1")
    better = register(0.6)
    assert (better["promoted"], better["attempt"], champion(register)) == (1, 3, "4")
    assert register(0.6)["version"] == 4, "the same evaluation is not registered twice"
    (attempts,) = (json.loads(value) for key, value in tags(register).items() if key.startswith("wukong.attempts."))
    assert len(attempts) == 3
    assert register.registry.decide("3").attempt == 1, "a new holder, so attempts are counted anew"
    assert register.registry.decide("3").attempt == 1, "the same candidate is not counted twice"
    client = MlflowClient()
    version = client.get_model_version(register.name, "3")
    decision = json.loads(Path(client.download_artifacts(version.run_id, "promotion.json")).read_text("utf-8"))
    assert (decision["promoted"], decision["attempt"], decision["checks"][0]["p"]) == (False, 2, pytest.approx(0.25))
    assert "does not take" in Path(client.download_artifacts(version.run_id, "promotion.html")).read_text("utf-8")
    assert {file.path for file in client.list_artifacts(version.run_id, "model")} == {"model"} or version.run_id


@pytest.mark.slow
def test_a_rollback_gives_the_alias_to_the_version_before(register: Registered) -> None:
    for share in (0.4, 0.5, 0.6):
        assert register(share)["promoted"] == 1
    assert register.registry.rollback("slow") == ("3", "2")
    assert champion(register) == "2"
    refused = register.registry.promote("3")
    assert not refused.promoted and "rolled back" in refused.says and champion(register) == "2"
    assert register.registry.promote("3", forced="faster now").promoted and champion(register) == "3"
    assert register.registry.decide("3").promoted, "it holds the alias"
    assert register.registry.rollback("") == ("3", "2") and register.registry.rollback("") == ("2", "1")
    with pytest.raises(ConfigError, match="nothing to roll back to"):
        register.registry.rollback("")
    moves = json.loads(tags(register)["wukong.history.champion"])
    assert [(move["action"], move["version"]) for move in moves] == [
        ("promote", "1"), ("promote", "2"), ("promote", "3"), ("rollback", "2"), ("promote", "3"), ("rollback", "2"),
        ("rollback", "1"),
    ]  # fmt: skip
    assert moves[4]["reason"] == "faster now" and moves[3]["reason"] == "slow" and all(move["by"] for move in moves)


@pytest.mark.slow
def test_the_holder_of_an_alias_and_the_one_before_it_are_needed(register: Registered) -> None:
    for share in (0.4, 0.5, 0.6, 0.3):
        register(share)
    assert champion(register) == "3"
    needed = {address: tags for address, tags in aliases.needed_versions(Server()).items() if register.name in address}
    assert set(needed) == {f"models:/{register.name}/3", f"models:/{register.name}/2"}
    best = needed[f"models:/{register.name}/3"]
    assert storage.exists(storage.join(best["wukong.model"], "manifest.json"))
    assert storage.exists(best["wukong.evaluation.uri"])
    Server().ask("DELETE", "model-versions/delete", {"name": register.name, "version": "2"})
    needed = {address: tags for address, tags in aliases.needed_versions(Server()).items() if register.name in address}
    assert set(needed) == {f"models:/{register.name}/3"}


@pytest.mark.slow
def test_models_of_other_data_do_not_compete(register: Registered) -> None:
    assert register(0.5)["promoted"] == 1
    moved = register.of(endpoint="http://other.test")
    assert register(0.9, of=moved) | {"promoted": 0} == register(0.9, of=moved)
    assert champion(register) == "1" and "another experiment" in register.registry.decide("2").says


@pytest.mark.slow
def test_a_holder_is_evaluated_on_the_test_set_of_the_candidate(register: Registered) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    assert register(0.5, of=register.of(layers=2))["promoted"] == 1 and not register.asked
    assert (register(0.51)["promoted"], register.asked) == (1, []), "the same queries: nothing is evaluated"
    assert register(0.4)["attempt"] == 1
    lucky = float(np.sort(HARD)[(HARD < 0.51).sum() + 2])  # two queries more: p = 0.25
    found = register(lucky, crawl="second")
    assert (found["promoted"], found["attempt"]) == (0, 2), "another test set does not begin the count anew"
    assert champion(register) == "2" and register.asked[0] == (f"run-{lucky}", "second", 12)
    better = register(0.6, crawl="second")
    assert (better["promoted"], better["attempt"], champion(register)) == (1, 3, "5")
    version = client.get_model_version(register.name, "5")
    decision = json.loads(Path(client.download_artifacts(version.run_id, "promotion.json")).read_text("utf-8"))
    gained = int(((HARD < 0.6) & (HARD >= 0.51)).sum())
    assert decision["checks"][0]["p"] == pytest.approx(max(0.5**gained, 1e-12))
    assert "other data" in decision["anew"]["why"] and decision["anew"]["measured"]["x"]["digest"][:6] == "second"
    shown = Path(client.download_artifacts(version.run_id, "promotion.html")).read_text("utf-8")
    assert f"{register.name}/2 was evaluated anew" in shown and decision["anew"]["evaluation"] in shown
    # A version of somebody else holds the alias.
    client.delete_model_version_tag(register.name, "5", "wukong.evaluation.uri")
    asked = register.registry.decide("4")
    assert asked.attempt == 1 and asked.anew is not None and "without the address" in asked.anew.why
    client.delete_model_version_tag(register.name, "3", aliases.GATE)
    with pytest.raises(DataError, match=r"version 3 has no tag wukong\.gate: it was not registered by Wukong"):
        register.registry.decide("3")


@pytest.mark.slow
def test_a_holder_that_cannot_be_evaluated_keeps_the_alias(register: Registered) -> None:
    assert register(0.5)["promoted"] == 1
    model = register.model(register.experiment, 0.5, "")
    storage.delete(storage.join(model.uri, "manifest.json"))
    assert register(0.9, crawl="second")["promoted"] == 0 and champion(register) == "1"
    refused = register.registry.decide("2")
    assert (refused.promoted, refused.attempt, register.asked) == (False, 0, [])
    for words in ("other data", f"no manifest at {model.uri}", f"`wukong promote {register.name}/2`", "--force"):
        assert words in refused.says
    register.model(register.experiment, 0.5, "")  # somebody has put it back
    assert register.registry.decide("2").promoted


@pytest.mark.slow
def test_what_is_not_there_is_named(register: Registered) -> None:
    with pytest.raises(ConfigError, match=f"no model '{register.name}'"):
        register.registry.promote()
    with pytest.raises(ConfigError, match=f"no model '{register.name}'"):
        register.registry.rollback("")
    register(0.5)
    with pytest.raises(ConfigError, match=f"no model {register.name}/7"):
        register.registry.promote("7")


@pytest.mark.slow
def test_the_best_of_a_sweep_counts_as_all_its_trials_and_can_still_be_promoted(register: Registered) -> None:
    from mlflow import MlflowClient

    register(0.5)

    def swept(share: float, name: str, trials: int) -> Manifest:
        """Record a sweep of several models, of which the named one is registered later."""
        filtered = Stage(register.experiment.root, "filter", {"crawl": "first"}).commit([])
        best = register.model(register.experiment, share, name)
        for number in range(trials):
            model = register.model(register.experiment, 0.1, f"{name}-{number}") if number else best
            evaluated = register.evaluation(register.experiment, filtered, model)
            metric = register.experiment.registry.metric
            choices.record_trial(register.experiment.root, f"sweep-{name}", metric, f"run-{number}", evaluated)
        return best

    # 5 queries more: p = 0.031 would pass at no level, 6 at that of a first attempt, which a best of 12 is not.
    lucky = float(np.sort(HARD)[(HARD < 0.5).sum() + 6])
    swept(lucky, "lucky", 12)
    found = register(lucky, "lucky")
    assert (found["promoted"], found["attempt"]) == (0, 1)
    assert register(0.4)["attempt"] == 13, "the sweep's trials are attempts 1 to 12"
    swept(0.54, "better", 50)
    better = register(0.54, "better")
    assert (better["promoted"], better["attempt"], champion(register)) == (1, 14, "4")
    version = MlflowClient().get_model_version(register.name, "4")
    assert json.loads(version.tags["wukong.chosen"]) == [
        {"by": "the sweep sweep-better", "of": 50, "metric": "retrieval/holdouts/mean_recall", "tasks": []}
    ]
    decision = json.loads(Path(MlflowClient().download_artifacts(version.run_id, "promotion.json")).read_text("utf-8"))
    assert (decision["attempt"], decision["count"]) == (14, 50)
    assert "attempts 14 to 63" in decision["says"]
    asked = register.registry.decide("2")
    assert (asked.attempt, asked.count) == (1, 12)
    assert register.registry.decide("3").attempt == 13
