"""Reading an experiment: from a YAML file or a mapping, with overrides, and with messages that name the wrong key.

A file may name another one as its base, ``base: FILE``, a path relative to its own folder. It then holds what differs:
mappings are merged key by key, lists and values are replaced. Of several bases, ``base: [FILE, FILE]``, the later one
counts more.

A file may have values for the experiments of one objective: ``by_similarity: {global: {...}, token: {...}}``. Those of
the experiment's ``model.similarity`` count more than the file's other values, and less than overrides and than a file
whose base it is. The merged experiment has no trace of its files, and none of ``by_similarity``.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from wukong.config import mistakes
from wukong.config.experiment import Experiment
from wukong.config.model import Model
from wukong.errors import OF_PARSERS, ConfigError

_BY_SIMILARITY = "by_similarity"
_UNNAMED = "the experiment"


def load(path: Path, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment from a YAML file and its bases, and apply ``key.path=value`` overrides, whose values are YAML.

    The ``experiment.json`` of a run is such a file too.

    Raises:
        ConfigError: a file cannot be read or is its own base, or a key is unknown or a value not allowed; the message
            names the key, the value and what is allowed.
    """
    return load_part(None, path, {}, overrides)


def is_part(path: Path) -> bool:
    """Return whether a file and its bases give no ``name``, which each experiment has: it says what differs from one.

    Raises:
        ConfigError: a file cannot be read, or is its own base.
    """
    return not any("name" in layer for layer in _with_base(path, ())[0])


def load_part(
    part: Path | None, base: Path, values: Mapping[str, Any], overrides: list[str] | None = None
) -> Experiment:
    """Read what differs from an experiment; see ``load``.

    Args:
        part: the file of what differs. None if nothing does.
        base: the experiment's file.
        values: keys that count more than the base, and less than the part.
        overrides: ``key.path=value`` entries, which count most.

    Raises:
        ConfigError: as ``load`` does.
    """
    layers, files = _with_base(base, ())
    above, changed = _with_base(part, ()) if part else ([], [])
    files = [*changed, *files]
    where = reduce(lambda name, base: f"{name} on the base {base}", map(str, files))
    return _overridden([*layers, dict(values), *above], overrides, where, files)


def loads(text: str, overrides: list[str] | None = None, where: str = _UNNAMED) -> Experiment:
    """Read an experiment from the text of a YAML (or JSON) file; see ``load``. A text has no folder, and so no base."""
    return _overridden([_mapping(text, where)], overrides, where)


def parse(value: dict[str, Any], where: str = _UNNAMED) -> Experiment:
    """Check a mapping against the experiment's types; see ``load``."""
    return _overridden([value], None, where)


def _checked(
    value: dict[str, Any], where: str, overrides: Sequence[str] = (), files: Sequence[Path] = ()
) -> Experiment:
    if "base" in value:
        raise ConfigError(
            f"base: {value['base']!r} cannot be found from {where}: only a file names a base, relative to its own "
            "folder; `wukong config --config FILE` prints a file together with its base"
        )
    try:
        return Experiment.model_validate(value)
    except ValidationError as error:
        lines = mistakes.explain(error, overrides, files)
        raise ConfigError("\n".join([f"{where} is not a valid experiment:", *lines])) from error


def _with_base(path: Path, above: tuple[Path, ...]) -> tuple[list[dict[str, Any]], list[Path]]:
    """Read a file and its bases.

    Args:
        path: the file.
        above: the files whose base it is, directly or not.

    Returns:
        Their mappings without ``base``, of which the later ones count more, and the files, this one first.
    """
    resolved = path.resolve()
    if resolved in above:
        raise ConfigError(f"base: {path} is its own base, by {above[-1]}: take the key base out of one of the files")
    value = _mapping(_text(path, of=above[-1] if above else None), str(path))
    if "base" not in value:
        return [value], [path]
    given = value.pop("base")
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f"base: {path} gives {given!r}; write a path relative to {path.parent}, or a list of such paths"
        )
    layers: list[dict[str, Any]] = []
    files = [path]
    for name in names:
        below, others = _with_base(path.parent / name, (*above, resolved))
        layers += below
        files += others
    return [*layers, value], files


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
    except (yaml.YAMLError, *OF_PARSERS) as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must hold a mapping at its top level, like configs/demo.yaml")
    of_run = value.get("experiment")
    return of_run if isinstance(of_run, dict) and "name" not in value else value


def _merged(base: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; of lists and values the second one counts."""
    merged = dict(base)
    for key, entry in value.items():
        below = merged.get(key)
        merged[key] = _merged(below, entry) if isinstance(below, dict) and isinstance(entry, dict) else entry
    return merged


def _overridden(
    layers: Sequence[dict[str, Any]], overrides: list[str] | None, where: str, files: Sequence[Path] = ()
) -> Experiment:
    """Merge mappings, of which the later ones count more, apply overrides, and check the result."""
    of_each = [layer.get(_BY_SIMILARITY, {}) for layer in layers]
    layers = [{key: value for key, value in layer.items() if key != _BY_SIMILARITY} for layer in layers]
    similarity = _similarity(reduce(_merged, layers, {}), overrides)
    merged: dict[str, Any] = {}
    for layer, values in zip(layers, of_each, strict=True):
        merged = _merged(_merged(merged, layer), _chosen(values, similarity, where))
    for override in overrides or []:
        _override(merged, override)
    return _checked(merged, where, overrides or [], files)


def _similarity(value: dict[str, Any], overrides: list[str] | None) -> Any:
    """Return the ``model.similarity`` that a mapping has with overrides."""
    value = deepcopy(value)
    for override in overrides or []:
        _override(value, override)
    model = value.get("model")
    default = Model.model_fields["similarity"].default
    return model.get("similarity", default) if isinstance(model, dict) else default


def _chosen(values: Any, similarity: Any, where: str) -> dict[str, Any]:
    """Return the values of ``by_similarity`` for a similarity."""
    allowed = get_args(Model.model_fields["similarity"].annotation)
    if not isinstance(values, dict) or not all(isinstance(each, dict) for each in values.values()):
        raise ConfigError(
            f"{_BY_SIMILARITY}: {where} gives {values!r}; write mappings of an experiment's keys below "
            f"{' and '.join(allowed)}"
        )
    if wrong := [key for key in values if key not in allowed]:
        raise ConfigError(f"{_BY_SIMILARITY}.{wrong[0]}: unknown key in {where}; allowed here: {', '.join(allowed)}")
    chosen: dict[str, Any] = values.get(similarity, {})
    if isinstance(model := chosen.get("model"), dict) and "similarity" in model:
        raise ConfigError(f"{_BY_SIMILARITY}.{similarity}.model.similarity: it is what decides; take it out of {where}")
    return chosen


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
    except (yaml.YAMLError, *OF_PARSERS) as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error
