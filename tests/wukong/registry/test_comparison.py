"""Comparing runs: what is paired, what is not, and what is not compared."""

import json
from pathlib import Path
from typing import Any

import measured
import numpy as np
import pytest
from scipy import stats

from wukong.errors import ConfigError
from wukong.evaluate import stored as stored_evaluation
from wukong.evaluate.results import Outcome
from wukong.registry import comparison, promotion
from wukong.registry.comparison import Measured
from wukong.report import comparison as page
from wukong.store import storage
from wukong.tracking.mlflow_rest import Run

RNG = np.random.default_rng(5)
HARD = RNG.random(1000)
WEAK, SAME, STRONG = HARD < 0.50, np.roll(HARD, 500) < 0.50, HARD < 0.54


def run(
    name: str, tmp_path: Path, *outcomes: Outcome, stored: bool = True, params: dict[str, str] | None = None
) -> Measured:
    made = measured.evaluation(storage.from_path(tmp_path), outcomes, key=name, stored=stored)
    return Measured(Run(name * 32, "1", name, "FINISHED", {}, {}, params or {}), stored_evaluation.read(made.uri))


def entry(document: dict[str, Any], task: str, result: str, place: int = 1) -> dict[str, Any]:
    (found,) = (each for each in document["sets"] if each["task"] == task)
    return dict(found["results"][result][place])


def test_a_difference_of_the_same_queries_is_paired(tmp_path: Path) -> None:
    runs = [run(name, tmp_path, measured.searched("birds", hits)) for name, hits in (("a", WEAK), ("b", STRONG))]
    found = entry(comparison.compare(runs), "birds", "text_to_image_r1")
    gains = STRONG.astype(float) - WEAK  # WEAK is within STRONG: none is lost, so the ends are those of a share
    known = stats.binomtest(int(gains.sum()), len(gains)).proportion_ci(method="wilson")
    none = stats.binomtest(0, len(gains)).proportion_ci()
    assert found["difference"]["paired"] and found["verdict"] == "better"
    assert found["difference"]["value"] == pytest.approx(gains.mean())
    assert found["difference"]["high"] == pytest.approx(known.high)
    assert found["difference"]["low"] == pytest.approx(gains.mean() - np.hypot(gains.mean() - known.low, none.high))
    unpaired = [run(f"{n}", tmp_path, measured.searched("birds", h), stored=False) for n, h in ((1, WEAK), (2, STRONG))]
    found = entry(comparison.compare(unpaired), "birds", "text_to_image_r1")
    assert not found["difference"]["paired"] and found["verdict"] == "noise", "the unpaired interval is wider"
    assert "unpaired" in found["note"]


def test_what_is_inside_the_noise_and_what_is_worse(tmp_path: Path) -> None:
    given = {"a": STRONG, "b": SAME, "c": WEAK, "d": STRONG}
    runs = [run(name, tmp_path, measured.classified("groups", hits)) for name, hits in given.items()]
    found = comparison.compare(runs)
    assert [entry(found, "groups", "top1", n)["verdict"] for n in range(4)] == ["baseline", "noise", "worse", "noise"]
    far = stats.binomtest(0, 1000).proportion_ci().high
    assert entry(found, "groups", "top1", 3)["difference"] == {
        "value": 0, "low": pytest.approx(-far), "high": pytest.approx(far),
        "level": 0.95, "units": 1000, "paired": True,
    }, "equal answers to 1,000 queries do not show that models are equal"  # fmt: skip


def test_other_data_and_other_protocols_are_not_compared(tmp_path: Path) -> None:
    runs = [
        run("a", tmp_path, measured.searched("birds", WEAK)),
        run("b", tmp_path, measured.searched("birds", STRONG, digest="f" * 64)),
        run("c", tmp_path, measured.searched("birds", STRONG, protocol="paper")),
        run("d", tmp_path, measured.searched("cats", STRONG)),
    ]
    found = comparison.compare(runs)
    row = [entry(found, "birds", "mean_recall", n) for n in range(4)]
    assert [each["verdict"] for each in row] == ["baseline", "incomparable", "incomparable", "missing"]
    assert row[1]["note"] == "not comparable: other data (birds100 and ffffffff)"
    assert row[2]["note"] == "not comparable: protocols own and paper"
    assert [each["difference"] for each in row] == [None] * 4 and row[1]["value"] == pytest.approx(STRONG.mean())
    assert entry(found, "cats", "mean_recall", 3)["note"] == "not comparable: the first run was not measured on it"


