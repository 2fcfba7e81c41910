"""``wukong evaluate``: measure a model on evaluation sets under a named protocol."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wukong.commands.chosen import Chosen, RunOption, chosen
from wukong.commands.output import Console, JsonOption, Table, echo, print_json, sizes
from wukong.errors import DataError
from wukong.evaluate import sets
from wukong.evaluate.results import ROLES
from wukong.runtime import environment
from wukong.runtime.language import _, joined, translated
from wukong.store import manifest, storage
from wukong.tracking import availability, model_versions, stage_results

if TYPE_CHECKING:
    from wukong.evaluate.data_set import Data
    from wukong.evaluate.run import Task

_WIDTH = 132  # a narrower table would break its lines
_SETS = "~/evaluation"
_LOADERS = 8  # processes that decode pictures beside a GPU
_TRAINED_ON = _(
    "Trained on: pictures whose files the model was trained on; copies in another size or format are not counted."
)


def _none_fetched(_names: Sequence[str]) -> dict[str, Path]:
    return {}


fetched: Callable[[Sequence[str]], dict[str, Path]] = _none_fetched
"""Fetches named sets that packages hold, and returns their folders; the platform does (``cli.embedded_sets``)."""


def evaluate(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="The model's folder or URI, or models:/NAME@ALIAS in MLflow; of others transformers:FOLDER, "
            "transformers:OWNER/NAME, onnx:FOLDER, open_clip:NAME/WEIGHTS, cn_clip:NAME, cn_clip:NAME/FILE or "
            "wukong_release:NAME/FILE, see docs/evaluation.md.",
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            help="Names of evaluation sets, and of the hold-outs of --config, with commas between them; or all that "
            "are there.",
        ),
    ] = "all",
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol",
            help="paper, cn-clip, clip-benchmark or own; docs/evaluation.md compares them. By default paper, and own "
            "for hold-outs.",
        ),
    ] = None,
    fine_tuned: Annotated[
        str | None,
        typer.Option("--fine-tuned", help="A model that was fine-tuned from the other one, measured beside it."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="FOLDER_OR_LIST",
            help="The folder that holds a folder for each set, see docs/evaluation-sets.md; by default ~/evaluation. "
            "Or pictures of your own with captions, as of `wukong run --data`: then retrieval is measured on them.",
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="An experiment, whose hold-outs can be measured too; so can those of a run's (--run).",
        ),
    ] = None,
    of_run: RunOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Also write all results to this JSON file, those of each class too."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Also write an HTML page with the paper's numbers beside these.")
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option("--mlflow", metavar="EXPERIMENT", help="Also log to this experiment of MLFLOW_TRACKING_URI."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where the model computes, for instance cuda.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Measure a model on evaluation sets under a named protocol: the paper's 22, and eight others.

    All sets are read before the model works. A set that is named and not there is an error, with what to download and
    where to put it; with `all`, the missing ones are listed at the end. fashion-mnist and tuxpaint are fetched from
    Debian where they are named; the demo trains on most pictures of tuxpaint. Each set's note is printed, and how many
    of its pictures the model was trained on. Example:

        wukong evaluate --model models:/demo@champion --tasks fashion-mnist --protocol paper

        wukong evaluate --model models:/demo@champion --data ~/my-test-pictures
    """
    of = chosen(config_file, of_run) if config_file or of_run else None
    missing: Mapping[str, str]
    names = sets.chosen(tasks, of.experiment.held_out_tasks if of else [])  # before libraries that load for seconds
    from wukong.evaluate import adapters, encoding, run, trained_on
    from wukong.evaluate.model import OwnModel
    from wukong.evaluate.results import MeasuredModel
    from wukong.report import evaluation as page

    if experiment is not None:
        environment.use_for("models:/")
        availability.refuse_untracked()
    every = tasks.strip() == sets.ALL
    if data is not None and every and _is_of_own_pictures(data):
        work, missing = _own_pictures(data, protocol), dict[str, str]()
    else:
        root = Path(data or _SETS).expanduser()
        work, missing = _tasks(names, protocol, root, of, every=every)
    drawn = report is not None or experiment is not None
    uris = {"pretrained": model} | ({"finetuned": fine_tuned} if fine_tuned else {})
    loaded = {role: adapters.load(uri, device) for role, uri in uris.items()}
    models = [MeasuredModel(role, own.name, own.digest, own.token_wise) for role, own in loaded.items()]
    encoding.share_towers(loaded.values())
    loading = encoding.loaders(loaded, 0 if device == "cpu" else min(_LOADERS, (os.cpu_count() or 1) - 1))
    for task in work:
        echo(f"{task.data.name}: {len(task.data):,} images", err=True)
        task.measure(loaded, environment.cache() / "classes", loading)
        for role, own in loaded.items() if drawn else ():
            task.draw(role, own.saved if own.token_wise and isinstance(own, OwnModel) else None)
    trained = {role: trained_on.pairs_at(uri, model_versions.folder_of) for role, uri in uris.items()}
    answered = {task.data.name: task.answers() for task in work}
    document = run.document(
        models,
        [task.protocol for task in work],
        [task.record() for task in work],
        trained,
        lambda name, role: answered[name].get(role),
    )
    if as_json:
        print_json(document)
    else:
        _print(document)
    for how_to_get in missing.values():
        echo(f"NOT MEASURED: {how_to_get}", err=True)
    if output is not None:
        storage.write_json(storage.from_path(output), document)
        echo(f"Results in {output}", err=as_json)
    html = page.render(document, {task.data.name: task.pictures for task in work}) if drawn else ""
    if report is not None:
        storage.write_bytes(storage.from_path(report), html.encode())
        echo(f"Page in {report}", err=as_json)
    if experiment is not None:
        tables = {
            role: {task.data.name: each for task in work if (each := task.table(role)) is not None} for role in ROLES
        }
        for address in stage_results.log_evaluation(experiment, document, html, tables):
            echo(f"Logged to {address}", err=as_json)


