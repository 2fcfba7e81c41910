"""The gate as a test: its level over many attempts, its power, its guards. Oracles are binomial and normal laws."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import measured
import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from wukong.errors import DataError
from wukong.evaluate import stored
from wukong.evaluate.interval import sign_flip
from wukong.evaluate.results import Outcome
from wukong.evaluate.stored import Evaluation
from wukong.registry import promotion
from wukong.registry.choices import Choice
from wukong.registry.promotion import Decision, Rules, level_of
from wukong.report import promotion as page
from wukong.store import storage

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
        assert sign_flip(gains) == pytest.approx((signed >= gains.sum() - 1e-12).mean(), abs=1.5 / 2**12)
        shares = rng.integers(-5, 6, 12) / 30  # whole steps: exact
        signed = np.array(list(product((1, -1), repeat=12))) @ np.abs(shares)
        assert sign_flip(shares) == pytest.approx((signed >= shares.sum() - 1e-9).mean(), rel=1e-9)


def test_many_gains_are_tested_as_by_the_normal_law() -> None:
    gains = np.random.default_rng(2).normal(0.05, 1, 5000)
    z = gains.sum() / np.sqrt((gains**2).sum())
    assert sign_flip(gains) == pytest.approx(stats.norm.sf(z), rel=0.02)


@pytest.mark.parametrize("units", [20_000, 70_000, 300_000, 1_000_000])
def test_as_many_unequal_gains_as_there_are_are_tested_as_by_the_normal_law(units: int) -> None:
    rng = np.random.default_rng(units)
    for z in (0.5, 2.0, 3.5):
        gains = rng.normal(0, 1, units) / units
        gains += z * np.sqrt((gains**2).sum()) / units - gains.mean()
        known = stats.norm.sf(gains.sum() / np.sqrt((gains**2).sum()))
        assert sign_flip(gains) == pytest.approx(known, rel=0.02)


def test_many_gains_of_which_few_are_large_are_tested_as_by_drawn_signs() -> None:
    rng = np.random.default_rng(8)
    gains = np.concatenate([rng.normal(0.02, 1, 2000), [60.0, -45.0, 80.0]])  # far from normal
    signs = rng.choice(np.array([-1.0, 1.0]), (20_000, len(gains)))
    drawn = int((signs @ np.abs(gains) >= gains.sum() - 1e-9).sum())
    assert stats.binomtest(drawn, 20_000, sign_flip(gains)).pvalue > 0.01
    # Gains of 1 among a million that are right or wrong: as by the binomial law.
    gains = np.concatenate([np.ones(600_000), -np.ones(598_500), np.zeros(10**6)]) / 3e6
    assert sign_flip(gains) == pytest.approx(stats.binom.sf(599_999, 1_198_500, 0.5), rel=1e-6)


def test_the_size_of_all_gains_together_makes_no_difference() -> None:
    gains = np.random.default_rng(9).normal(0.2, 1, 50)
    assert sign_flip(1e-18 * gains) == pytest.approx(sign_flip(gains), rel=1e-6)
    for broken in (np.nan, np.inf):
        with pytest.raises(DataError, match="1 of 51 differences are not numbers"):
            sign_flip([*gains, broken])


def test_the_levels_of_all_attempts_sum_up_to_the_level() -> None:
    spent = sum(level_of(attempt, LEVEL) for attempt in range(1, 100_000))
    assert LEVEL - 1e-5 < spent < LEVEL
    # Of 200 equal candidates, each the first on its test set, more than 10 are promoted in 1 % of all cases.
    assert stats.binom.sf(10, 200, level_of(1, LEVEL)) < 0.011


def test_the_best_of_several_spends_the_levels_of_as_many_attempts() -> None:
    for first, count in ((1, 12), (4, 50), (7, 1)):
        spent = sum(level_of(attempt, LEVEL) for attempt in range(first, first + count))
        assert level_of(first, LEVEL, count) == pytest.approx(spent / count)


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


def trainings(rng: np.random.Generator, holder: npt.NDArray[Any], share: float, gain: float, count: int,
              alike: float) -> npt.NDArray[Any]:  # fmt: skip
    """Answers of models that gain so much; those of one sweep or one training agree on a part of the queries."""
    common = answers(rng, holder, share, 0.08 + gain, 0.08)
    each = answers(rng, np.tile(holder, (count, 1)), share, 0.08 + gain, 0.08)
    return np.where(rng.random((count, len(holder))) < alike, common, each)


@pytest.mark.parametrize(("count", "alike"), [(12, 0.0), (50, 0.0), (10, 0.5), (40, 0.5)])
def test_the_best_of_equal_models_is_promoted_at_the_level(count: int, alike: float) -> None:
    """A sweep of 12 or 50 trials, and ``keep: best`` of 10 or 40 validations, chosen on the queries of the gate."""
    rng = np.random.default_rng(count)
    rows, queries, promoted, uncounted = 300, 1000, 0, 0
    for _ in range(rows):
        holder = rng.random(queries) < 0.5
        models = trainings(rng, holder, 0.5, 0.0, count, alike)
        best = models[models.sum(1).argmax()]
        p = sign_flip(best.astype(float) - holder)
        promoted += p <= level_of(1, LEVEL, count)
        uncounted += p <= level_of(1, LEVEL)
    assert stats.binomtest(promoted, rows, LEVEL, alternative="greater").pvalue > 0.01, promoted
    assert stats.binomtest(uncounted, rows, LEVEL, alternative="greater").pvalue < 0.01, uncounted


@pytest.mark.parametrize(("count", "alike", "gain", "least"), [(12, 0.5, 0.03, 0.9), (10, 0.8, 0.03, 0.9),
                                                               (120, 0.8, 0.035, 0.9)])  # fmt: skip
def test_a_sweep_and_a_kept_best_stay_promotable(count: int, alike: float, gain: float, least: float) -> None:
    """The demo's sweep of 12 trials, ten validations, and both at once, of models that are three points better."""
    rng = np.random.default_rng(count)
    trials, promoted = 100, 0
    for _ in range(trials):
        holder = rng.random(2000) < 0.40
        models = trainings(rng, holder, 0.40, gain, count, alike)
        best = models[models.sum(1).argmax()]
        promoted += sign_flip(best.astype(float) - holder) <= level_of(1, LEVEL, count)
    assert promoted / trials >= least, promoted


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
    for queries, shown in ((12, False), (40, False), (148, False), (149, True)):
        alike = (both(f"{when}-{queries}", gate, STRONG[:queries]) for when, gate in (("now", STRONG), ("then", WEAK)))
        assert decide(*alike, guarded).promoted == shown, f"{queries} equal answers, of which 2 in 100 may be lost"
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


