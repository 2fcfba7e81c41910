"""The gate of the registry: whether a model takes the alias from the one that holds it, and why.

A candidate takes the alias if it is better on the gate's metric by more than noise, and on no guarded metric worse than
the holder by more than a margin. Both models must have answered the same queries. Where they did not,
``wukong.model_registry`` has the holder evaluated on those of the candidate first.

- *Better* is a one-sided sign-flip test of the units' differences (Fisher's randomisation test of paired data). If the
  models are equal, each unit's difference could as well have the other sign. For answers that are right or wrong it is
  McNemar's exact test.
- *Attempts are counted.* Attempt k at one holder by one metric is tested at the level ``6 level / (pi k)^2``. These
  levels sum up to ``level``, so of any number of attempts with equal models one is promoted with at most that
  probability. Attempts on other test sets count too: those of successive crawls have most of their queries in common.
- *Not worse* is a test of non-inferiority: the lower end of the paired 90 % interval is above minus the margin
  (one-sided 5 %).
- The first model has nobody to beat: the lower end of the 95 % interval of its metric must be above chance.

Here are the statistics and the decision; ``wukong.model_registry`` asks for it and moves the alias.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wukong.errors import DataError
from wukong.evaluate import answers
from wukong.evaluate.answers import Scores
from wukong.evaluate.interval import Interval
from wukong.evaluate.paired import differences
from wukong.evaluate.results import HOLDOUT, HOLDOUTS
from wukong.evaluate.stored import Evaluation
from wukong.manifest import digest_of

FORMAT = 1
GUARD_LEVEL = 0.05
_GROUPS = {"eval": "finetuned", "pretrained": "pretrained"}
_LATTICE = 2**15
_MOST_EXACT = 2**20
_MOST_PARTS = 60
_LEAST_P = 1e-12  # what the sum of as many terms in float64 can still tell from 0


def level_of(attempt: int, level: float) -> float:
    """The level at which an attempt is tested: ``6 level / (pi attempt)^2``. All of them sum up to ``level``.

    Args:
        attempt: its number, from 1.
        level: the probability that may be spent in all.
    """
    return 6 * level / (math.pi * attempt) ** 2


def sign_flip(gains: npt.ArrayLike) -> float:
    """Compute the one-sided p-value of the hypothesis that gains are as often positive as negative, at each size.

    It is the probability that the sum of the gains with random signs reaches the sum itself. It is exact where the
    sizes are multiples of a small part of the smallest one. Otherwise they are rounded to 1 / 32,768 of their sum
    first, and the test of the rounded gains is exact. The distribution of the sum is the product of each gain's, by a
    Fourier transform.

    Args:
        gains: [units], what each unit adds to the difference of two models.
    """
    values = np.asarray(gains, np.float64)
    values = values[np.abs(values) > 1e-15]
    if not len(values):
        return 1.0
    steps = _in_steps(values)
    sizes, counts = np.unique(np.abs(steps), return_counts=True)
    total = int(sizes @ counts)
    length = 1 << total.bit_length()
    angles = np.pi * np.arange(length // 2 + 1) / length
    product = np.ones(length // 2 + 1)
    for size, count in zip(sizes, counts, strict=True):
        product = product * np.cos(size * angles) ** int(count)
    # The sum of the positive ones, from 0 to the total: its mean is half the total.
    probabilities = np.fft.irfft(product * np.exp(-1j * total * angles), length)[: total + 1]
    reached = (int(steps.sum()) + total) // 2
    return float(np.clip(probabilities[reached:].sum(), _LEAST_P, 1.0))


def _in_steps(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return values as whole numbers of steps."""
    ratios = values / np.abs(values).min()
    for parts in range(1, _MOST_PARTS + 1):
        whole = np.rint(parts * ratios)
        if np.abs(whole).sum() > _MOST_EXACT:
            break
        if np.abs(parts * ratios - whole).max() < 1e-6:
            return np.asarray(whole, np.int64)
    return np.asarray(np.rint(values / (np.abs(values).sum() / _LATTICE)), np.int64)


