"""The gate of the registry: whether a model takes the alias from the one that holds it, and why.

A candidate takes the alias if it is better on the gate's metric by more than noise, and on no guarded metric worse than
the holder by more than a margin. Both models must have answered the same queries. Where they did not,
``wukong.registry.aliases`` has the holder evaluated on those of the candidate first.

- *Better* is a one-sided sign-flip test of the units' differences (Fisher's randomisation test of paired data). If the
  models are equal, each unit's difference could as well have the other sign. For answers that are right or wrong it is
  McNemar's exact test.
- *Attempts are counted.* Attempt k at one holder by one metric is tested at the level ``6 level / (pi k)^2``. These
  levels sum up to ``level``, so of any number of attempts with equal models one is promoted with at most that
  probability. Attempts on other test sets count too: those of successive crawls have most of their queries in common.
- *What was chosen counts as all that it was chosen from* (``wukong.registry.choices``), if the queries that chose it
  share a caption or an image with the gate's. The best of N is attempts k to k + N - 1, and is tested at the mean of
  their levels: whichever of the N it is, equal models spend no more than these levels.
- *Not worse* is a test of non-inferiority: the lower end of the paired 90 % interval is above minus the margin
  (one-sided 5 %).
- The first model has nobody to beat: the lower end of the 95 % interval of its metric must be above chance; the best
  of N needs an interval of 1 - 0.05 / N.

Here are the statistics and the decision; ``wukong.registry.aliases`` asks for it and moves the alias.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from wukong.config import evaluators
from wukong.config.evaluators import HOLDOUTS
from wukong.errors import DataError
from wukong.evaluate import answers
from wukong.evaluate.answers import Scores
from wukong.evaluate.interval import Interval, sign_flip
from wukong.evaluate.paired import differences
from wukong.evaluate.results import HOLDOUT
from wukong.evaluate.stored import Evaluation
from wukong.registry.choices import Choice
from wukong.runtime.language import _, joined
from wukong.store.manifest import digest_of

FORMAT = 1
"""Decisions of format 1 counted pairs twice where captions had several images."""
GUARD_LEVEL = 0.05


def level_of(attempt: int, level: float, count: int = 1) -> float:
    """The level at which an attempt is tested: ``6 level / (pi attempt)^2``. All of them sum up to ``level``.

    A model that was chosen from several is as many attempts, of which this is the first. It is tested at the mean of
    their levels, which is what each of the models may spend.

    Args:
        attempt: its number, from 1.
        level: the probability that may be spent in all.
        count: number of models from which it was chosen.
    """
    return math.fsum(6 * level / (math.pi * each) ** 2 for each in range(attempt, attempt + count)) / count


@dataclass(frozen=True)
class Rules:
    """What the gate asks for; the experiment's ``registry`` section says it.

    Attributes:
        metric: the one that must be better, as ``eval/KIND/TASK/RESULT``.
        level: the probability that equal models take the alias, over all attempts.
        guards: the margin by which each metric may be worse.
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
        attempt: number of the attempt at this holder by this metric, the first if there are several; 0 for no attempt.
        count: number of attempts that it is: from how many models the candidate was chosen on the gate's queries.
        chosen: the choices that count.
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
    count: int = 1
    chosen: tuple[Choice, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the decision as JSON, with ``format``."""
        chosen = [choice.model_dump(mode="json") for choice in self.chosen]
        return {"format": FORMAT, **asdict(self), "chosen": chosen}


@dataclass(frozen=True)
class _Measured:
    """A metric of an evaluation: its test set, its answers if they are stored, its value and its chance."""

    digest: str
    scores: Scores | None
    value: float
    chance: float | None


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
            return _("{metric} of it was not measured").format(metric=metric)
        theirs = _measured(holder, metric)
        if theirs.digest != ours.digest:
            return _("it was measured on other data or by another protocol")
        if theirs.scores is None:
            return _("its answers are not stored")
    return ""


def choices_that_count(candidate: Evaluation, metric: str, choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Return the choices that were made by queries which share a caption or an image with a metric's queries.

    A choice counts too where that is not known.

    Args:
        candidate: the evaluation of what was chosen.
        metric: the gate's metric.
        choices: the choices that led to the candidate.
    """
    mine = {task["task"] for task in _parts(candidate, metric)[1]}
    return tuple(choice for choice in choices if choice.of > 1 and _meet(candidate, mine, _tasks_of(candidate, choice)))


def _tasks_of(candidate: Evaluation, choice: Choice) -> set[str]:
    kind, name, _ = choice.metric.split("/")
    held = {task["task"] for task in candidate.tasks().values() if (task["kind"], task["split"]) == (kind, HOLDOUT)}
    return {name} if name != HOLDOUTS else held.intersection(choice.tasks) if choice.tasks else held


def _meet(candidate: Evaluation, some: set[str], others: set[str]) -> bool:
    """Whether tasks share a caption or an image. A set that the candidate was not measured on is a published one."""
    if some & others:
        return True
    known = [[_links(candidate, name) for name in names & candidate.tasks().keys()] for names in (some, others)]
    if any(each is None for side in known for each in side):
        return True
    first, second = (set().union(*(each for each in side if each is not None)) for side in known)
    return bool(first & second)


def _links(evaluation: Evaluation, task: str) -> set[int] | None:
    scores = evaluation.scores(evaluation.tasks()[task])
    return {*scores.links[:, 1].tolist()} if scores is not None and len(scores.links) else None


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
    choices: Sequence[Choice] = (),
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
        attempt: the number of this attempt at the holder by this metric, the first if there are several.
        choices: the choices that led to the candidate.

    Raises:
        DataError: the gate's metric was not measured, or an evaluation is damaged.
    """
    ours = _measured(candidate, rules.metric)
    chosen = choices_that_count(candidate, rules.metric, choices)
    count = math.prod(choice.of for choice in chosen)
    made = Decision(False, "", model, alias, version, held_by, "", 0, rules, count=count, chosen=chosen)
    if holder is None and rules.first == "any":
        return replace(made, promoted=True, says=_("It is the first model, of which registry.first asks nothing."))
    if holder is None:
        check = _above_chance(rules.metric, ours, count)
        return _concluded(replace(made, test_set=ours.digest), [check])
    better = _better(rules, ours, holder, attempt, chosen)
    if better.p is None:
        return _concluded(made, [better])
    guards = [_not_worse(metric, margin, candidate, holder) for metric, margin in rules.guards.items()]
    return _concluded(replace(made, test_set=ours.digest, attempt=attempt), [better, *guards])


def refused(rules: Rules, model: str, alias: str, version: str, holder: str, why: str) -> Decision:
    """A decision against a candidate that is not compared at all."""
    return Decision(False, why, model, alias, version, holder, "", 0, rules)


def _concluded(made: Decision, checks: Sequence[Check]) -> Decision:
    failed = [check for check in checks if not check.passed]
    says = joined((check.says for check in (failed or checks)), "\n")
    return replace(made, promoted=not failed, checks=tuple(checks), says=says)


def _better(rules: Rules, ours: _Measured, holder: Evaluation, attempt: int, chosen: Sequence[Choice]) -> Check:
    metric, why = rules.metric, ""
    theirs = _measured(holder, metric) if measures(holder, metric) else None
    if theirs is None:
        why = _("not comparable: {metric} of the present holder was not measured").format(metric=metric)
    elif theirs.digest != ours.digest:
        why = _("not comparable: the holder was measured on other data or by another protocol")
    elif ours.scores is None or theirs.scores is None:
        why = _("not comparable: the answers of one of the models are not stored, so they cannot be paired")
    if theirs is None or ours.scores is None or theirs.scores is None or why:
        says = _("{why}; use `wukong promote --force --reason`.").format(why=why)
        return Check(metric, "better", False, says, ours.value, theirs.value if theirs else None)
    count = math.prod(choice.of for choice in chosen)
    level = level_of(attempt, rules.level, count)
    gains = ours.scores.shares(ours.scores.names[0]) - theirs.scores.shares(theirs.scores.names[0])
    p = sign_flip(gains)
    difference = differences(theirs.scores, [ours.scores])[0][ours.scores.names[0]]
    verdict = _("better by more than noise") if p <= level else _("not better by more than noise")
    attempts = _("attempt {attempt:d}").format(attempt=attempt)
    if chosen:
        each = joined((_("from {of:d} by {by}").format(of=choice.of, by=choice.said) for choice in chosen), ", ")
        last = attempt + count - 1
        attempts = _("attempts {attempt:d} to {last:d}, as it was chosen on these queries: {each}").format(
            attempt=attempt, last=last, each=each
        )
    says = _(
        "{metric} is {points} than the holder's: {verdict} (p = {p:.2g}, level {level:.2g} of {attempts})."
    ).format(metric=metric, points=_points(difference), verdict=verdict, p=p, level=level, attempts=attempts)
    return Check(metric, "better", p <= level, says, ours.value, theirs.value, difference, p, level)


def _not_worse(metric: str, margin: float, candidate: Evaluation, holder: Evaluation) -> Check:
    for name, each in ((_("the candidate"), candidate), (_("the holder"), holder)):
        if not measures(each, metric):
            return Check(
                metric,
                "not worse",
                False,
                _("{metric} is guarded, and {name} was not measured by it.").format(metric=metric, name=name),
            )
    ours, theirs = _measured(candidate, metric), _measured(holder, metric)
    if ours.digest != theirs.digest or ours.scores is None or theirs.scores is None:
        says = (
            _("{metric} is guarded, and was measured on other data.")
            if ours.digest != theirs.digest
            else _("{metric} is guarded, and has no stored answers.")
        ).format(metric=metric)
        return Check(metric, "not worse", False, says, ours.value, theirs.value)
    (compared,) = differences(theirs.scores, [ours.scores], level=1 - 2 * GUARD_LEVEL)
    difference = compared[ours.scores.names[0]]
    passed = difference.low > -margin
    says = (
        _("{metric} is {points}: not worse than the holder's by {margin:.1f} points or more.")
        if passed
        else _("{metric} is {points}: not shown to be no worse than the holder's by {margin:.1f} points or more.")
    ).format(metric=metric, points=_points(difference), margin=100 * margin)
    return Check(metric, "not worse", passed, says, ours.value, theirs.value, difference, None, GUARD_LEVEL)


def _above_chance(metric: str, ours: _Measured, count: int) -> Check:
    if ours.scores is None or ours.chance is None:
        says = (
            _("{metric} cannot be compared with chance: its answers are not stored.")
            if ours.scores is None
            else _("{metric} cannot be compared with chance: its chance is not known.")
        ).format(metric=metric)
        return Check(metric, "above chance", False, says, ours.value)
    level = 0.05 / count
    found = ours.scores.interval(ours.scores.names[0], 1 - level)
    value, low, high = (each - ours.chance for each in (found.value, found.low, found.high))
    difference = replace(found, value=value, low=low, high=high)
    passed = difference.low > 0
    if ours.scores.too_few(ours.scores.names[0]):
        says = _(
            "It is the first model, and {metric} is measured on {units:,} independent test pictures, too few for "
            "any verdict: give more pictures, hold out more of them, or set `registry.first: any`."
        ).format(metric=metric, units=found.units)
    else:
        says = (
            _("It is the first model, and {metric} is {points} than chance: above chance by more than noise.")
            if passed
            else _("It is the first model, and {metric} is {points} than chance: not above chance by more than noise.")
        ).format(metric=metric, points=_points(difference))
        if not passed and value > 0:
            needed = math.ceil(found.units * ((value - low) / value) ** 2)
            more = _("So large a gain takes about {needed:,} test pictures to be shown.").format(needed=needed)
            says = joined([says, more], "\n")
    return Check(metric, "above chance", passed, says, ours.value, ours.chance, difference, None, level)


def _points(difference: Interval) -> str:
    level, size, low, high = (
        100 * each for each in (difference.level, abs(difference.value), difference.low, difference.high)
    )
    return (
        _("{size:.1f} points lower ({level:.3g} % interval {low:+.1f} to {high:+.1f})")
        if difference.value < 0
        else _("{size:.1f} points higher ({level:.3g} % interval {low:+.1f} to {high:+.1f})")
    ).format(size=size, level=level, low=low, high=high)


def _parts(evaluation: Evaluation, metric: str) -> tuple[str, list[Mapping[str, Any]], str]:
    """Return the kind, the tasks and the result that a metric's name stands for."""
    group, kind, name, result = [*metric.split("/"), "", "", ""][:4]
    tasks = evaluation.tasks({"eval": evaluation.role}.get(group, group)).values()
    mine = [task for task in tasks if task["kind"] == kind]
    chosen = [t for t in mine if t["split"] == HOLDOUT] if name == HOLDOUTS else [t for t in mine if t["task"] == name]
    return kind, chosen, result


def _measured(evaluation: Evaluation, metric: str) -> _Measured:
    _, tasks, result = _parts(evaluation, metric)
    tasks = sorted(tasks, key=lambda task: str(task["task"]))  # the same tasks in another order are the same test set
    if not measures(evaluation, metric):
        known = ", ".join(sorted(task["task"] for task in evaluation.tasks().values())) or "nothing"
        raise DataError(f"the evaluation {evaluation.uri} has no metric {metric!r}; it measured {known}")
    scores = [evaluation.scores(task) for task in tasks]
    there = [each for each in scores if each is not None]
    chances = [chance for task in tasks if (chance := _chance(task, result)) is not None]
    complete = len(there) == len(tasks)
    return _Measured(
        digest_of([[task["task"], task["digest"], task["protocol"]] for task in tasks]),
        answers.mean_of(there, result) if complete else None,
        sum(task["results"][result]["value"] for task in tasks) / len(tasks),
        sum(chances) / len(chances) if len(chances) == len(tasks) else None,
    )


def _chance(task: Mapping[str, Any], result: str) -> float | None:
    known = task["chance"]
    if result in known:
        return float(known[result])
    parts = [known.get(name) for name in task["results"] if name in evaluators.result_of(result).mean_of]
    return None if not parts or None in parts else float(sum(parts) / len(parts))