def _is_of_own_pictures(data: str) -> bool:
    """Whether ``--data`` names pictures of one's own: a list, a URI, or a folder without the folder of any set."""
    place = Path(data).expanduser()
    return "://" in data or (place.exists() and not any((place / name).is_dir() for name in sets.REGISTRY))


def _own_pictures(data: str, protocol: str | None) -> "list[Task]":
    from wukong.evaluate.protocol import OWN, named
    from wukong.evaluate.run import Task
    from wukong.export import measure

    environment.use_for(data)
    rules = (named(protocol) if protocol else OWN).for_pairs("distinct")
    return [Task(measure.read(data, None, "--data, which has no folder of an evaluation set"), rules)]


def _tasks(
    names: Sequence[str],
    protocol: str | None,
    root: Path,
    of: Chosen | None,
    *,
    every: bool,
) -> "tuple[list[Task], Mapping[str, str]]":
    """Read tasks before any model is loaded; return with them what is missing, where it need not be there.

    Args:
        names: of sets and of the experiment's hold-outs.
        protocol: name of the protocol.
        root: the folder of the sets.
        of: whose hold-outs.
        every: whether nobody has named them: then nothing is fetched, and what is not there is left out.

    Raises:
        DataError: none is there.
    """
    from wukong.evaluate import tasks
    from wukong.evaluate.protocol import OWN, named
    from wukong.evaluate.run import Task

    rules = named(protocol or "paper")
    held = of.experiment.held_out_tasks if of else []
    published = [name for name in names if name not in held]
    folders = {} if every else fetched([name for name in published if not (root / name).is_dir()])
    there = tasks.read(published, folders, root, rules, skip=every)
    work = [Task(data, rules) for data in there.data.values()]
    if of and (held_out := [name for name in names if name in held]):
        own = (named(protocol) if protocol else OWN).for_pairs(of.experiment.evaluate.captions)
        work += [Task(data, own) for data in _held_out(of, held_out, skip=every)]
    if not work:
        raise DataError(
            f"none of the {len(names)} sets is in {root}: each needs a folder with its name there, for instance "
            f"{root / names[0]}; docs/evaluation-sets.md says how to get them. `--tasks fashion-mnist` fetches one, "
            "and --data FOLDER measures on pictures of your own"
        )
    return work, there.missing


