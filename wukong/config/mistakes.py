"""What is wrong with an experiment, in words: the key, where it stands, what is allowed, what may have been meant."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from wukong.config.experiment import Experiment

_ALIKE, _ALIKE_ELSEWHERE = 0.6, 0.8
_MOST = 3


def explain(error: ValidationError, overrides: Sequence[str] = (), files: Sequence[Path] = ()) -> list[str]:
    """Describe each mistake that was found in an experiment.

    Args:
        error: pydantic's.
        overrides: ``key.path=value`` entries that were applied.
        files: the YAML files that it was read from; of a key that several have, the first counts.

    Returns:
        A line for each.
    """
    return [f"  {_placed(_described(entry), entry['loc'], overrides, files)}" for entry in error.errors()]


def _described(entry: Any) -> str:
    location = [str(part) for part in entry["loc"]]
    key = ".".join(location)
    if entry["type"] == "extra_forbidden":
        allowed = _allowed_keys(location[:-1])
        unknown = f"{key}: unknown key; allowed here: {', '.join(allowed)}"
        return "; ".join([unknown, *_meant(location, allowed)])
    if entry["type"] == "missing":
        return f"{key}: missing"
    problem: str = entry["msg"].removeprefix("Value error, ")
    if not key:  # what concerns several sections names its keys itself
        return problem
    if entry["type"] == "value_error":  # which names the value itself
        return f"{key}: {problem}"
    return f"{key}: {problem} (got {entry['input']!r})"


def _allowed_keys(location: Sequence[str]) -> list[str]:
    model: Any = Experiment
    for name in location:
        if name.isdigit():
            continue
        annotation = model.model_fields[name].annotation
        inner = getattr(annotation, "__args__", None)
        model = inner[0] if inner else annotation
    return sorted(model.model_fields)


def _meant(location: Sequence[str], allowed: Sequence[str]) -> Iterator[str]:
    """Say which keys an unknown one may stand for: one that is written alike here, or else in another section."""
    *parents, name = location
    found = [".".join([*parents, each]) for each in difflib.get_close_matches(name, allowed, 1, _ALIKE)]
    if not found:
        known = list(_all_keys(Experiment, ""))
        names = difflib.get_close_matches(name, {key.rpartition(".")[2] for key in known}, 1, _ALIKE_ELSEWHERE)
        found = [key for key in known if key.rpartition(".")[2] in names][:_MOST]
    if found:
        yield f"did you mean {' or '.join(found)}?"


def _all_keys(model: type[BaseModel], above: str) -> Iterator[str]:
    """Yield the dotted key of each value in the sections below a model; those in lists are left out."""
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _all_keys(annotation, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def _placed(mistake: str, location: Sequence[str | int], overrides: Sequence[str], files: Sequence[Path]) -> str:
    """Add to a mistake where its key was given: the override, or the file and its line."""
    key = ".".join(map(str, location))
    for override in reversed(overrides):
        given = override.partition("=")[0].strip()
        if key and (given == key or given.startswith(f"{key}.") or key.startswith(f"{given}.")):
            return f"{mistake} [--set {given}]"  # not its value, which may be a secret
    for file in files:
        if (line := _line(yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader), location)) is not None:
            return f"{mistake} [{file}, line {line}]"
    return mistake


def _line(node: yaml.Node | None, location: Sequence[str | int]) -> int | None:
    """Return the number of the line on which a key stands below a node, from 1; None if it is not there."""
    line = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                return None
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return None
    return line
