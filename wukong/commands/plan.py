"""``wukong plan``: what a run takes, stage by stage, and what it leaves in the store, before it has run."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from wukong import stages
from wukong.commands.output import Console, JsonOption, Table, echo, print_json, wide
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.features import Dtype
from wukong.config.training import Training
from wukong.errors import ConfigError
from wukong.evaluate import set_folders
from wukong.model.cost import Size
from wukong.runtime import amounts
from wukong.runtime.language import _, translated
from wukong.stages import estimate, fit, measured_rates, overlay, prices
from wukong.stages.capacity import Capacity
from wukong.stages.estimate import CAPTION_TOKENS, GPU, NETWORK, RATES, STORE, Estimate, RateName, Work
from wukong.stages.prices import Prices, in_currency


def plan(
    pairs: Annotated[
        int | None,
        typer.Option("--pairs", min=1, help="Number of pairs to train on. Default: all URLs, as if none were dropped."),
    ] = None,
    urls: Annotated[
        int | None,
        typer.Option(
            "--urls", min=1, help="Number of URLs to crawl. Default: as many as pairs, or as the overlay is for."
        ),
    ] = None,
    config_file: Annotated[Path, typer.Option("--config", "-c", help="The experiment, a YAML file.")] = Path(
        "configs/demo.yaml"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. pretrain.epochs=3 (repeatable)."),
    ] = None,
    overlay_place: Annotated[
        Path | None,
        typer.Option("--overlay", help="An installation: a folder that kustomize builds, or a file of its output."),
    ] = None,
    cores: Annotated[
        int | None, typer.Option("--cores", min=1, help="Cores that each stage may use. Default: this machine's.")
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
            help="Use this rate of training instead of the stored one (repeatable). Of one worker a second: "
            "text_step=PAIRS, tower=PICTURES; of one core a second: decode=PICTURES, augment=PICTURES. gpu=TFLOPS is "
            "what a GPU sustains; text_step and tower are computed from it. store=GB is read by all workers a second, "
            "network=GB sent by a node.",
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the rates of training that are not told here: half a minute.")
    ] = False,
    price_list: Annotated[
        str | None,
        typer.Option(
            "--price",
            metavar="NAME=NUMBER,...",
            help="Add costs: cpu= and gpu= for one an hour, gib= of memory for an hour, gib_month= stored. Default: "
            "WUKONG_PRICES, here or in the overlay.",
        ),
    ] = None,
    caption_tokens: Annotated[
        int, typer.Option("--tokens", min=3, help="Mean number of tokens of a caption.")
    ] = CAPTION_TOKENS,
    as_json: JsonOption = False,
) -> None:
    """Plan a whole run: time, cores, GPUs and memory of each stage, and what lies in the store after it.

    The rates are those that `make bench NAME=scale` stored; the output says where they were measured, and up to which
    number of items. Example:

        wukong plan --config configs/paper/vit-l.yaml --urls 166000000 --pairs 100000000 --overlay k8s/overlays/gpu
    """
    if pairs is not None and urls is not None and pairs > urls:
        raise ConfigError(f"--pairs: {pairs:,} pairs cannot come from {urls:,} URLs; give at least as many URLs")
    if overlay_place is not None and cores is not None:
        raise ConfigError("--cores: the overlay says how many cores each stage has; leave one of the two options out")
    price = prices.parse(price_list, "--price") if price_list is not None else prices.of_environment()
    rates = prices.numbers("--rate", told or [], (*RATES, GPU, NETWORK, STORE))
    experiment = documents.load(config_file, overrides)
    if gpus is not None:
        changed = {name: _with_gpus(stages.training_of(experiment, name), gpus) for name in stages.TRAININGS}
        experiment = experiment.model_copy(update=changed)
    capacity = Capacity(cores or os.cpu_count() or 1)
    if overlay_place is not None:
        capacity = overlay.read(overlay_place, experiment)
        if price_list is None and capacity.prices:
            price = prices.parse(capacity.prices, f"--overlay: {prices.VARIABLE}")
    incoming = urls or pairs or capacity.sized_for
    if incoming is None:
        raise ConfigError("--urls or --pairs: say how many URLs are crawled, or on how many pairs is trained")
    work = Work(
        experiment=experiment,
        urls=incoming,
        pairs=pairs or incoming,
        size=Size.of(experiment.model),
        capacity=capacity,
        rates=measured_rates.load(),
        told=rates,
        caption_tokens=caption_tokens,
        sets=_sets_here(experiment),
    )
    if measure:
        work = _measured(work)
    planned = fit.estimates(work)
    if as_json:
        print_json(_as_json(work, planned, price))
    else:
        _print_run(work, planned, price)
        _print_training(work, planned)


def _sets_here(experiment: Experiment) -> dict[str, int]:
    """Return the bytes of the published sets that lie in a folder of this machine; no store is asked."""
    names, root = experiment.published_sets, experiment.evaluate.sets
    return set_folders.bytes_of(root, names) if names and root.startswith("file:") else {}


def _with_gpus(settings: Training, gpus: int) -> Training:
    values = {**settings.model_dump(), **({"workers": gpus, "gpus_per_worker": 1} if gpus else {"gpus_per_worker": 0})}
    workers = values["workers"]
    # A plan is not refused because a batch of another size would be needed.
    values["batch_size"] = -(-values["batch_size"] // workers) * workers
    values["min_workers"] = min(values["min_workers"], workers)
    return Training.model_validate(values)


def _measured(work: Work) -> Work:
    """Return the work with the rates of pre-training that are not told measured on this machine.

    Raises:
        ConfigError: a rate of a GPU is not told, and this machine has no GPU.
    """
    import torch

    from wukong.train import rates

    settings, computed = work.experiment.pretrain, () if GPU not in work.told else ("text_step", "tower")
    names = [name for name in RATES if name not in work.told and name not in computed]
    missing = [name for name in ("text_step", "tower") if name in names]
    if settings.gpus_per_worker and missing and not torch.cuda.is_available():
        raise ConfigError(
            f"--measure: this machine has no GPU to measure {' and '.join(missing)} on. Give them for one GPU, such as "
            f"{' '.join(f'--rate {name}=500' for name in missing)}, or give --rate gpu=TFLOPS for what it sustains"
        )
    return replace(work, measured=rates.find(work.experiment.model, settings, names, work.caption_tokens))


def _as_json(work: Work, planned: Mapping[str, Estimate], price: Prices) -> dict[str, object]:
    settings, training_plan = work.experiment.pretrain, estimate.plan_of_training(work, "pretrain")
    values: dict[str, Any] = asdict(training_plan)
    for name, way in (("cached", training_plan.cached), ("streamed", training_plan.streamed)):
        if way is not None:
            values[name]["hours"] = way.seconds / 3600
    costs, exchanged = _costs(work, planned, price), estimate.exchanged(work, settings)
    stored = sum(each.bytes for each in planned.values())
    return {
        "urls": work.urls,
        "pairs": work.pairs,
        "workers": settings.workers,
        "gpus": settings.workers * settings.gpus_per_worker,
        "epochs": settings.epochs,
        "measured": {"machine": work.rates.machine, "on": work.rates.measured, "command": work.rates.command},
        "stages": {
            name: asdict(each) | {"cost": costs[name], "measured_up_to": work.rates.of(name).largest}
            for name, each in planned.items()
        },
        "stored_bytes": stored,
        "store_holds": work.capacity.store,
        "cost": {"run": sum(costs.values()), "month": price.stored(stored)},
        "problems": _problems(work, planned),
        "operations": estimate.step_operations(work, settings),
        "notes": [*fit.notes(work, planned)],
        "facts": [*fit.facts(work, planned)],
        "rates": {name: asdict(rate) for name, rate in estimate.rates_of(work, settings).items()},
        **values,
        "faster": training_plan.faster,
        "exchange": exchanged._asdict() | {"sent": exchanged.sent, "seconds": exchanged.sent / work.network},
        "validations": {
            name: asdict(each) for name in stages.TRAININGS if (each := estimate.validations_of(work, name)) is not None
        },
    }


def _costs(work: Work, planned: Mapping[str, Estimate], price: Prices) -> dict[str, float]:
    return {name: each.cost(price, work.capacity.held_memory(name)) for name, each in planned.items()}


def _problems(work: Work, planned: Mapping[str, Estimate]) -> list[str]:
    """Say where what is planned does not fit, or would be refused for its size."""
    asked = work.experiment
    return [*fit.problems(work, planned), *fit.unknown_sets(asked), *fit.too_few(asked, work.pairs)]


def _print_run(work: Work, planned: Mapping[str, Estimate], price: Prices) -> None:
    echo(f"{work.urls:,} URLs, {work.pairs:,} pairs, {work.experiment.name}")
    rows, costs = [], _costs(work, planned, price)
    for name, each in planned.items():
        memory = [amounts.size(value) if value else "-" for value in (each.driver_memory, each.task_memory)]
        gpus = f"{each.gpus:,}" if each.gpus else "-"
        row = [name, amounts.duration(each.seconds), f"{each.cores:,}", gpus, *memory, amounts.size(each.bytes)]
        rows.append([*row, *([f"{costs[name]:,.2f}"] if price else [])])
    titles = (_("Stages"), _("time"), _("cores"), _("GPUs"), _("driver"), _("task"), _("writes"), _("cost"))
    _print_rows(list(titles) if price else list(titles)[:-1], rows)
    stored, store = sum(each.bytes for each in planned.values()), work.capacity.store
    together = amounts.duration(sum(each.seconds for each in planned.values()))
    echo(
        f"\nTogether {together}; {amounts.size(stored)} stay in the store"
        f"{f' of the {amounts.size(store)} that it holds' if store is not None else ''}."
    )
    for fact in fit.facts(work, planned):
        echo(fact)
    if price:
        run, month = in_currency(sum(costs.values())), in_currency(price.stored(stored))
        echo(f"The run costs {run}, what it stores {month} a month.")
        if price.gib and not work.capacity.pods:
            echo("The cost of memory is left out: only an overlay says how much of it pods hold.")
    for problem in _problems(work, planned):
        echo(f"Does not fit: {problem}.")
    rates, largest = work.rates, max(work.rates.of(name).largest for name in planned)
    echo(f"Rates of {rates.machine}, {rates.measured}, measured with up to {largest:,} items.")
    echo("The crawl's time is that of its cores; the network and slow hosts may take longer.")
    if any(each.gpus for each in planned.values()) and GPU not in work.told:
        echo("The stored speed of a GPU is assumed, not measured; --rate gpu=TFLOPS tells it.")


_UNITS: dict[RateName, str] = {
    "text_step": _("pairs/s of a worker, on stored features"),
    "tower": _("pictures/s of a worker, forward"),
    "decode": _("pictures/s of a core, plain view"),
    "augment": _("pictures/s of a core, augmented view"),
}
_SOURCES = {
    "measured": _("measured here"),
    "told": _("told"),
    "computed": _("computed from gpu"),
    "stored": _("stored"),
}


def _print_training(work: Work, planned: Mapping[str, Estimate]) -> None:
    settings, found = work.experiment.pretrain, estimate.plan_of_training(work, "pretrain")
    echo(
        f"\nPre-training: {settings.epochs} epochs, {settings.workers} "
        f"{'GPUs' if settings.gpus_per_worker else 'workers without GPUs'}, {work.experiment.model.image.name}"
    )
    rates = estimate.rates_of(work, settings)
    units = [
        [name, f"{rate.per_second:,.1f}", _UNITS[name], translated(_SOURCES[rate.source])]
        for name, rate in rates.items()
    ]
    _print_rows([_("Rates"), "", "", ""], units, left=(0, 2, 3))
    shares = {name: f"{count / 1e12:,.2f} TFLOP" for name, count in estimate.step_operations(work, settings).items()}
    titles = {"image": _("image tower"), "text": _("text tower, heads"), "loss": _("loss")}
    _print_rows([_("A step"), ""], [[translated(titles[name]), share] for name, share in shares.items()])
    rows = []
    for title, way in (("cached", found.cached), ("streamed", found.streamed)):
        if way is not None:
            fill = amounts.duration(way.fill_seconds) if way.fill_seconds else "-"
            row = [title, amounts.size(way.bytes) if way.bytes else "-", fill]
            row += map(amounts.duration, (way.train_seconds, way.seconds))
            rows.append([*row, f"{amounts.size(way.read_bytes / way.train_seconds)}/s", way.bound_by])
    ways = (_("Ways"), _("features"), _("fill"), _("epochs"), _("together"), _("reads"), _("most of it"))
    _print_rows(list(ways), rows, left=(0, 6))
    echo(f"\nThe pairs themselves take about {amounts.size(found.pair_bytes)}.")
    if found.cached is not None:
        dtype = work.experiment.features.dtype
        (other,) = set(get_args(Dtype)) - {dtype}
        size = work.pairs * (1 + settings.views) * estimate.feature_bytes(*work.size.shape, other)
        echo(f"Features are stored as {dtype}; as {other} they would take {amounts.size(size)}.")
    echo(f"Faster: {found.faster}.")
    for note in fit.notes(work, planned):
        echo(f"Slow: {note}.")


def _print_rows(titles: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = (0,)) -> None:
    """Print an empty line and a table, of which these columns are aligned at the left and the others at the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number in left else "right", no_wrap=True)
    for name, *cells in rows:
        table.add_row(f"  {name}", *cells)
    console = Console()
    console.print()
    wide(console).print(table, crop=False)
