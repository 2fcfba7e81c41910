"""Runs that differ in their seed alone: which those are, and their statistics, against scipy's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measured
import numpy as np
import pytest
from scipy import stats

from wukong.evaluate import stored as stored_evaluation
from wukong.evaluate.results import Outcome
from wukong.registry import comparison, over_seeds
from wukong.registry.comparison import Measured
from wukong.report import comparison as page
from wukong.store import storage
from wukong.tracking.mlflow_rest import Run

RNG = np.random.default_rng(3)
RATE = "pretrain.learning_rate"


def run(name: str, folder: Path, outcomes: list[Outcome], params: dict[str, str]) -> Measured:
    made = measured.evaluation(storage.from_path(folder), outcomes, key=name)
    return Measured(Run(name * 32, "1", name, "FINISHED", {}, {}, params), stored_evaluation.read(made.uri))


def of_seeds(folder: Path, shares: dict[str, list[float]], **changed: Any) -> tuple[list[Measured], dict[str, Any]]:
    """Runs of a learning rate and as many seeds as there are shares of right answers; and these shares as they came."""
    runs, values = [], {}
    for rate, each in shares.items():
        for seed, share in enumerate(each):
            hits = RNG.random(400) < share
            values[rate, str(seed)] = hits.mean()
            outcomes = [measured.searched("birds", hits, **changed), measured.searched("cats", ~hits)]
            runs.append(run(f"{rate}-{seed}", folder, outcomes, {"name": "x", "seed": str(seed), RATE: rate}))
    return runs, values


def entries(document: dict[str, Any], task: str = "birds", result: str = "text_to_image_r1") -> list[dict[str, Any]]:
    (found,) = (each for each in document["sets"] if each["task"] == task)
    return list(found["over_seeds"][result])


def rounded(values: Any, part: float) -> Any:
    """Student's interval, with the variance of what is rounded to a 400th added."""
    error = np.sqrt((np.var(values, ddof=1) + part / 400**2) / len(values))
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
    return SimpleNamespace(low=low, high=high)


def test_seeds_whose_coarse_results_are_equal_are_not_sure(tmp_path: Path) -> None:
    """Both seeds gain three of 400 queries: their spread is 0, and would make any difference more than noise."""
    hits = RNG.random(400) < 0.5
    better = np.where(np.cumsum(~hits) <= 3, True, hits)
    runs = [
        run(f"{rate}-{seed}", tmp_path, [measured.searched("birds", right)], {"seed": str(seed), RATE: rate})
        for rate, right in (("0.1", hits), ("0.2", better))
        for seed in range(2)
    ]
    found = entries(comparison.compare(runs))[1]
    assert (found["verdict"], found["sd"]) == ("noise", 0) and found["difference"]["value"] == pytest.approx(3 / 400)
    assert found["difference"]["low"] < 0 < found["difference"]["high"]


def test_mean_spread_and_paired_differences_are_scipys(tmp_path: Path) -> None:
    runs, values = of_seeds(tmp_path, {"0.1": [0.50, 0.53, 0.51, 0.55], "0.2": [0.60, 0.64, 0.61, 0.66]})
    document = comparison.compare(runs)
    assert document["configurations"] == [
        {"name": f"{RATE}=0.1", "parameters": {RATE: "0.1"}, "runs": {str(s): f"0.1-{s}" for s in range(4)}},
        {"name": f"{RATE}=0.2", "parameters": {RATE: "0.2"}, "runs": {str(s): f"0.2-{s}" for s in range(4)}},
    ]
    first, second = ([values[rate, str(seed)] for seed in range(4)] for rate in ("0.1", "0.2"))
    found = entries(document)
    for entry, own in zip(found, (first, second), strict=True):
        known = rounded(own, 1 / 12)
        assert (entry["value"], entry["sd"]) == pytest.approx((np.mean(own), np.std(own, ddof=1)))
        assert (entry["low"], entry["high"]) == pytest.approx((known.low, known.high))
        assert entry["seeds"] == ["0", "1", "2", "3"]
    known = rounded(np.subtract(second, first), 1 / 6)
    difference = found[1]["difference"]
    assert difference["value"] == pytest.approx(np.mean(second) - np.mean(first))
    assert (difference["low"], difference["high"]) == pytest.approx((known.low, known.high))
    assert (difference["units"], found[1]["verdict"], found[0]["verdict"]) == (4, "better", "baseline")
    assert found[0]["difference"] is None
    shown = page.render(document)
    assert page.difference(difference) in shown and page.over_seeds(found[1])[2] in shown
    # The mean over hold-outs too: here every query is right on one of the two.
    assert [each["value"] for each in entries(document, "holdouts", "mean_recall")] == pytest.approx([0.5, 0.5])