def test_the_mean_over_holdouts_is_compared_where_they_are_the_same(tmp_path: Path) -> None:
    def both(first: Any, second: Any) -> tuple[Outcome, Outcome]:
        return measured.searched("birds", first), measured.searched("cats", second[:300])

    runs = [run("a", tmp_path, *both(WEAK, WEAK)), run("b", tmp_path, *both(STRONG, STRONG)),
            run("c", tmp_path, measured.searched("birds", WEAK))]  # fmt: skip
    found = comparison.compare(runs)
    mean = entry(found, "holdouts", "mean_recall")
    assert mean["value"] == pytest.approx((STRONG.mean() + STRONG[:300].mean()) / 2)
    gains = [float(STRONG[:n].mean() - WEAK[:n].mean()) for n in (1000, 300)]
    error = sum(g * (1 - g) / n for g, n in zip(gains, (1000, 300), strict=True)) ** 0.5 / 2  # WEAK is within STRONG
    assert mean["difference"]["value"] == pytest.approx(sum(gains) / 2)
    assert mean["difference"]["high"] - mean["difference"]["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert entry(found, "holdouts", "mean_recall", 2)["note"] == "not comparable: other hold-outs"


def test_hold_outs_in_another_order_are_the_same_hold_outs(tmp_path: Path) -> None:
    birds, cats = measured.searched("birds", WEAK), measured.searched("cats", STRONG[:300])
    found = comparison.compare([run("a", tmp_path, birds, cats), run("b", tmp_path, cats, birds)])
    mean = entry(found, "holdouts", "mean_recall")
    assert (mean["verdict"], mean["note"]) == ("noise", "")
    assert mean["difference"]["value"] == 0
    rules = promotion.Rules("eval/retrieval/holdouts/mean_recall", 0.04, {})
    ours, theirs = (
        run(name, tmp_path, *each).evaluation for name, each in {"c": (birds, cats), "d": (cats, birds)}.items()
    )
    assert promotion.unpaired(rules, ours, theirs) == ""


def test_only_parameters_that_differ_are_shown(tmp_path: Path) -> None:
    sets = measured.classified("groups", WEAK)
    runs = [run("a", tmp_path, sets, params={"seed": "1", "pretrain.epochs": "3"}),
            run("b", tmp_path, sets, params={"seed": "1", "pretrain.epochs": "5"}),
            run("c", tmp_path, sets, params={"pretrain.epochs": "5"})]  # fmt: skip
    found = comparison.compare(runs)
    assert found["parameters"] == {"seed": ["1", "1", None], "pretrain.epochs": ["3", "5", "5"]}


def test_one_run_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two runs or more"):
        comparison.compare([run("a", tmp_path, measured.classified("groups", WEAK))])


def test_the_page_marks_noise_by_a_sign(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    runs = [run("a", tmp_path, measured.classified("groups", WEAK), params={"x": nasty}),
            run("b", tmp_path, measured.classified("groups", STRONG), params={"x": "1"}),
            run("c", tmp_path, measured.classified("groups", SAME), params={"x": "2"})]  # fmt: skip
    document = comparison.compare(runs)
    shown = page.render(document)
    assert nasty not in shown and "&lt;script&gt;" in shown
    assert shown.count('<td class="n better">') == 2 and shown.count('<td class="n noise">') == 2
    assert "▲" in shown.split('<td class="n better">')[1].split("</td>")[0]
    assert "≈" in shown.split('<td class="n noise">')[1].split("</td>")[0]
    assert json.loads(json.dumps(document)) == document
