"""Sweeps: train one experiment with several settings, by a grid or a search, and choose the next ones by the results.

A sweep changes only how a model is built and trained, and the seed. So all trials have the same data, and those with
the same image tower one cache of features. Where ``seed`` is among the parameters, each configuration of the others is
trained with all seeds and judged by its mean over them. A trial is an experiment of its own, whose stages lie under
keys of their settings: a trial that has finished is found by its manifests, whatever happened to the sweep. A search is
replayed from its seed: it asks for the same trials as before, and the finished ones cost nothing.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import OF_PARSERS, ConfigError
from wukong.registry.over_seeds import SEED
from wukong.stages import run_paths
from wukong.store.manifest import digest_of

if TYPE_CHECKING:
    import optuna

SECTIONS = ("model", *stages.TRAININGS)
"""The sections of an experiment that a sweep may change: they decide neither the data nor what is measured."""

Value: TypeAlias = bool | int | float | str


class Range(BaseModel):
    """The values of a parameter between two ends; whole numbers if both ends are.

    Attributes:
        low: the least value.
        high: the largest value.
        log: whether each order of magnitude is as likely as the next.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"low {self.low} and high {self.high}: a range has "
                f"{'0 < low < high, since log is true' if self.log else 'low < high'}"
            )
        return self


class Sweep(BaseModel):
    """A sweep's file.

    Attributes:
        name: the name of the sweep and of its run in MLflow; trials have it before a digest of their settings.
        experiment: the experiment that trials start from: a YAML file, beside the sweep's or absolute. It may be
            missing where the command is told of pictures (``--data``).
        set: ``key=value`` changes of that experiment for all trials.
        parameters: by dotted key a list of values, or a range; ``seed`` has a list.
        metric: what is to be large; empty for the experiment's ``registry.metric``.
        sampler: ``grid`` for all combinations of lists; ``random``; ``tpe``, Optuna's tree-structured Parzen estimator.
        trials: how many, of a search, each with all seeds; a grid has all its combinations.
        batch: how many trials a search chooses at once. Those of a batch may run side by side.
        seed: the seed of the search.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,50}$")
    experiment: str | None = None
    set: tuple[str, ...] = ()
    parameters: dict[str, list[Value] | Range] = Field(min_length=1)
    metric: str = ""
    sampler: Literal["grid", "random", "tpe"] = "grid"
    trials: int | None = Field(None, ge=1, le=10_000)
    batch: int = Field(1, ge=1, le=64)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _values_agree(self) -> "Sweep":
        for key, values in self.parameters.items():
            if key != SEED and (key.partition(".")[0] not in SECTIONS or "." not in key):
                raise ValueError(
                    f"parameters: {key!r} is not in {', '.join(SECTIONS)}, and is not {SEED}: a sweep changes no data, "
                    "so that its trials can be compared and share the features"
                )
            if key == SEED and isinstance(values, Range):
                raise ValueError(f"parameters: {SEED} is a range: list the seeds, all of which are trained")
            if isinstance(values, list) and (not values or len(set(map(repr, values))) < len(values)):
                raise ValueError(f"parameters: {key} has no values, or one of them twice: {values}")
            if isinstance(values, Range) and self.sampler == "grid":
                raise ValueError(f"parameters: {key} is a range, and sampler is grid: list its values, or take tpe")
        if self.sampler == "grid" and self.trials is not None:
            raise ValueError("trials: a grid has all combinations of its values; take random or tpe for fewer")
        if self.sampler != "grid" and not {*self.parameters} - {SEED}:
            raise ValueError(
                f"sampler: {self.sampler} searches, and only {SEED} is given, whose values are all trained"
            )
        if self.sampler != "grid" and self.trials is None:
            raise ValueError(f"trials: missing; the sampler {self.sampler} does not end by itself")
        return self


@dataclass(frozen=True)
class Trial:
    """One configuration.

    Attributes:
        number: its place in the sweep, from 0.
        values: by dotted key.
        run: name of its run.
        experiment: with these values.
    """

    number: int
    values: Mapping[str, Value]
    run: str
    experiment: Experiment


@dataclass(frozen=True)
class Result:
    """How a trial ended: the metric's value, or the error that ended it."""

    trial: Trial
    value: float | None
    error: str = ""