def test_of_few_pictures_the_first_verdict_says_how_many_it_needs(tmp_path: Path) -> None:
    recall = Rules("eval/retrieval/holdouts/mean_recall", LEVEL, {})
    four = decide(evaluated(tmp_path, "four", measured.searched("a", np.arange(4) < 2)), None, recall)
    assert not four.promoted and "measured on 4 independent test pictures, too few for any verdict" in four.says
    assert "100.0" not in four.says, "an interval that says nothing"
    few = decide(evaluated(tmp_path, "few", measured.classified("a", np.arange(24) % 3 == 0)), None)
    assert not few.promoted
    needed = int(re.search(r"takes about (\d+) test pictures", few.says)[1])  # type: ignore[index]
    as_good = np.arange(2 * needed) % 3 == 0
    assert decide(evaluated(tmp_path, "more", measured.classified("a", as_good)), None).promoted
    fewer = decide(evaluated(tmp_path, "fewer", measured.classified("a", as_good[: needed // 2])), None)
    assert not fewer.promoted, "the number is no more than twice, nor less than half of what it takes"


def test_a_candidate_that_was_chosen_counts_as_all_that_it_was_chosen_from(tmp_path: Path) -> None:
    weak, strong = (evaluated(tmp_path, name, measured.classified("a", hits)) for name, hits in
                    (("weak", WEAK), ("strong", HARD < 0.406)))  # fmt: skip
    made = [Choice(by="the sweep x", of=12, metric="classification/a/top1"),
            Choice(by="pretrain.validation", of=10, metric="classification/holdouts/top1"),
            Choice(by="finetune.validation", of=99, metric="retrieval/coco-cn/mean_recall")]  # fmt: skip
    known = {"model": "m", "alias": "champion", "version": "2", "held_by": "1", "attempt": 3, "choices": made}
    found = promotion.decide(RULES, strong, weak, **known)  # type: ignore[arg-type]
    assert (found.count, found.chosen) == (120, tuple(made[:2]))
    assert found.checks[0].level == pytest.approx(sum(level_of(k, LEVEL) for k in range(3, 123)) / 120)
    assert "attempts 3 to 122" in found.says and "from 12 by the sweep x" in found.says
    shown = page.render(found.as_json())
    assert "3 to 122" in shown and "pretrain.validation" in shown and "coco-cn" not in shown
    # The first model needs an interval of 1 - 0.05 / 120.
    first = promotion.decide(RULES, strong, None, model="m", alias="a", version="1", choices=made)
    difference = first.checks[0].difference
    assert first.promoted and difference is not None and difference.level == pytest.approx(1 - 0.05 / 120)
    z = stats.norm.isf(0.025 / 120) * np.sqrt(0.406 * 0.594 / 2000)
    assert difference.value - difference.low == pytest.approx(z, rel=0.1)


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
