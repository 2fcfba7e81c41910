"""The gate as a test: its level over many attempts, its power, its guards. Oracles are binomial and normal laws."""

from itertools import product
from pathlib import Path
from typing import Any

import measured
import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from wukong import promotion, storage
from wukong.evaluate import stored
from wukong.evaluate.results import Outcome
from wukong.evaluate.stored import Evaluation
from wukong.promotion import Decision, Rules, level_of, sign_flip
from wukong.report import promotion as page

LEVEL = 0.04
METRIC = "eval/classification/holdouts/top1"
RULES = Rules(METRIC, LEVEL, {})


def test_right_and_wrong_answers_are_tested_by_the_binomial_law() -> None:
    for better, worse in ((30, 12), (5, 5), (0, 7), (400, 380), (1, 0)):
        gains = np.concatenate([np.ones(better), -np.ones(worse), np.zeros(500)]) / 3000
        known = stats.binomtest(better, better + worse, alternative="greater").pvalue
        assert sign_flip(gains) == pytest.approx(known, rel=1e-9)
    assert sign_flip(np.zeros(10)) == 1.0


def test_gains_of_any_size_are_tested_by_all_their_signs() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        gains = rng.normal(0.3, 1, 12)
        signed = np.array(list(product((1, -1), repeat=12))) @ np.abs(gains)
        assert sign_flip(gains) == pytest.approx((signed >= gains.sum() - 1e-12).mean(), abs=2e-3)
        shares = rng.integers(-5, 6, 12) / 30  # whole steps: exact
        signed = np.array(list(product((1, -1), repeat=12))) @ np.abs(shares)
        assert sign_flip(shares) == pytest.approx((signed >= shares.sum() - 1e-9).mean(), rel=1e-9)


def test_many_gains_are_tested_as_by_the_normal_law() -> None:
    gains = np.random.default_rng(2).normal(0.05, 1, 5000)
    z = gains.sum() / np.sqrt((gains**2).sum())
    assert sign_flip(gains) == pytest.approx(stats.norm.sf(z), rel=0.02)


def test_the_levels_of_all_attempts_sum_up_to_the_level() -> None:
    spent = sum(level_of(attempt, LEVEL) for attempt in range(1, 100_000))
    assert LEVEL - 1e-5 < spent < LEVEL
    # Of 200 equal candidates, each the first on its test set, more than 10 are promoted in 1 % of all cases.
    assert stats.binom.sf(10, 200, level_of(1, LEVEL)) < 0.011


def answers(
    rng: np.random.Generator, holder: npt.NDArray[Any], share: float, better: float, worse: float
) -> npt.NDArray[Any]:
    """Answers of a model that gains and loses a share of all queries against a holder that is right on a share of them.

    The shares are those of all queries there could be, so on a test set where the holder had luck, few models beat it.
    """
    wins, losses = better / (1 - share), worse / share
    return np.where(holder, rng.random(holder.shape) >= losses, rng.random(holder.shape) < wins)


