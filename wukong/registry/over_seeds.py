"""Runs that differ in their seed alone, taken together: mean, standard deviation and intervals over seeds.

A seed is one draw of first weights and of an order of pairs. An interval over seeds holds the mean of all seeds on the
same queries; an interval over queries holds the result of the same weights on all queries. The one says what settings
are worth, the other what one model is worth.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wukong.evaluate.interval import LEVEL, Interval, student
from wukong.runtime.language import _

SEED = "seed"
_LEAST = 2  # seeds whose values have a spread


@dataclass(frozen=True)
class Configuration:
    """Settings, and the runs that have them.

    Attributes:
        parameters: those that differ between configurations.
        runs: by seed the number of the run; the first of several with one seed.
    """

    parameters: Mapping[str, str | None]
    runs: Mapping[str, int]

    @property
    def name(self) -> str:
        """The parameters, for people."""
        return ", ".join(f"{key}={value}" for key, value in self.parameters.items()) or _("all runs")


def configurations(parameters: Sequence[Mapping[str, str]]) -> list[Configuration]:
    """Group runs whose parameters are equal but for the seed, in the order of their first runs.

    Args:
        parameters: the parameters of each run. A run without a seed among them is a configuration of its own.

    Returns:
        The configurations; none if no two runs differ in their seed alone.
    """
    groups: dict[object, dict[str, int]] = {}
    for number, each in enumerate(parameters):
        known = SEED in each
        key = frozenset((name, value) for name, value in each.items() if name != SEED) if known else number
        groups.setdefault(key, {}).setdefault(each.get(SEED, ""), number)
    if all(len(runs) < _LEAST for runs in groups.values()):
        return []
    firsts = [parameters[min(runs.values())] for runs in groups.values()]
    names = dict.fromkeys(name for each in firsts for name in each if name != SEED)
    differ = [name for name in names if len({each.get(name) for each in firsts}) > 1]
    return [
        Configuration({name: first.get(name) for name in differ}, runs)
        for first, runs in zip(firsts, groups.values(), strict=True)
    ]


def mean(values: Sequence[float], rounding: float = 0.0, level: float = LEVEL) -> Interval:
    """The mean of values of several seeds, with Student's interval of the mean over all seeds.

    Values of few queries are coarse, so those of two seeds are often equal, though seeds differ. A value that is
    rounded to multiples of a step is uncertain by a twelfth of the step's square (Sheppard, On the Calculation of the
    most Probable Values of Frequency-Constants, 1898), which is added to the variance.

    Args:
        values: two at least, of independent seeds.
        rounding: the variance of each value by rounding.
        level: the share of such intervals that hold the true mean, if values are normally distributed.
    """
    average = statistics.fmean(values)
    error = math.sqrt((statistics.variance(values) + rounding) / len(values))
    far = student(len(values) - 1, (1 + level) / 2) * error
    return Interval(average, average - far, average + far, level, len(values))


def entries(row: Sequence[Mapping[str, Any]], grouped: Sequence[Configuration]) -> list[dict[str, Any]]:
    """Sum up one result of all runs by configuration, and compare each configuration with that of the first run.

    Args:
        row: an entry for each run, as ``wukong.registry.comparison`` makes them; ``units`` says how coarse they are.
        grouped: what ``configurations`` returned.

    Returns:
        For each configuration ``seeds``, those whose runs have a result that can be compared; ``value``, their mean;
        ``sd``, the standard deviation over them; ``low`` and ``high``, Student's interval of the mean, of which what no
        share can be is cut off; the last three are None for one seed. ``difference`` from the first configuration over
        the seeds that both have, each seed with itself: an interval as of runs, or None; ``verdict`` and ``note`` as
        of runs.
    """
    values = [_values(row, configuration) for configuration in grouped]
    step = 1 / min((each["units"] for each in row if each["units"]), default=math.inf)
    by_configuration = []
    for number, own in enumerate(values):
        entry: dict[str, Any] = {"seeds": [*own], "value": None, "sd": None, "low": None, "high": None}
        entry |= {"difference": None, "verdict": "baseline" if not number else "incomparable", "note": ""}
        if not own:
            first = row[min(grouped[number].runs.values())]
            by_configuration.append(entry | {"verdict": "missing", "note": first["note"]})
            continue
        entry["value"] = statistics.fmean(own.values())
        if len(own) >= _LEAST:
            interval = mean([*own.values()], step**2 / 12)
            low, high = max(0.0, interval.low), min(1.0, interval.high)
            entry |= {"sd": statistics.stdev(own.values()), "low": low, "high": high}
        shared = [seed for seed in own if seed in values[0]]
        if number and len(shared) >= _LEAST:
            gained = mean([own[seed] - values[0][seed] for seed in shared], step**2 / 6)
            entry["difference"] = {**asdict(gained), "paired": True}
            entry["verdict"] = "better" if gained.low > 0 else "worse" if gained.high < 0 else "noise"
        elif number:
            entry["note"] = _("no interval: fewer than two seeds in common with the first configuration")
        by_configuration.append(entry)
    return by_configuration


def _values(row: Sequence[Mapping[str, Any]], configuration: Configuration) -> dict[str, float]:
    """By seed the value of a result that was measured on the first run's data by its protocol."""
    return {
        seed: row[number]["value"]
        for seed, number in configuration.runs.items()
        if row[number]["value"] is not None and not row[number]["note"].startswith("not comparable")
    }