@dataclass(frozen=True)
class Rules:
    """What the gate asks for; the experiment's ``registry`` section says it.

    Attributes:
        metric: the one that must be better, as ``eval/KIND/TASK/RESULT``.
        level: the probability that equal models take the alias, over all attempts.
        guards: by metric the margin by which it may be worse.
        first: ``above-chance`` or ``any``, what the first model must be.
    """

    metric: str
    level: float
    guards: Mapping[str, float]
    first: str = "above-chance"


@dataclass(frozen=True)
class Check:
    """One condition of a decision.

    Attributes:
        metric: what was compared.
        asks: ``better``, ``not worse`` or ``above chance``.
        passed: whether it holds.
        says: the outcome in a sentence.
        candidate: the candidate's value, a share.
        other: the holder's value, or chance.
        difference: candidate minus the other, with its interval; None where the two cannot be compared.
        p: p-value of the test; None where an interval decides.
        level: level of the test.
    """

    metric: str
    asks: str
    passed: bool
    says: str
    candidate: float | None = None
    other: float | None = None
    difference: Interval | None = None
    p: float | None = None
    level: float | None = None


@dataclass(frozen=True)
class Anew:
    """The evaluation of the holder that was made for a decision, on the candidate's test set.

    Attributes:
        why: the holder's own evaluation was not enough, a clause.
        evaluation: URI of the new one's manifest.
        measured: what the holder was measured on, by task: ``title``, ``sizes``, ``digest`` and ``protocol``.
    """

    why: str
    evaluation: str
    measured: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, why: str, evaluation: Evaluation) -> "Anew":
        """Describe an evaluation that was made because of ``why``."""
        keys = ("title", "sizes", "digest", "protocol")
        tasks = evaluation.tasks().items()
        return cls(why, evaluation.uri, {name: {key: task[key] for key in keys} for name, task in tasks})