def p_values(holder: npt.NDArray[Any], candidates: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.array([sign_flip(each.astype(float) - holder) for each in candidates])


def test_of_200_equal_candidates_at_most_5_percent_are_promoted() -> None:
    """Each has a test set of its own, so each is a first attempt: the least strict case."""
    rng = np.random.default_rng(3)
    promoted = 0
    for _ in range(200):
        holder = rng.random(2000) < 0.5
        promoted += p_values(holder, answers(rng, holder, 0.5, 0.08, 0.08)[None])[0] <= level_of(1, LEVEL)
    assert promoted <= 10, promoted


def test_of_20_equal_candidates_in_a_row_none_is_promoted_in_95_percent_of_all_rows() -> None:
    """Each row is at one holder on one test set."""
    rng = np.random.default_rng(4)
    levels = np.array([level_of(attempt, LEVEL) for attempt in range(1, 21)])
    rows = 300
    wrong = 0
    for _ in range(rows):
        holder = rng.random(500) < 0.5
        candidates = answers(rng, np.tile(holder, (20, 1)), 0.5, 0.08, 0.08)
        wrong += bool((p_values(holder, candidates) <= levels).any())
    assert wrong / rows <= 0.05, wrong
    assert stats.binomtest(wrong, rows, LEVEL, alternative="greater").pvalue > 0.01


def test_three_points_on_2000_queries_are_promoted_in_90_percent() -> None:
    """Two models of one data set that are right on 40 and 43 % agree on 87 % of the queries (correlation 0.73)."""
    rng = np.random.default_rng(5)
    queries, better, worse = 2000, 0.08, 0.05
    first, second = 0.40, 0.43
    both = first - worse
    correlation = (both - first * second) / np.sqrt(first * (1 - first) * second * (1 - second))
    assert correlation == pytest.approx(0.73, abs=0.01)
    spread = np.sqrt(better + worse)
    z = stats.norm.isf(level_of(1, LEVEL)) * spread
    power = stats.norm.sf((z - np.sqrt(queries) * (better - worse)) / np.sqrt(better + worse - (better - worse) ** 2))
    trials, promoted = 300, 0
    for _ in range(trials):
        holder = rng.random(queries) < first
        promoted += p_values(holder, answers(rng, holder, first, better, worse)[None])[0] <= level_of(1, LEVEL)
    assert power > 0.9 and promoted / trials >= 0.9, (power, promoted / trials)
    assert stats.binomtest(promoted, trials, power).pvalue > 0.01, (power, promoted / trials)


def evaluated(folder: Path, name: str, *outcomes: Outcome, stored_too: bool = True) -> Evaluation:
    made = measured.evaluation(storage.from_path(folder), outcomes, key=name, stored=stored_too)
    return stored.read(made.uri)


def decide(candidate: Evaluation, holder: Evaluation | None, rules: Rules = RULES, attempt: int = 1) -> Decision:
    held_by = "1" if holder else ""
    return promotion.decide(rules, candidate, holder, model="m", alias="champion", version="2", held_by=held_by,
                            attempt=attempt)  # fmt: skip


HARD = np.random.default_rng(6).random(2000)
WEAK, STRONG = HARD < 0.40, HARD < 0.43


def test_a_better_model_is_promoted_and_later_attempts_must_be_better_still(tmp_path: Path) -> None:
    weak, strong = (evaluated(tmp_path, name, measured.classified("a", hits)) for name, hits in
                    (("weak", WEAK), ("strong", HARD < 0.406)))  # fmt: skip
    gained = int(((HARD < 0.406) & ~WEAK).sum())
    first = decide(strong, weak)
    assert first.checks[0].p == pytest.approx(0.5**gained) and first.promoted
    later = decide(strong, weak, attempt=40)
    assert not later.promoted and later.attempt == 40 and "level 1.5e-05 of attempt 40" in later.says
    worse = decide(weak, strong)
    assert not worse.promoted and "lower" in worse.says
    assert promotion.decide(RULES, weak, weak, model="m", alias="a", version="2", held_by="1").checks[0].p == 1


def test_a_guarded_metric_must_be_shown_to_be_no_worse(tmp_path: Path) -> None:
    def both(name: str, gate: Any, guard: Any) -> Evaluation:
        return evaluated(tmp_path, name, measured.classified("a", gate), measured.searched("b", guard))

    guarded = Rules(METRIC, LEVEL, {"eval/retrieval/b/mean_recall": 0.02})
    holder = both("holder", WEAK, STRONG)
    assert decide(both("same", STRONG, STRONG), holder, guarded).promoted
    lost = decide(both("lost", STRONG, WEAK), holder, guarded)
    assert not lost.promoted and [check.passed for check in lost.checks] == [True, False]
    few = decide(both("few", STRONG, STRONG[:50]), both("few-before", WEAK, np.roll(STRONG, 3)[:50]), guarded)
    assert not few.promoted and "not shown to be no worse" in few.says, "50 queries cannot show it"
    missing = decide(evaluated(tmp_path, "missing", measured.classified("a", STRONG)), holder, guarded)
    assert "the candidate was not measured by it" in missing.says


def test_the_first_model_must_beat_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    good, random = (evaluated(tmp_path, name, measured.classified("a", rng.random(400) < share)) for name, share in
                    (("good", 0.4), ("random", 0.25)))  # fmt: skip
    assert decide(good, None).promoted
    assert not decide(random, None).promoted
    assert decide(random, None, Rules(METRIC, LEVEL, {}, first="any")).promoted
    recall = Rules("eval/retrieval/holdouts/mean_recall", LEVEL, {})
    found = decide(evaluated(tmp_path, "r", measured.searched("b", WEAK[:500])), None, recall)
    assert found.promoted and found.checks[0].other == pytest.approx((1 + 5 + 10) / 3 / 500)


def test_models_that_answered_other_queries_are_not_compared(tmp_path: Path) -> None:
    holder = evaluated(tmp_path, "holder", measured.classified("a", WEAK))
    others = {
        "other data": evaluated(tmp_path, "data", measured.classified("a", STRONG[:1000])),
        "not stored": evaluated(tmp_path, "stored", measured.classified("a", STRONG), stored_too=False),
    }
    for words, candidate in others.items():
        found = decide(candidate, holder)
        assert (found.promoted, found.attempt) == (False, 0) and words in found.says
        assert "--force --reason" in found.says


def test_the_page_has_each_reason(tmp_path: Path) -> None:
    weak, strong = (evaluated(tmp_path, name, measured.classified("a", hits)) for name, hits in
                    (("weak", WEAK), ("strong", STRONG)))  # fmt: skip
    shown = page.render(decide(strong, weak).as_json())
    assert "m/2 takes" in shown and "better by more than noise" in shown
    assert f"{100 * (STRONG.mean() - WEAK.mean()):+.1f}" in shown
    shown = page.render(promotion.refused(RULES, "<b>", "champion", "3", "2", "<i>no</i>").as_json())
    assert "&lt;b&gt;/3 does not take" in shown and "&lt;i&gt;no&lt;/i&gt;" in shown
