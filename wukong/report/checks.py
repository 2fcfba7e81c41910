"""What was checked of a filtered set and what was not: its rules, their thresholds, and what they found.

All of it comes from the filter's manifest, so it is what the filter did, whatever the experiment says now.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wukong.curate.names_and_faces import NAME_AND_FACE
from wukong.curate.rule import Rule
from wukong.curate.rules import REGISTRY
from wukong.report.removed import Removed
from wukong.runtime.language import _
from wukong.store.manifest import Manifest

Numbers = tuple[tuple[str, int], ...]
"""Names with their numbers, the largest number first."""

_MOST_NAMED = 20
_OVERLAP, _OVERLAP_OF_CAPTIONS, _UNREAD = "overlap/", "overlap_captions/", "unread/"
"""Beginnings of the names of a filter's counts; the test set or the rule follows."""


@dataclass(frozen=True)
class Applied:
    """A rule that was on.

    Attributes:
        name: the drop reason.
        title: what the pairs that pass have in common.
        version: of the rule.
        settings: names and values of its settings.
        removed: pairs that it dropped.
        kinds: of these by kind, where it tells kinds.
        sources: of these by source; an empty name stands for all that the experiment does not name.
    """

    name: str
    title: str
    version: int
    settings: tuple[tuple[str, str], ...]
    removed: int
    kinds: Numbers = ()
    sources: Numbers = ()


def applied(filtered: Manifest, removed: Removed) -> tuple[Applied, ...]:
    """Return the rules that were on, in the order in which they drop pairs.

    Args:
        filtered: the filter stage's manifest.
        removed: counts over its dropped pairs; empty where nobody counted them.
    """
    versions = filtered.config.get("rule_versions", {})
    return tuple(
        Applied(
            rule.name,
            rule.title,
            versions.get(rule.name, 0),
            tuple(_settings(rule, filtered.config)),
            filtered.dropped.get(rule.name, 0),
            _largest(removed.kinds.get(rule.name)),
            _largest(removed.sources.get(rule.name)),
        )
        for rule in REGISTRY
        if _is_on(rule, filtered)
    )


def found(filtered: Manifest) -> tuple[str, ...]:
    """Return what was found that a reader of numbers must know, as sentences: overlap, names beside faces, unread."""
    counts, pairs = filtered.counts, max(1, filtered.counts["pairs"])
    action = filtered.config.get("decontaminate") or {}
    fate = _("they were left out") if action.get("action", "drop") == "drop" else _("they are marked")
    sentences = []
    for name, number in sorted(counts.items()):
        of, said = name.partition("/")[2], {"number": number, "share": f"{100 * number / pairs:.2g}", "fate": fate}
        if name.startswith(_OVERLAP):
            text = _("Overlap with {test_set}: {number:,} pictures, {share} % of all pairs; {fate}.")
            sentences.append(text.format(test_set=of, **said))
        elif name.startswith(_OVERLAP_OF_CAPTIONS):
            text = _("Captions of {test_set}: {number:,} pairs have one, {share} % of all pairs.")
            sentences.append(text.format(test_set=of, **said))
        elif name.startswith(_UNREAD) and number:
            text = _("Pictures that the rule {rule} could not judge, and did not drop: {number:,}.")
            sentences.append(text.format(rule=of, **said))
    if NAME_AND_FACE in counts:
        text = _("Captions with a masked name beside a picture with one large face: {number:,}.")
        sentences.append(text.format(number=counts[NAME_AND_FACE]))
    return tuple(sentences)


def unchecked(filtered: Manifest) -> tuple[str, ...]:
    """Return what was not looked for, as sentences: each rule that was off."""
    off = (rule for rule in REGISTRY if rule.optional and not _is_on(rule, filtered))
    sentences = [rule.unchecked or _("Nobody checked this: {title}.").format(title=rule.title) for rule in off]
    if any(name.startswith(_OVERLAP) for name in filtered.counts):
        sentences.append(_("Overlap with other test sets than those above was not looked for."))
    return tuple(sentences)


def _is_on(rule: Rule, filtered: Manifest) -> bool:
    return not rule.optional or rule.name in filtered.dropped


def _settings(rule: Rule, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in rule.Settings.model_fields:
        if name in config:
            yield from _flat(name, config[name])


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield names and values of a setting, dotted where it has some of its own; what is empty says nothing.

    How a picture becomes a model's input, and what its numbers are, is left out: the digest says which model it is.
    """
    if isinstance(value, Mapping):
        for inner, each in value.items():
            if not (name.endswith("model") and inner in ("input", "output")):
                yield from _flat(f"{name}.{inner}", each)
    elif isinstance(value, list):
        if value:
            yield name, ", ".join(_said(each) for each in value)
    elif value not in (None, ""):
        yield name, _said(value)


def _said(value: Any) -> str:
    """Return a value as a card says it; of a URI the last name, as the rest says where an operator's files lie."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text.rstrip("/").rsplit("/", 1)[-1] if "://" in text else text


def _largest(counts: Counter[str] | None) -> Numbers:
    ordered = sorted((counts or {}).items(), key=lambda each: (-each[1], each[0]))
    return tuple(ordered[:_MOST_NAMED])