def test_the_interval_of_the_mean_covers_it() -> None:
    """Three seeds, whose values are drawn around a known mean."""
    drawn = RNG.normal(0.4, 0.02, (2000, 3))
    held = [found.low <= 0.4 <= found.high for found in (over_seeds.mean(row.tolist()) for row in drawn)]
    assert stats.binomtest(sum(held), len(held), 0.95).pvalue > 0.01, np.mean(held)


def test_one_configuration_has_no_difference_and_a_page(tmp_path: Path) -> None:
    runs, values = of_seeds(tmp_path, {"0.1": [0.50, 0.53, 0.51]})
    document = comparison.compare(runs)
    assert [each["name"] for each in document["configurations"]] == ["all runs"]
    (entry,) = entries(document)
    assert entry["value"] == pytest.approx(np.mean([*values.values()])) and entry["difference"] is None
    shown = page.render(document)
    assert "Over seeds, %" in shown and f"<b>{100 * entry['value']:.1f}</b> ± {100 * entry['sd']:.2f}" in shown
    assert page.over_seeds(entry)[2] == f"{100 * entry['low']:.1f} to {100 * entry['high']:.1f}"


def test_only_seeds_that_both_have_are_paired(tmp_path: Path) -> None:
    runs, values = of_seeds(tmp_path, {"0.1": [0.5, 0.5, 0.5], "0.2": [0.6, 0.6], "0.3": [0.6]})
    _, second, third = entries(comparison.compare(runs))
    gains = [values["0.2", seed] - values["0.1", seed] for seed in "01"]
    assert second["difference"]["value"] == pytest.approx(np.mean(gains)) and second["difference"]["units"] == 2
    assert third["difference"] is None and third["sd"] is None and third["value"] == pytest.approx(values["0.3", "0"])
    assert third["verdict"] == "incomparable" and "fewer than two seeds" in third["note"]


def test_an_interval_holds_no_share_that_there_cannot_be(tmp_path: Path) -> None:
    runs, _ = of_seeds(tmp_path, {"0.1": [0.1, 0.9]})
    (entry,) = entries(comparison.compare(runs))
    assert (entry["low"], entry["high"]) == (0, 1), "two seeds so far apart tell nothing"


def test_runs_on_other_data_are_left_out(tmp_path: Path) -> None:
    ours, values = of_seeds(tmp_path, {"0.1": [0.5, 0.5]})
    others, _ = of_seeds(tmp_path / "b", {"0.2": [0.6, 0.6]}, digest="f" * 64)
    found = entries(comparison.compare([*ours, *others]))
    assert found[0]["value"] == pytest.approx(np.mean([*values.values()]))
    assert (found[1]["value"], found[1]["verdict"]) == (None, "missing") and "other data" in found[1]["note"]


def test_runs_that_differ_in_more_or_have_no_seed_are_not_taken_together(tmp_path: Path) -> None:
    runs, _ = of_seeds(tmp_path, {"0.1": [0.5], "0.2": [0.6]})
    document = comparison.compare(runs)
    assert document["configurations"] == [] and [each["over_seeds"] for each in document["sets"]] == [{}, {}, {}]
    assert "Over seeds" not in page.render(document)
    assert over_seeds.configurations([{}, {}, {"a": "1"}]) == []
    # A run that was made twice is one seed.
    twice = over_seeds.configurations([{"seed": "0"}, {"seed": "0"}, {"seed": "1"}])
    assert [each.runs for each in twice] == [{"0": 0, "1": 2}]