def _held_out(of: Chosen, names: Sequence[str], *, skip: bool) -> "list[Data]":
    """Read hold-outs of what a run filtered; ``skip`` leaves out empty ones.

    Raises:
        DataError: no run has filtered pairs yet, or a hold-out is empty.
    """
    from wukong.evaluate import holdouts

    found = of.output("filter", "filtered pairs")
    echo(f"Hold-outs: of the run {found.run}, {found.uri}", err=True)
    filtered = manifest.load(found.uri)
    by_name = {name: holdouts.read(of.experiment, filtered, name) for name in names}
    if not skip and (empty := [name for name, data in by_name.items() if data is None]):
        raise DataError(f"{', '.join(empty)}: nothing is held out for it in {filtered.uri}; leave it out of --tasks")
    return [data for data in by_name.values() if data is not None]


def _print(document: Mapping[str, Any]) -> None:
    """Print the protocols, a table with a line for each result, which names its protocol, and the sets' notes."""
    from wukong.evaluate import results

    console = Console(width=max(_WIDTH, Console().width))
    several, roles = len(document["models"]) > 1, {role: translated(name) for role, name in ROLES.items()}
    for model in document["models"]:
        setting = f", {roles[model['role']]}" if several else ""
        said = _("Model {name}{setting}").format(name=model["name"], setting=setting)
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    for sentences in document["protocols"].values():
        for sentence in sentences:
            console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    for model in document["models"]:
        if several:
            console.print(f"{roles[model['role']]}:", highlight=False)
        table = Table(_("Set"), _("Split"), _("Items"), _("Trained on"), _("Result"), "%", _("95 % interval"))
        for column in (_("Chance"), _("Protocol")):
            table.add_column(column)
        for each in (task for task in document["tasks"] if task["model"] == model["role"]):
            for number, (name, value) in enumerate(each["results"].items()):
                seen = results.trained_on_of(document, each["task"], model["role"])
                table.add_row(
                    *((each["title"], each["split"], sizes(each["sizes"]), seen) if not number else ("", "", "", "")),
                    f"{name} *" if name == each["headline"] else name,
                    f"{100 * value['value']:.2f}",
                    _("{low:.2f} to {high:.2f}").format(low=100 * value["low"], high=100 * value["high"]),
                    f"{100 * each['chance'][name]:.2f}" if name in each["chance"] else "",
                    each["protocol"],
                )
            table.add_section()
        console.print(table)
    console.print(_("* the protocol's number for this set"))
    console.print(_TRAINED_ON, highlight=False)
    titles = {each["task"]: each["title"] for each in document["tasks"]}
    for each in document["trained_on"]:
        where = f"{titles[each['task']]}, {roles[each['model']]}" if several else titles[each["task"]]
        if each["trained_on"]:
            said = _("{where}: {trained_on:,} of {pictures:,} pictures were trained on: this is no test of them.")
            console.print(said.format(where=where, **each), highlight=False, markup=False, soft_wrap=True)
        elif each["why"]:
            said = _("{where}: whether its pictures were trained on is not known: {why}.")
            console.print(said.format(where=where, **each), highlight=False, markup=False, soft_wrap=True)
    for each in document["tasks"]:
        if overlap := results.overlap_said(document, each):
            where = f"{each['title']}, {roles[each['model']]}" if several else each["title"]
            console.print(joined([where, overlap], ": "), highlight=False, markup=False, soft_wrap=True)
    for name, note in document["notes"].items():
        console.print(joined([titles[name], _(note)], ": "), highlight=False, markup=False, soft_wrap=True)
    if document["comparisons"]:
        console.print(_differences(document))


def _differences(document: Mapping[str, Any]) -> Table:
    titles = {each["task"]: each["title"] for each in document["tasks"]}
    table = Table(title=_("Fine-tuned less zero-shot, on the same queries"))
    for column in (_("Set"), _("Result"), _("Points"), _("95 % interval")):
        table.add_column(column)
    for column in (_("Only zero-shot right"), _("Only fine-tuned right"), _("McNemar p")):
        table.add_column(column)
    last = None
    for each in document["comparisons"]:
        difference, test = each["difference"], each["mcnemar"]
        table.add_row(
            titles[each["task"]] if each["task"] != last else "",
            each["result"],
            f"{100 * difference['value']:+.2f}",
            _("{low:+.2f} to {high:+.2f}").format(low=100 * difference["low"], high=100 * difference["high"]),
            *((str(test["only_first"]), str(test["only_second"]), f"{test['p']:.3g}") if test else ("", "", "")),
        )
        last = each["task"]
    return table