def load(path: Path, start: Callable[[Path | None, list[str]], Experiment] | None = None) -> tuple[Sweep, Experiment]:
    """Read a sweep's file and the experiment that it starts from.

    Args:
        path: the sweep's file.
        start: makes the experiment from its file, if the sweep names one, and from ``key=value`` changes. By default
            the file is read, and must be named.

    Raises:
        ConfigError: a file cannot be read, a key is unknown or a value is not allowed.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no sweep's file at {path}; docs/comparing.md shows one") from error
    except (yaml.YAMLError, *OF_PARSERS) as error:
        raise ConfigError(f"cannot read {path}: {error}; a sweep is a YAML file in UTF-8") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a mapping at its top level; docs/comparing.md shows one")
    try:
        sweep = Sweep.model_validate(value)
    except ValidationError as error:
        mistakes = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
        lines = [": ".join(filter(None, mistake)) for mistake in mistakes]
        allowed = f"the keys are {', '.join(Sweep.model_fields)}"
        raise ConfigError("\n  ".join([f"{path} is not a valid sweep:", *lines, allowed])) from error
    named = path.parent / sweep.experiment if sweep.experiment else None
    if start is not None:
        base = start(named, list(sweep.set))
    elif named is not None:
        base = documents.load(named, list(sweep.set))
    else:
        raise ConfigError(f"{path}: experiment is missing: name its file, or give pictures by --data")
    for key, values in sweep.parameters.items():
        for each in values if isinstance(values, list) else (values.low, values.high):
            try:
                with_values(base, {key: each})
            except ConfigError as error:
                raise ConfigError(f"{path}: {key} cannot be {each!r}: {error}") from error
    return sweep, base


def with_values(base: Experiment, values: Mapping[str, Value]) -> Experiment:
    """Return an experiment with other values under dotted keys.

    Raises:
        ConfigError: a key is unknown, or the values do not agree.
    """
    changed: dict[str, Any] = base.model_dump(mode="json")
    for key, value in values.items():
        *parents, last = key.split(".")
        target: Any = changed
        for name in parents:
            target = target.get(name) if isinstance(target, dict) else None
        if not isinstance(target, dict) or last not in target:
            raise ConfigError(f"there is no {key} in an experiment, docs/configuration.md lists the keys")
        target[last] = value
    return documents.parse(changed)


def trial_of(sweep: Sweep, base: Experiment, number: int, values: Mapping[str, Value]) -> Trial:
    """Make a trial; equal values have the same run's name, whatever their place.

    Raises:
        ConfigError: the values do not agree.
    """
    run = f"{sweep.name}-{digest_of(dict(values))[:8]}"
    run_paths.check_name(run)
    return Trial(number, dict(values), run, with_values(base, values))


def grid(sweep: Sweep) -> list[dict[str, Value]]:
    """All combinations of the values, the last key's values changing fastest."""
    lists = {key: values for key, values in sweep.parameters.items() if isinstance(values, list)}
    return [dict(zip(lists, each, strict=True)) for each in itertools.product(*lists.values())]


def run(sweep: Sweep, base: Experiment, execute: Callable[[Sequence[Trial]], Sequence[Result]]) -> list[Result]:
    """Run all trials of a sweep, batch by batch.

    The results of a batch are told in its order, not in the order in which they came. So a search that is begun again
    with the same results asks for the same trials.

    Args:
        sweep: the sweep.
        base: the experiment that trials start from.
        execute: runs the trials of a batch, or finds that they have finished. It is asked for each run once.

    Returns:
        The results in the order of the trials, each run once.
    """
    results: dict[str, Result] = {}
    for batch, tell in _grid_batches(sweep, base) if sweep.sampler == "grid" else _searched_batches(sweep, base):
        new = list({trial.run: trial for trial in batch if trial.run not in results}.values())
        for result in execute(new) if new else ():
            results[result.trial.run] = result
        tell([results[trial.run] for trial in batch])
    return list(results.values())


_Tell: TypeAlias = Callable[[Sequence[Result]], None]


def _grid_batches(sweep: Sweep, base: Experiment) -> Iterator[tuple[list[Trial], _Tell]]:
    yield [trial_of(sweep, base, number, values) for number, values in enumerate(grid(sweep))], lambda _: None


def _searched_batches(sweep: Sweep, base: Experiment) -> Iterator[tuple[list[Trial], _Tell]]:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("sampler: a search needs optuna: pip install 'wukong-vlm[sweep]'") from error
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=sweep.seed)
    if sweep.sampler == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=sweep.seed, constant_liar=sweep.batch > 1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    wanted, listed = int(sweep.trials or 0), sweep.parameters.get(SEED)
    seeds: list[dict[str, Value]] = [{SEED: seed} for seed in listed] if isinstance(listed, list) else [{}]
    for start in range(0, wanted, sweep.batch):
        asked = [study.ask() for _ in range(min(sweep.batch, wanted - start))]
        batch = [
            trial_of(sweep, base, each.number * len(seeds) + n, values | seed)
            for each, values in [(each, _suggested(each, sweep)) for each in asked]
            for n, seed in enumerate(seeds)
        ]

        def tell(results: Sequence[Result], asked: "list[optuna.Trial]" = asked) -> None:
            for n, each in enumerate(asked):
                if top := by_configuration(results[n * len(seeds) :][: len(seeds)]):
                    study.tell(each, mean_of(top[0]))
                else:
                    study.tell(each, state=TrialState.FAIL)

        yield batch, tell


def _suggested(trial: "optuna.Trial", sweep: Sweep) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for key, values in sweep.parameters.items():
        if key == SEED:
            continue
        if isinstance(values, list):
            found[key] = cast("Value", trial.suggest_categorical(key, values))
        elif isinstance(values.low, int) and isinstance(values.high, int):
            found[key] = trial.suggest_int(key, values.low, values.high, log=values.log)
        else:
            found[key] = trial.suggest_float(key, float(values.low), float(values.high), log=values.log)
    return found


def by_configuration(results: Sequence[Result]) -> list[list[Result]]:
    """Put results of one configuration, with all its seeds, together; those without a finite value are left out.

    Returns:
        The configurations, that with the largest mean first, the earliest of equal ones.
    """
    groups: dict[str, list[Result]] = {}
    for each in results:
        if each.value is not None and math.isfinite(each.value):
            values = {key: value for key, value in each.trial.values.items() if key != SEED}
            groups.setdefault(digest_of(values), []).append(each)
    return sorted(groups.values(), key=lambda group: -mean_of(group))


def mean_of(results: Sequence[Result]) -> float:
    """The mean of the values of some results, each of which has one."""
    return math.fsum(each.value for each in results if each.value is not None) / len(results)