@dataclass(frozen=True)
class Decision:
    """Whether a model takes the alias, and the reasons.

    Attributes:
        promoted: whether it does.
        says: the outcome in a sentence.
        model: name of the registered model.
        alias: the alias.
        candidate: the candidate's version.
        holder: the version that held the alias; empty if none did.
        test_set: digest of what the gate's metric was measured on; empty if it was not compared.
        attempt: number of the attempt at this holder by this metric; 0 for no attempt.
        rules: what was asked for.
        checks: the conditions.
        forced: why a person moved the alias without the gate; empty otherwise.
        anew: the holder's new evaluation; None if its own was compared.
    """

    promoted: bool
    says: str
    model: str
    alias: str
    candidate: str
    holder: str
    test_set: str
    attempt: int
    rules: Rules
    checks: tuple[Check, ...] = ()
    forced: str = ""
    anew: Anew | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the decision as JSON, with ``format``."""
        return {"format": FORMAT, **asdict(self)}


@dataclass(frozen=True)
class _Measured:
    """A metric of an evaluation: its test set, its answers if they are stored, its value and its chance."""

    digest: str
    scores: Scores | None
    value: float
    chance: Scores | None


def test_set(evaluation: Evaluation, metric: str) -> str:
    """Return the digest of what a metric was measured on: data and protocols.

    Raises:
        DataError: it was not measured.
    """
    return _measured(evaluation, metric).digest


def measures(evaluation: Evaluation, metric: str) -> bool:
    """Return whether an evaluation has a metric."""
    _, tasks, result = _parts(evaluation, metric)
    return bool(tasks) and all(result in task["results"] for task in tasks)


def unpaired(rules: Rules, candidate: Evaluation, holder: Evaluation) -> str:
    """Return why two evaluations cannot be compared query by query, as a clause about the holder; empty if they can.

    What the candidate itself lacks is no reason: another evaluation of the holder would not help.

    Args:
        rules: name the metrics that are compared.
        candidate: its evaluation.
        holder: that of the holder.

    Raises:
        DataError: an evaluation is damaged.
    """
    for metric in (rules.metric, *rules.guards):
        if not measures(candidate, metric) or (ours := _measured(candidate, metric)).scores is None:
            continue
        if not measures(holder, metric):
            return f"{metric} of it was not measured"
        theirs = _measured(holder, metric)
        if theirs.digest != ours.digest:
            return "it was measured on other data or by another protocol"
        if theirs.scores is None:
            return "its answers are not stored"
    return ""


def decide(
    rules: Rules,
    candidate: Evaluation,
    holder: Evaluation | None,
    *,
    model: str,
    alias: str,
    version: str,
    held_by: str = "",
    attempt: int = 1,
    seed: int = 0,
) -> Decision:
    """Decide whether a candidate takes the alias.

    Args:
        rules: what is asked for.
        candidate: its evaluation.
        holder: the evaluation of the version that holds the alias; None if none does.
        model: name of the registered model.
        alias: the alias.
        version: the candidate's.
        held_by: the holder's version.
        attempt: the number of this attempt at the holder by this metric.
        seed: of the bootstrap.

    Raises:
        DataError: the gate's metric was not measured, or an evaluation is damaged.
    """
    made = Decision(False, "", model, alias, version, held_by, "", 0, rules)
    ours = _measured(candidate, rules.metric)
    if holder is None and rules.first == "any":
        return replace(made, promoted=True, says="It is the first model, of which registry.first asks nothing.")
    if holder is None:
        check = _above_chance(rules.metric, ours, seed)
        return _concluded(replace(made, test_set=ours.digest), [check])
    better = _better(rules, ours, holder, attempt, seed)
    if better.p is None:
        return _concluded(made, [better])
    guards = [_not_worse(metric, margin, candidate, holder, seed) for metric, margin in rules.guards.items()]
    return _concluded(replace(made, test_set=ours.digest, attempt=attempt), [better, *guards])


def refused(rules: Rules, model: str, alias: str, version: str, holder: str, why: str) -> Decision:
    """A decision against a candidate that is not compared at all."""
    return Decision(False, why, model, alias, version, holder, "", 0, rules)


def _concluded(made: Decision, checks: Sequence[Check]) -> Decision:
    failed = [check for check in checks if not check.passed]
    says = " ".join(check.says for check in (failed or checks))
    return replace(made, promoted=not failed, checks=tuple(checks), says=says)


def _better(rules: Rules, ours: _Measured, holder: Evaluation, attempt: int, seed: int) -> Check:
    metric, why = rules.metric, ""
    theirs = _measured(holder, metric) if measures(holder, metric) else None
    if theirs is None:
        why = f"not comparable: {metric} of the present holder was not measured"
    elif theirs.digest != ours.digest:
        why = "not comparable: the holder was measured on other data or by another protocol"
    elif ours.scores is None or theirs.scores is None:
        why = "not comparable: the answers of one of the models are not stored, so they cannot be paired"
    if theirs is None or ours.scores is None or theirs.scores is None or why:
        hint = "use `wukong promote --force --reason`"
        return Check(metric, "better", False, f"{why}; {hint}.", ours.value, theirs.value if theirs else None)
    level = level_of(attempt, rules.level)
    gains = ours.scores.shares(ours.scores.names[0]) - theirs.scores.shares(theirs.scores.names[0])
    p = sign_flip(gains)
    difference = differences(theirs.scores, [ours.scores], seed=seed)[0][ours.scores.names[0]]
    verdict = "better by more than noise" if p <= level else "not better by more than noise"
    says = (
        f"{metric} is {_points(difference)} than the holder's: {verdict} (p = {p:.2g}, level {level:.2g} of attempt "
        f"{attempt})."
    )
    return Check(metric, "better", p <= level, says, ours.value, theirs.value, difference, p, level)


def _not_worse(metric: str, margin: float, candidate: Evaluation, holder: Evaluation, seed: int) -> Check:
    for name, each in (("the candidate", candidate), ("the holder", holder)):
        if not measures(each, metric):
            return Check(metric, "not worse", False, f"{metric} is guarded, and {name} was not measured by it.")
    ours, theirs = _measured(candidate, metric), _measured(holder, metric)
    if ours.digest != theirs.digest or ours.scores is None or theirs.scores is None:
        why = "was measured on other data" if ours.digest != theirs.digest else "has no stored answers"
        return Check(metric, "not worse", False, f"{metric} is guarded, and {why}.", ours.value, theirs.value)
    found = differences(theirs.scores, [ours.scores], level=1 - 2 * GUARD_LEVEL, seed=seed)[0][ours.scores.names[0]]
    passed = found.low > -margin
    verdict = "not worse" if passed else "not shown to be no worse"
    says = f"{metric} is {_points(found)}: {verdict} than the holder's by {100 * margin:.1f} points or more."
    return Check(metric, "not worse", passed, says, ours.value, theirs.value, found, None, GUARD_LEVEL)


def _above_chance(metric: str, ours: _Measured, seed: int) -> Check:
    if ours.scores is None or ours.chance is None:
        why = "its answers are not stored" if ours.scores is None else "its chance is not known"
        return Check(metric, "above chance", False, f"{metric} cannot be compared with chance: {why}.", ours.value)
    found = differences(ours.chance, [ours.scores], seed=seed)[0][ours.scores.names[0]]
    passed = found.low > 0
    verdict = "above chance by more than noise" if passed else "not above chance by more than noise"
    says = f"It is the first model, and {metric} is {_points(found)} than chance: {verdict}."
    return Check(metric, "above chance", passed, says, ours.value, float(ours.chance.values()[0]), found, None, 0.05)


def _points(found: Interval) -> str:
    ends = f"{100 * found.level:.0f} % interval {100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return f"{100 * abs(found.value):.1f} points {'lower' if found.value < 0 else 'higher'} ({ends})"


def _parts(evaluation: Evaluation, metric: str) -> tuple[str, list[Mapping[str, Any]], str]:
    """Return the kind, the tasks and the result that a metric's name stands for."""
    group, kind, of, result = [*metric.split("/"), "", "", ""][:4]
    tasks = evaluation.tasks(_GROUPS.get(group, group)).values()
    mine = [task for task in tasks if task["kind"] == kind]
    chosen = [t for t in mine if t["split"] == HOLDOUT] if of == HOLDOUTS else [t for t in mine if t["task"] == of]
    return kind, chosen, result


