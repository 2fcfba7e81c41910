"""Reading an experiment: from a YAML file or a mapping, with overrides, and with messages that name the wrong key.

A file may name another one as its base, ``base: FILE``, a path relative to its own folder. It then holds what differs:
mappings are merged key by key, lists and values are replaced. Of several bases, ``base: [FILE, FILE]``, the later one
counts more. The merged experiment has no trace of its files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from wukong.config.experiment import Experiment
from wukong.errors import ConfigError


def load(path: Path, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment from a YAML file and its bases, and apply ``key.path=value`` overrides, whose values are YAML.

    Raises:
        ConfigError: a file cannot be read or is its own base, or a key is unknown or a value not allowed; the message
            names the key, the value and what is allowed.
    """
    value, files = _with_base(path, ())
    return _overridden(value, overrides, where=" on the base ".join(map(str, files)))


def loads(text: str, overrides: list[str] | None = None, where: str = "the experiment") -> Experiment:
    """Read an experiment from the text of a YAML (or JSON) file; see ``load``. A text has no folder, and so no base."""
    return _overridden(_mapping(text, where), overrides, where)


def parse(value: dict[str, Any], where: str = "the experiment") -> Experiment:
    """Check a mapping against the experiment's types; see ``load``."""
    if "base" in value:
        raise ConfigError(
            f"base: {value['base']!r} cannot be found from {where}: only a file names a base, relative to its own "
            "folder; `wukong config --config FILE` prints a file together with its base"
        )
    try:
        return Experiment.model_validate(value)
    except ValidationError as error:
        lines = [_explain(entry) for entry in error.errors()]
        raise ConfigError("\n".join([f"{where} is not a valid experiment:", *lines])) from error


def _with_base(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], list[Path]]:
    """Read a file merged into its base.

    Args:
        path: the file.
        above: the files whose base it is, directly or not.

    Returns:
        The merged mapping, without ``base``, and the files that it was made of.
    """
    resolved = path.resolve()
    if resolved in above:
        raise ConfigError(f"base: {path} is its own base, by {above[-1]}: take the key base out of one of the files")
    value = _mapping(_text(path, of=above[-1] if above else None), str(path))
    if "base" not in value:
        return value, [path]
    given = value.pop("base")
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f"base: {path} gives {given!r}; write a path relative to {path.parent}, or a list of such paths"
        )
    merged: dict[str, Any] = {}
    files = [path]
    for name in names:
        below, others = _with_base(path.parent / name, (*above, resolved))
        merged = _merged(merged, below)
        files += others
    return _merged(merged, value), files


def _text(path: Path, of: Path | None) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if of is not None:
            raise ConfigError(
                f"base: there is no {path}, which {of} names; its path is relative to {of.parent}"
            ) from error
        raise ConfigError(f"no experiment file at {path}; configs/ holds examples") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; an experiment is a YAML file in UTF-8") from error


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        value = yaml.load(text, _UniqueKeys)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must hold a mapping at its top level, like configs/demo.yaml")
    return value


def _merged(base: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; of lists and values the second one counts."""
    merged = dict(base)
    for key, entry in value.items():
        below = merged.get(key)
        merged[key] = _merged(below, entry) if isinstance(below, dict) and isinstance(entry, dict) else entry
    return merged


def _overridden(value: dict[str, Any], overrides: list[str] | None, where: str) -> Experiment:
    for override in overrides or []:
        _override(value, override)
    return parse(value, where=where)


class _UniqueKeys(yaml.SafeLoader):
    """YAML without the trap that of a key written twice only the second value counts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: {key!r} is written twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _override(value: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: write it as key.path=value, for instance pretrain.epochs=3")
    *parents, last = key.strip().split(".")
    target: Any = value
    for name in parents:
        target = target.setdefault(name, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {name!r} holds a value, so nothing can be set below it")
    try:
        target[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error


def _explain(entry: Any) -> str:
    location = [str(part) for part in entry["loc"]]
    key = ".".join(location)
    if entry["type"] == "extra_forbidden":
        return f"  {key}: unknown key; allowed here: {', '.join(_allowed_keys(location[:-1]))}"
    if entry["type"] == "missing":
        return f"  {key}: missing"
    shown = "" if entry["type"] == "value_error" else f" (got {entry['input']!r})"
    where = f"{key}: " if key else ""  # what concerns several sections names its keys itself
    return f"  {where}{entry['msg'].removeprefix('Value error, ')}{shown if key else ''}"


def _allowed_keys(location: list[str]) -> list[str]:
    model: Any = Experiment
    for name in location:
        if name.isdigit():
            continue
        annotation = model.model_fields[name].annotation
        inner = getattr(annotation, "__args__", None)
        model = inner[0] if inner else annotation
    return sorted(model.model_fields)
