"""The page of a comparison of runs: the parameters that differ, and each result beside its difference, set by set."""

from collections.abc import Callable, Mapping
from typing import Any

from wukong.config.evaluators import result_of
from wukong.report import template
from wukong.runtime.language import _

SIGNS: Mapping[str, str] = {
    "baseline": "",
    "better": "▲",
    "worse": "▼",
    "noise": "≈",
    "incomparable": "≠",
    "missing": "-",
}
"""What stands beside a number, so that no meaning is in a colour alone; by verdict."""

WORDS: Mapping[str, str] = {
    "better": _("better by more than noise"),
    "worse": _("worse by more than noise"),
    "noise": _("within the noise"),
    "incomparable": _("not comparable"),
    "missing": _("not measured"),
}
"""What each sign means, as the legend says it."""


OVER_SEEDS = _(
    "with 95 % intervals of the mean over all seeds (Student's t); differences are paired by seed. They say what the "
    "settings are worth on these queries; those of single runs below say what these weights are worth on others."
)
"""What a table over seeds shows."""


def render(document: Mapping[str, Any]) -> str:
    """Returns the page.

    Args:
        document: result of ``wukong.registry.comparison.compare``.
    """
    values = {**document, "signs": SIGNS, "words": WORDS, "about_seeds": OVER_SEEDS}
    filters: dict[str, Callable[..., object]] = {
        "percent": _percent,
        "difference": difference,
        "over_seeds": over_seeds,
        "name": lambda result: result_of(result).title,
        "count": "{:,}".format,
    }
    return template.fill("comparison.html.j2", values, filters)


def headlines(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the headline of each data set in the first two runs of a comparison.

    Returns:
        Of each set ``task``, ``title``, ``result``, ``before`` and ``now`` (the values, None for what was not
        measured), ``difference`` with its interval in percentage points, or why there is none, ``verdict`` and its
        ``sign``.
    """
    found = []
    for each in document["sets"]:
        before, now = each["results"][each["headline"]][:2]
        found.append(
            {
                "task": each["task"],
                "title": each["title"],
                "result": result_of(each["headline"]).title,
                "before": before["value"],
                "now": now["value"],
                "difference": difference(now["difference"]) if now["difference"] else now["note"],
                "verdict": now["verdict"],
                "sign": SIGNS[now["verdict"]],
            }
        )
    return found


def difference(found: Mapping[str, Any]) -> str:
    """A difference and its interval in percentage points."""
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    return _("{value:+.1f} ({low:+.1f} to {high:+.1f})").format(value=value, low=low, high=high)


def over_seeds(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """Mean, standard deviation and interval of an entry over seeds, in per cent; ``-`` for none."""
    if entry["value"] is None:
        return "-", "-", "-"
    if entry["sd"] is None:
        return _percent(entry["value"]), "-", "-"
    low, high = 100 * entry["low"], 100 * entry["high"]
    return _percent(entry["value"]), f"{100 * entry['sd']:.2f}", _("{low:.1f} to {high:.1f}").format(low=low, high=high)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
