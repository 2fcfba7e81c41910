"""Sweeps: which trials there are, what is refused, and that a search begun again asks for the same trials."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.registry import sweep as sweeps
from wukong.registry.sweep import Result, Sweep, Trial

EXPERIMENT = {"name": "x", "crawl": {"queries": "file:///q", "endpoint": "http://site.test"}}


def written(folder: Path, **sweep: Any) -> Path:
    (folder / "x.yaml").write_text(yaml.safe_dump(EXPERIMENT), encoding="utf-8")
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "experiment": "x.yaml", **sweep}, sort_keys=False), encoding="utf-8")
    return path


class Trained:
    """Trains nothing: a trial's value is a function of its learning rate. Remembers what it was asked for."""

    def __init__(self, until: int = 1000) -> None:
        self.runs: list[str] = []
        self.until = until

    def __call__(self, trials: Sequence[Trial]) -> list[Result]:
        found = []
        for trial in reversed(trials):  # they may end in any order
            if len(self.runs) == self.until:
                raise KeyboardInterrupt
            self.runs.append(trial.run)
            found.append(Result(trial, -abs(trial.experiment.pretrain.learning_rate - 0.01)))
        return found


def best(results: Sequence[Result]) -> Result | None:
    """The first result of the best configuration; None if no trial has a value."""
    return next((group[0] for group in sweeps.by_configuration(results)), None)


def test_a_grid_has_all_combinations(tmp_path: Path) -> None:
    values = {"pretrain.learning_rate": [0.01, 0.02], "model.text.layers": [1, 2, 3]}
    settings, base = sweeps.load(written(tmp_path, parameters=values, set=["pretrain.epochs=7"]))
    results = sweeps.run(settings, base, Trained())
    trials = [result.trial for result in sorted(results, key=lambda result: result.trial.number)]
    assert [tuple(trial.values.values()) for trial in trials] == [
        (0.01, 1), (0.01, 2), (0.01, 3), (0.02, 1), (0.02, 2), (0.02, 3),
    ]  # fmt: skip
    assert [trial.experiment.model.text.layers for trial in trials] == [1, 2, 3] * 2
    assert {trial.experiment.pretrain.epochs for trial in trials} == {7}
    assert len({trial.run for trial in trials}) == 6 and all(trial.run.startswith("s-") for trial in trials)
    top = best(results)
    assert top is not None and top.trial.values["pretrain.learning_rate"] == 0.01


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_begun_again_asks_for_the_same_trials(tmp_path: Path, sampler: str) -> None:
    pytest.importorskip("optuna")
    values = {"pretrain.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}, "model.text.layers": [1, 2]}
    file = written(tmp_path, parameters=values, sampler=sampler, trials=16, batch=3, seed=3)
    settings, base = sweeps.load(file)
    whole, killed, again = Trained(), Trained(until=8), Trained()
    sweeps.run(settings, base, whole)
    with pytest.raises(KeyboardInterrupt):
        sweeps.run(settings, base, killed)
    sweeps.run(settings, base, again)
    assert whole.runs == again.runs and killed.runs == whole.runs[:8] and len(whole.runs) == 16
    other = Trained()
    sweeps.run(settings.model_copy(update={"seed": 4}), base, other)
    assert set(other.runs) != set(whole.runs)


def test_seeds_share_a_grid_and_the_best_is_the_best_in_the_mean(tmp_path: Path) -> None:
    """The luckiest seed of all is of the configuration that is worse."""
    values = {"model.text.layers": [1, 2], "seed": [0, 1, 2]}
    settings, base = sweeps.load(written(tmp_path, parameters=values))
    lucky = {(1, 0): 0.1, (1, 1): 0.9, (1, 2): 0.1, (2, 0): 0.5, (2, 1): 0.4, (2, 2): 0.45}

    def trained(trials: Sequence[Trial]) -> list[Result]:
        return [Result(each, lucky[each.experiment.model.text.layers, each.experiment.seed]) for each in trials]

    results = sweeps.run(settings, base, trained)
    ranked = sweeps.by_configuration([*results, Result(results[0].trial, None, "no memory")])
    assert [[each.value for each in group] for group in ranked] == [[0.5, 0.4, 0.45], [0.1, 0.9, 0.1]]
    assert [sweeps.mean_of(group) for group in ranked] == pytest.approx([0.45, 1.1 / 3])
    assert best(results) == ranked[0][0]
    assert len({each.trial.run for each in results}) == 6 and {
        each.trial.experiment.filter.seed for each in results
    } == {0}


def test_a_search_is_told_the_mean_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optuna = pytest.importorskip("optuna")
    told, tell = [], optuna.study.Study.tell
    monkeypatch.setattr(
        optuna.study.Study, "tell", lambda *given, **options: told.append(given[2:]) or tell(*given, **options)
    )
    values = {"model.text.layers": [1, 2, 3], "seed": [4, 5]}
    settings, base = sweeps.load(written(tmp_path, parameters=values, sampler="random", trials=4, batch=2))
    asked: list[list[tuple[int, int]]] = []

    def trained(trials: Sequence[Trial]) -> list[Result]:
        asked.append([(each.experiment.model.text.layers, each.experiment.seed) for each in trials])
        return [Result(each, each.experiment.model.text.layers + each.experiment.seed / 10) for each in trials]

    results = sweeps.run(settings, base, trained)
    assert all([seed for _, seed in batch] == [4, 5] * (len(batch) // 2) for batch in asked)
    assert len(told) == 4 and {value for (value,) in told} <= {1.45, 2.45, 3.45}
    assert len(results) == 2 * len({layers for batch in asked for layers, _ in batch})


def test_a_search_runs_no_configuration_twice(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    file = written(tmp_path, parameters={"model.text.layers": [1, 2]}, sampler="random", trials=10, batch=2)
    trained = Trained()
    assert len(sweeps.run(*sweeps.load(file), trained)) == 2
    assert sorted(trained.runs) == sorted(set(trained.runs))


def test_trials_whose_stage_failed_are_left_out_of_the_search(tmp_path: Path) -> None:
    pytest.importorskip("optuna")

    def fails(trials: Sequence[Trial]) -> list[Result]:
        return [Result(trial, None, "no memory") for trial in trials]

    values = {"pretrain.learning_rate": {"low": 0.001, "high": 0.1}}
    results = sweeps.run(*sweeps.load(written(tmp_path, parameters=values, sampler="tpe", trials=3)), fails)
    assert [result.error for result in results] == ["no memory"] * 3 and best(results) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"parameters": {"filter.min_similarity": [0.1]}},
            "'filter.min_similarity' is not in model, pre",
        ),
        ({"parameters": {"filter.seed": [1, 2]}}, "'filter.seed' is not in"),
        ({"parameters": {"seed": [1, -2]}}, "seed cannot be -2"),
        ({"parameters": {"seed": {"low": 0, "high": 2}}}, "seed is a range: list the seeds"),
        ({"parameters": {"seed": [1, 2]}, "sampler": "random", "trials": 2}, "only seed is given"),
        ({"parameters": {"pretrain.epoch": [1]}}, "pretrain.epoch cannot be 1: there is no pretrain.epoch"),
        ({"parameters": {"pretrain.epochs": [1, -1]}}, "pretrain.epochs cannot be -1.*greater than"),
        ({"parameters": {"pretrain.epochs": []}}, "has no values"),
        ({"parameters": {"pretrain.epochs": [1, 1]}}, "one of them twice"),
        ({"parameters": {"pretrain.epochs": {"low": 1, "high": 2}}}, "is a range, and sampler is grid"),
        ({"parameters": {"pretrain.epochs": {"low": 2, "high": 1}}, "sampler": "tpe", "trials": 1}, "low < high"),
        ({"parameters": {"pretrain.epochs": [1]}, "trials": 3}, "a grid has all combinations"),
        ({"parameters": {"pretrain.epochs": [1]}, "sampler": "tpe"}, "does not end by itself"),
        ({"parameters": {"pretrain.epochs": [1]}, "metrics": "x"}, "metrics: .*\n  the keys are name, experiment"),
        ({"parameters": {"pretrain.epochs": [1]}, "experiment": "none.yaml"}, "no experiment file at"),
        ({"parameters": {"pretrain.epochs": [1]}, "experiment": None}, "experiment is missing: .*--data"),
    ],
)
def test_what_a_sweep_cannot_be_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        sweeps.load(written(tmp_path, **changes))


