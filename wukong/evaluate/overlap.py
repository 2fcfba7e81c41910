"""The results of a task with and without the pictures that a model was trained on.

This is the analysis of CLIP's paper (Radford et al., Learning Transferable Visual Models From Natural Language
Supervision, 2021, section 5): beside the result of all items stand those of the overlapping ones and of the others, the
clean ones, and the difference of all less clean, by which the overlap raises the result. A picture overlaps if its file
was trained on, or another picture that the filter found to show the same and did not drop (``trained_on.Seen``).

A query overlaps if a picture does that it shows or that is right for it. Overlapping queries are left out; the
candidates stay, so that all numbers are of searches among the same ones.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from wukong.config import evaluators
from wukong.evaluate import paired, trained_on
from wukong.evaluate.answers import Answers
from wukong.evaluate.interval import Interval
from wukong.evaluate.trained_on import LEVELS, Pairs, Pictures, Seen

_Mask = npt.NDArray[np.bool_]


def entries(
    models: Mapping[str, set[Pairs] | str],
    tasks: Mapping[str, Pictures],
    found: Mapping[Pairs, Seen | str],
    answered: Callable[[str, str], Answers | None],
) -> list[dict[str, Any]]:
    """Make the document's entry of each task and model where overlap was found or looked for.

    Args:
        models: what each model was trained on, or why that is not known, by role.
        tasks: the pictures of each task, by its name.
        found: what ``trained_on.seen`` returned.
        answered: gives the answers to a task, by its name, of a model, by its role; None where there are none.

    Returns:
        ``task``, ``model`` (its role), ``pictures`` (how many there are), ``overlap`` (how many overlap), ``by`` (how
        many of these by each of ``LEVELS``), ``left_out`` (how many were found, and their pairs dropped), ``compared``
        (whether copies were looked for in all that the model was trained on), ``queries`` (how many overlap) and
        ``results``, see ``with_and_without``.
    """
    made = []
    for name, pictures in tasks.items():
        for role, known in models.items():
            parts = [] if isinstance(known, str) else [found[pairs] for pairs in known]
            seen = [part for part in parts if not isinstance(part, str)]
            if isinstance(known, str) or len(seen) < len(parts):
                continue
            levels = _levels(name, pictures, seen)
            left_out = frozenset[str]().union(*(each.left_out.get(name, ()) for each in seen)) - levels.keys()
            compared = trained_on.was_compared(name, pictures, known)
            if not (levels or left_out or compared):
                continue
            answers = answered(name, role) if levels else None
            queries = _overlapping(answers, levels) if answers is not None else np.zeros(0, bool)
            counted = Counter(levels.values())
            made.append(
                {
                    "task": name,
                    "model": role,
                    "pictures": len(pictures.ids),
                    "overlap": len(levels),
                    "by": {level: counted[level] for level in LEVELS},
                    "left_out": len(left_out),
                    "compared": compared,
                    "queries": int(queries.sum()),
                    "results": with_and_without(answers, queries) if answers is not None and queries.any() else {},
                }
            )
    return made


def _levels(name: str, pictures: Pictures, seen: Sequence[Seen]) -> dict[str, str]:
    """Return the overlapping pictures of a task, and the surest level at which each was found."""
    files = {digest for each in seen for digest in each.digests}
    found = [(picture, level) for each in seen for picture, level in each.copies.get(name, {}).items()]
    found += [
        (picture, "file") for picture, digest in zip(pictures.ids, pictures.digests, strict=True) if digest in files
    ]
    return dict(sorted(found, key=lambda each: -LEVELS.index(each[1])))


def _overlapping(answers: Answers, overlapping: Collection[str]) -> _Mask:
    """Return which queries overlap; none where it is not known which pictures they show."""
    shown, pictures = answers.pictures or ((),) * len(answers.queries), frozenset(overlapping)
    return np.array([not pictures.isdisjoint(each) for each in shown])


def with_and_without(answers: Answers, queries: _Mask) -> dict[str, dict[str, Any]]:
    """Compute each result of the overlapping queries and of the clean ones, and what the overlap adds.

    Of fewer than six units of either kind the result may be anything. The interval of the difference says what follows.
    For the test, see ``_tests``.

    Args:
        answers: a model's answers.
        queries: which queries overlap, bool [queries]; some do.

    Returns:
        By result ``overlap`` and ``clean`` (intervals), ``difference`` (the interval of the result of all less that of
        the clean queries) and ``p`` (of the test). What cannot be computed is None.
    """
    overlap, clean = _part(answers, queries), _part(answers, ~queries)
    differences = dict(_differences(answers, queries, overlap, clean)) if overlap and clean else {}
    tests = dict(_tests(answers, queries)) if differences else {}
    each = [part.intervals() if part else {} for part in (overlap, clean)]
    return {
        name: {
            "overlap": _json(each[0].get(name)),
            "clean": _json(each[1].get(name)),
            "difference": _json(differences.get(name)),
            "p": tests.get(name),
        }
        for name in answers.scores().names
    }


def _part(answers: Answers, rows: _Mask) -> Answers | None:
    """Return the answers to some queries; None if they lack a result that all have, as then means are of others."""
    numbers = np.flatnonzero(rows).tolist()
    part = answers.ordered(numbers, [answers.queries[number] for number in numbers])
    return part if all(np.isfinite(values).any() for values in part.results.values()) else None


def _differences(answers: Answers, queries: _Mask, overlap: Answers, clean: Answers) -> Iterator[tuple[str, Interval]]:
    """Compute the results of all less those of the clean queries.

    What is added to a result is its difference between overlapping and clean queries, times the share of the former.
    Of a mean over classes that is another one in each class, and classes may be missing: no interval is given.
    """
    whole, parts = answers.scores(), [part.intervals() for part in (overlap, clean)]
    shares = np.isfinite([each[queries] for each in answers.results.values()]).sum(1) / np.isfinite(
        [*answers.results.values()]
    ).sum(1)
    for name, value, share in zip(whole.names, whole.values(), shares @ whole.mixed, strict=True):
        inside, outside = (part[name] for part in parts)
        apart, added = paired.unpaired(baseline=outside, other=inside), float(value) - outside.value
        low, high = (added + share * (end - apart.value) for end in (apart.low, apart.high))
        if evaluators.result_of(name).per_class:
            low, high = -1.0, 1.0
        yield name, Interval(added, float(low), float(high), apart.level, whole.interval(name).units)


def _tests(answers: Answers, queries: _Mask) -> Iterator[tuple[str, float]]:
    """Test whether overlapping queries are right more often than clean ones, where answers are independent.

    CLIP's paper takes a binomial test, for which the clean result is no estimate but certain; with few overlapping
    queries Fisher's test gives the same.
    """
    from scipy.stats import fisher_exact  # its import takes a second

    for name, values in answers.results.items():
        counts = np.isfinite(values)
        units = answers.units[counts]
        independent = len(np.unique(units)) == len(units) and np.isin(values[counts], (0, 1)).all()
        if independent and not evaluators.result_of(name).per_class:
            inside, outside = values[counts & queries], values[counts & ~queries]
            table = [[each.sum(), (1 - each).sum()] for each in (inside, outside)]
            yield name, float(fisher_exact(table, "greater").pvalue)


def _json(value: Interval | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)
