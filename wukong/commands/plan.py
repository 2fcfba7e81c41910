"""``wukong plan``: storage and hours of a training, from rates measured on this machine and rates that are told."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, get_args

import typer

from wukong.commands.output import print_json
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.features import Dtype
from wukong.config.training import Training
from wukong.errors import ConfigError
from wukong.stages import estimate
from wukong.stages.estimate import CAPTION_TOKENS, GPU, RATES, Rate, RateName, TrainingPlan

_STORE = "store"


def plan(
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Number of pairs to train on.")],
    config_file: Annotated[Path, typer.Option("--config", "-c", help="The experiment, a YAML file.")] = Path(
        "configs/demo.yaml"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. pretrain.epochs=3 (repeatable)."),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=0, help="Number of GPUs, one a worker; 0 for none. Default: the config's."),
    ] = None,
    told: Annotated[
        list[str] | None,
        typer.Option(
            "--rate",
            metavar="NAME=NUMBER",
            help="Use this rate instead of measuring it (repeatable). Of one worker a second: text_step=PAIRS, "
            "tower=PICTURES; of one core a second: decode=PICTURES, augment=PICTURES. gpu=TFLOPS is what a GPU "
            "sustains; text_step and tower are computed from it. store=GB is what all workers together read a second.",
        ),
    ] = None,
    caption_tokens: Annotated[
        int, typer.Option("--tokens", min=3, help="Mean number of tokens of a caption.")
    ] = CAPTION_TOKENS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Plan the pre-training: storage, and hours with stored features and without.

    Rates that are not told are measured on this machine, which takes about half a minute; the output says which are
    which. Example:

        wukong plan --config configs/paper/vit-l.yaml --pairs 100000000 --gpus 40 --rate gpu=300
    """
    experiment = documents.load(config_file, overrides)
    settings = experiment.pretrain
    if gpus is not None:
        changes = {"workers": gpus, "gpus_per_worker": 1} if gpus else {"gpus_per_worker": 0}
        settings = _changed(settings, changes)
    given = parse_rates(told or [])
    check_rates(settings, given)

    from wukong.train import rates  # torch takes seconds to import

    shape = rates.feature_shape(experiment.model)
    found_rates = rates.find(experiment.model, settings, given, caption_tokens)
    store = given[_STORE] * 1e9 if _STORE in given else None
    sizes = {dtype: estimate.feature_bytes(*shape, dtype) for dtype in get_args(Dtype)}
    training_plan = estimate.training(
        settings, pairs, sizes[experiment.features.dtype], os.cpu_count() or 1, found_rates, store
    )
    all_views = {dtype: pairs * (1 + settings.views) * size for dtype, size in sizes.items()}
    if as_json:
        print_json(_as_json(training_plan, found_rates, pairs, settings))
    else:
        _print(training_plan, found_rates, pairs, settings, experiment, all_views)


def _changed(settings: Training, changes: Mapping[str, int]) -> Training:
    values = {**settings.model_dump(), **changes}
    workers = values["workers"]
    # A plan is not refused because a batch of another size would be needed.
    values["batch_size"] = -(-values["batch_size"] // workers) * workers
    return Training.model_validate(values)


def parse_rates(told: Sequence[str]) -> dict[str, float]:
    """Read ``--rate`` values.

    Raises:
        ConfigError: a value is not NAME=NUMBER with a known name and a positive number.
    """
    rates: dict[str, float] = {}
    for entry in told:
        name, _, number = entry.partition("=")
        try:
            value = float(number.replace(",", ""))
        except ValueError:
            value = 0.0
        if name not in {*RATES, GPU, _STORE} or not 0 < value < float("inf"):
            raise ConfigError(
                f"--rate: {entry!r} is not NAME=NUMBER with a number above 0 and one of the names "
                f"{', '.join((*RATES, GPU, _STORE))}"
            )
        rates[name] = value
    return rates


def check_rates(settings: Training, told: Mapping[str, float]) -> None:
    """Check that the rates which are not told can be measured on this machine.

    Raises:
        ConfigError: a rate of a GPU is not told, and this machine has no GPU.
    """
    import torch

    missing = [name for name in ("text_step", "tower") if name not in told]
    if settings.gpus_per_worker and missing and GPU not in told and not torch.cuda.is_available():
        raise ConfigError(
            f"--rate: this machine has no GPU to measure {' and '.join(missing)} on. Give them for one GPU, such as "
            f"{' '.join(f'--rate {name}=500' for name in missing)}, or give --rate gpu=TFLOPS for what it sustains"
        )


def _as_json(found: TrainingPlan, rates: Mapping[RateName, Rate], pairs: int, settings: Training) -> dict[str, object]:
    values = asdict(found)
    for name, way in (("cached", found.cached), ("streamed", found.streamed)):
        if way is not None:
            values[name]["hours"] = way.seconds / 3600
    return {
        "pairs": pairs,
        "workers": settings.workers,
        "gpus": settings.workers * settings.gpus_per_worker,
        "epochs": settings.epochs,
        "rates": {name: asdict(rate) for name, rate in rates.items()},
        **values,
        "faster": found.faster,
    }


_UNITS: dict[RateName, str] = {
    "text_step": "pairs/s of a worker, on stored features",
    "tower": "pictures/s of a worker, forward",
    "decode": "pictures/s of a core, plain view",
    "augment": "pictures/s of a core, augmented view",
}
_SOURCES = {"measured": "measured here", "told": "told", "computed": "computed from gpu"}


def _print(
    found: TrainingPlan,
    rates: Mapping[RateName, Rate],
    pairs: int,
    settings: Training,
    experiment: Experiment,
    sizes: Mapping[Dtype, int],
) -> None:
    where = f"{settings.workers} GPUs" if settings.gpus_per_worker else f"{settings.workers} workers without GPUs"
    typer.echo(f"{pairs:,} pairs, {settings.epochs} epochs, {where}, {experiment.model.image.name}")
    typer.echo("\nRates")
    for name, rate in rates.items():
        typer.echo(f"  {name:<10}{rate.per_second:>10,.1f}  {_UNITS[name]:<40}{_SOURCES[rate.source]}")
    typer.echo(f"\n{'Ways':<12}{'features':>12}{'fill':>12}{'epochs':>12}{'together':>12}{'reads':>14}  most of it")
    for title, way in (("cached", found.cached), ("streamed", found.streamed)):
        if way is not None:
            fill = _time(way.fill_seconds) if way.fill_seconds else "-"
            row = (_size(way.bytes) if way.bytes else "-", fill, _time(way.train_seconds), _time(way.seconds))
            reads = f"{_size(way.read_bytes / way.train_seconds)}/s"
            typer.echo(f"  {title:<10}{''.join(f'{cell:>12}' for cell in row)}{reads:>14}  {way.bound_by}")
    typer.echo(f"\nThe pairs themselves take about {_size(found.pair_bytes)}.")
    if found.cached is not None:
        dtype = experiment.features.dtype
        (other,) = set(sizes) - {dtype}
        typer.echo(f"Features are stored as {dtype}; as {other} they would take {_size(sizes[other])}.")
    typer.echo(f"Faster: {found.faster}.")


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} KB"


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f} h"
    return f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