def test_the_sweep_in_the_docs_is_the_one_in_configs() -> None:
    pytest.importorskip("optuna")
    root = Path(__file__).parents[3]
    text = (root / "configs" / "sweeps" / "demo.yaml").read_text("utf-8").split("\n", 1)[1]
    assert f"```text\n{text}```" in (root / "docs" / "comparing.md").read_text("utf-8")
    settings, base = sweeps.load(root / "configs" / "sweeps" / "demo.yaml")
    first = Trained()
    sweeps.run(settings.model_copy(update={"trials": 2}), base, first)
    assert len(first.runs) == 2


def test_the_sweep_over_seeds_in_the_docs_is_the_one_in_configs() -> None:
    root = Path(__file__).parents[3]
    text = (root / "configs" / "sweeps" / "seeds.yaml").read_text("utf-8").split("\n", 1)[1]
    assert f"```text\n{text}```" in (root / "docs" / "comparing.md").read_text("utf-8")
    settings, base = sweeps.load(root / "configs" / "sweeps" / "seeds.yaml")
    assert [each["seed"] for each in sweeps.grid(settings)] == [0, 1, 2] and base.name == "demo"


def test_equal_values_have_one_run(tmp_path: Path) -> None:
    settings = Sweep(name="s", experiment="x", parameters={"pretrain.epochs": [1]})
    base = Experiment.model_validate(EXPERIMENT)
    first, later = (sweeps.trial_of(settings, base, number, {"pretrain.epochs": 3}) for number in (0, 5))
    assert first.run == later.run
    assert first.run != sweeps.trial_of(settings, base, 0, {"pretrain.epochs": 4}).run


def test_the_best_has_the_largest_value_whatever_is_not_a_number() -> None:
    settings = Sweep(name="s", experiment="x", parameters={"pretrain.epochs": [1]})
    base = Experiment.model_validate(EXPERIMENT)
    trials = [sweeps.trial_of(settings, base, number, {"pretrain.epochs": number + 1}) for number in range(4)]
    for values, number in (
        ([math.nan, 0.2, 0.5, None], 2), ([0.1, math.nan], 0), ([-0.5, None, -0.25], 2), ([0.5, 0.5], 0),
        ([math.inf, 0.1], 1),
    ):  # fmt: skip
        results = [Result(trial, value) for trial, value in zip(trials, values, strict=False)]
        assert best(results) is results[number], values
    assert best([Result(trials[0], math.nan), Result(trials[1], None)]) is None
