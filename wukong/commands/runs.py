"""``wukong runs`` and ``wukong report``: what was run, and the page about one run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from wukong import stages
from wukong.commands.output import Console, JsonOption, Table, echo, print_data, print_json, wide
from wukong.config.experiment import Experiment
from wukong.errors import DataError
from wukong.runs.run import Run
from wukong.runtime import environment
from wukong.runtime.language import _, translated
from wukong.store import storage

STORAGE = str(Experiment.model_fields["storage"].default)
"""Where experiments are stored that name no other place."""

StorageOption = Annotated[
    str, typer.Option("--storage", metavar="URI", help="The storage of the experiments, their key `storage`.")
]
_COLOURS = {
    _("finished"): "green",
    _("failed"): "red",
    _("killed"): "red",
    _("running"): "cyan",
    _("unfinished"): "yellow",
}


def runs(
    experiment: Annotated[
        str | None, typer.Argument(metavar="EXPERIMENT", help="Only the runs of this experiment; by default of all.")
    ] = None,
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="How many runs, the newest first.")] = 20,
    place: StorageOption = STORAGE,
    as_json: JsonOption = False,
) -> None:
    """List runs, the newest first: state, stages done and reused, main metrics, the model's version.

    The metrics are the means over the experiment's hold-outs. `wukong show RUN` says more about one. Example:

        wukong runs demo --last 5
    """
    from wukong.runs import run as library

    environment.use_for(place)
    stored = library.of_experiment(storage.join(place, experiment)) if experiment else library.in_storage(place)
    if experiment and not stored:
        known = ", ".join(uri.rsplit("/", 1)[1] for uri in library.experiments_in(place))
        raise DataError(
            f"no run of an experiment {experiment!r} in {place}; there are runs of: {known or 'none'}"
            + environment.elsewhere()
        )
    listed = stored[:last]
    library.track(listed)
    if as_json:
        print_json([_document(run) for run in listed])
    elif listed:
        _print(listed, len(stored))
    else:
        echo(_("No runs in {place} yet: `wukong run` makes one.").format(place=place))


def report(
    name: Annotated[
        str | None, typer.Argument(metavar="RUN", help="The run's name; by default the newest that has a report.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where the page is put; by default in the stack's home."),
    ] = None,
    browse: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    place: StorageOption = STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Fetch the report of a run, with the pages beside it, and print its path.

    The dataset card, the data docs and the page of the evaluation lie beside it; none needs a network. Example:

        wukong report demo-20261126-072750 --open
    """
    from wukong.runs import run as library

    environment.use_for(place)
    stored = library.find(name, place) if name else _newest(place)
    folder = output or environment.make(environment.home()) / "runs" / stored.name
    page = fetch_report(stored, folder)
    if as_json:
        print_json({"run": stored.name, "report": str(page), "uri": stored.report})
    else:
        print_data(page)
    if browse:
        typer.launch(page.as_uri())


def fetch_report(run: Run, folder: Path) -> Path:
    """Copy the report of a run and what lies beside it into a folder; return the path of the page.

    Args:
        run: the run.
        folder: is made if it is missing.

    Raises:
        DataError: the run has no report.
    """
    if run.report is None:
        raise DataError(f"the run {run.name} has no report: it has not ended; run it again under its name")
    docs = storage.list_files(storage.join(run.uri, "docs"))
    for uri in dict.fromkeys([*storage.list_files(run.uri, ".html"), *docs]):
        storage.download(uri, folder, uri[len(run.uri) :].lstrip("/"))
    return folder / "report.html"


def _newest(place: str) -> Run:
    from wukong.runs import run as library

    for run in library.in_storage(place):
        if run.report:
            return run
    raise DataError(
        f"no run in {place} has a report yet: `wukong run` makes one, `wukong runs` lists what was begun"
        + environment.elsewhere()
    )


def _document(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "experiment": run.experiment_name,
        "uri": run.uri,
        "begun": run.begun.isoformat(timespec="seconds"),
        "state": run.state,
        "stages": run.ended,
        "metrics": run.means,
        "model": run.model,
        "report": run.report,
        "mlflow": run.tracked.url if run.tracked else None,
    }


def _print(listed: Sequence[Run], found: int) -> None:
    """Print a table of runs; where the terminal is too narrow for it, a paragraph for each. No name is broken."""
    names = list(dict.fromkeys(name for run in listed for name in run.means))
    titles = [" ".join(translated(name.split("/")[part].replace("_", " ")) for part in (1, -1)) for name in names]
    table = Table(box=None, pad_edge=False)
    for column in (_("run"), _("experiment"), _("begun"), _("state"), _("stages")):
        table.add_column(column, no_wrap=True)
    for title in titles:
        table.add_column(Text(title), justify="right", no_wrap=True)
    table.add_column(_("model"), no_wrap=True)
    for run in listed:
        measured = (f"{run.means[name]:.3f}" if name in run.means else "" for name in names)
        table.add_row(*_cells(run), *measured, run.model or "")
    console = Console()
    unbroken = wide(console)
    if not console.is_terminal or unbroken.measure(table).maximum <= console.width:
        unbroken.print(table, crop=False)
    else:
        for run in listed:
            cells = (cell if isinstance(cell, Text) else Text(cell) for cell in _cells(run))
            console.print(Text("  ").join(cells), soft_wrap=True, highlight=False)
            shown = [
                f"{title} {run.means[name]:.3f}" for name, title in zip(names, titles, strict=True) if name in run.means
            ]
            rest = [*shown, *([run.model] if run.model else [])]
            if rest:
                console.out(f"  {' · '.join(rest)}", highlight=False)
    if found > len(listed):
        console.print(_("{older} older ones: --last {all}").format(older=found - len(listed), all=found), style="dim")


def _cells(run: Run) -> tuple[str, str, str, Text, str]:
    """Return what the table's first columns say of a run: its name, experiment, begin, state and stages."""
    begun = run.begun.astimezone()
    reused = sum(state == "reused" for state in run.ended.values())
    failed = [stage for stage, state in run.ended.items() if state == "failed"]
    ended = translated(
        (_("{count:,} of {all:,}, {reused:,} reused") if reused else _("{count:,} of {all:,}")).format(
            count=len(run.ended), all=len(stages.WHOLE_RUN), reused=reused
        )
    )
    return (
        run.name,
        run.experiment_name,
        f"{begun:%Y-%m-%d %H:%M}",
        Text(translated(run.state), _COLOURS[run.state]),
        ended + (translated(_(", failed: {failed}").format(failed=", ".join(failed))) if failed else ""),
    )