def _measured(evaluation: Evaluation, metric: str) -> _Measured:
    _, tasks, result = _parts(evaluation, metric)
    tasks = sorted(tasks, key=lambda task: str(task["task"]))  # the same tasks in another order are the same test set
    if not measures(evaluation, metric):
        known = ", ".join(sorted(task["task"] for task in evaluation.tasks().values())) or "nothing"
        raise DataError(f"the evaluation {evaluation.uri} has no metric {metric!r}; it measured {known}")
    scores = [evaluation.scores(task) for task in tasks]
    there = [each for each in scores if each is not None]
    chances = [_chance(task, result) for task in tasks]
    levels = [
        replace(alone, sums=alone.weights * chance / alone.weights.shape[1])
        for each, chance in zip(there, chances, strict=False)
        if chance is not None
        for alone in (each.only(result),)
    ]
    complete = len(there) == len(tasks)
    return _Measured(
        digest_of([[task["task"], task["digest"], task["protocol"]] for task in tasks]),
        answers.mean_of(there, result) if complete else None,
        sum(task["results"][result]["value"] for task in tasks) / len(tasks),
        answers.mean_of(levels, result) if complete and len(levels) == len(tasks) else None,
    )


def _chance(task: Mapping[str, Any], result: str) -> float | None:
    known = task["chance"]
    if result in known:
        return float(known[result])
    recalls = [known.get(name) for name in task["results"] if "_to_" in name]
    if result != answers.MEAN_RECALL or not recalls or None in recalls:
        return None
    return float(sum(recalls) / len(recalls))
