"""What commands print at the end: the stack, the funnel, the results with chance, the times."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.text import Text

from wukong.commands.output import Console, Table
from wukong.commands.runs import STORAGE
from wukong.config.experiment import Experiment
from wukong.evaluate import paper
from wukong.evaluate.results import tasks_of
from wukong.runs.run import Run
from wukong.runs.run_records import Record
from wukong.runtime.language import _, translated
from wukong.store import storage
from wukong.store.manifest import Manifest
from wukong.tracking.run_links import Pages

_WIDTH = 12  # cells of a line's title


def print_stack(services: Iterable[tuple[str, bool, str]]) -> None:
    """Print one line a service: its name, whether it runs, and its address."""
    console = Console()
    table = Table.grid(padding=(0, 2))
    for name, running, address in services:
        state = Text(translated(_("running")), "green") if running else Text(translated(_("stopped")), "red")
        table.add_row(_(name), state, address)
    console.print(table)


def print_run(console: Console, run: Run, total: float, setup: float) -> None:
    """Print a finished run.

    Args:
        console: prints it.
        run: the run.
        total: seconds the pipeline took.
        setup: seconds it took to fetch the corpus and start the stack.
    """
    if "filter" in run.manifests:
        _print_funnel(console, run.name, run.manifests)
    if "evaluate" in run.manifests:
        _print_results(console, storage.read_json(*run.manifests["evaluate"].file("evaluation.json")))
    _print_times(console, [*run.records.values()], total, setup)


def print_verdict(console: Console, run: Run) -> None:
    """Print what was decided about a run's model, and what changed against the run whose model held the alias."""
    from wukong.report import comparison

    if run.verdict is None:
        return
    decided, document = run.verdict
    heading, says = translated(decided.heading), translated(decided.said)
    console.print(
        _("[bold]Model models:/{model}/{version}[/] {heading} {says}").format(
            model=decided.model, version=decided.version, heading=heading, says=escape(says)
        ),
        highlight=False,
        markup=True,
    )
    if document is not None:
        table = Table(box=None, pad_edge=False)
        columns = (_("Against {baseline}").format(**document), "", _("before, %"), _("now, %"), _("change"), "")
        for column in columns:
            table.add_column(column, justify="right" if column.endswith("%") else "left")
        for each in comparison.headlines(document):
            values = ("-" if each[key] is None else f"{100 * each[key]:.1f}" for key in ("before", "now"))
            table.add_row(each["title"], translated(each["result"]), *values, each["difference"], each["sign"])
        console.print(table)
        console.out(f"wukong compare {document['baseline']} {run.name}", highlight=False)
    console.print()


def print_pages(console: Console, report: Path, pages: Pages | None) -> None:
    """Print where the pages of a run are, the ones about this run first.

    Args:
        console: prints it.
        report: path of the report.
        pages: in MLflow; None if the run is not tracked there.
    """
    beside = {
        _("Comparison"): report.parent / "comparison.html",
        _("Card"): report.parent / "docs" / "card.html",
        _("Data docs"): report.parent / "docs" / "index.html",
    }
    shown: dict[str, str] = {_("Report"): str(report)}
    shown |= {title: str(path) for title, path in beside.items() if path.is_file()}
    if pages is not None:
        shown |= {_("MLflow run"): pages.run, _("All runs"): pages.experiment}
        shown |= {_("Compare"): pages.compare} if pages.compare else {}
    for title, place in shown.items():
        console.print_titled(title, Text(place), _WIDTH)


def print_tables(console: Console, experiment: Experiment, run: str) -> None:
    """Print the commands that make the paper's tables of a run that measures sets of them."""
    measured = set(experiment.evaluate.tasks)
    commands = [
        f"wukong paper {table} {run}{'' if experiment.storage == STORAGE else f' --storage {experiment.storage}'}"
        for table, sets in (("table5", paper.TABLE_5), ("table6", paper.TABLE_6), ("table7", paper.TABLE_7))
        if measured & sets.keys()
    ]
    for number, command in enumerate(commands):
        console.print_titled("" if number else _("Paper"), Text(command), _WIDTH)


def _print_funnel(console: Console, run: str, manifests: Mapping[str, Manifest]) -> None:
    from wukong.report.funnel import funnel, repeated, wording

    table = Table(title=wording(manifests["crawl"]).heading, title_justify="left", box=None, pad_edge=False)
    for column in ("", _("rows"), _("left out")):
        table.add_column(column, justify="left" if not column else "right")
    queries = manifests["crawl"].counts.get("queries", 0)
    if queries:
        table.add_row(_("queries"), f"{queries:,}", "")
    for step in funnel(manifests["crawl"], manifests["filter"]):
        table.add_row(step.title, f"{step.rows:,}", f"{step.lost:,}" if step.lost else "")
    console.print(table)
    dropped = manifests["crawl"].dropped.items()
    reasons = ", ".join(f"{translated(name.replace('_', ' '))} {count:,}" for name, count in dropped)
    console.print(
        _("Not downloaded: {reasons}").format(reasons=reasons or translated(_("nothing"))), style="dim", highlight=False
    )
    if reasons:
        console.print(_("`wukong show {run} --failed` lists them.").format(run=run), style="dim", highlight=False)
    if said := repeated(manifests.get("validate")):
        console.print(said, style="dim", highlight=False)
    console.print()


def _print_results(console: Console, evaluation: Mapping[str, Any]) -> None:
    table = Table(title=_("On held-out pairs"), title_justify="left", box=None, pad_edge=False)
    for column in ("", "R@1", "R@5", "R@10", _("chance R@1")):
        table.add_column(column, justify="left" if not column else "right")
    for entry in tasks_of(evaluation, "retrieval"):
        for direction in ("image_to_text", "text_to_image"):
            recalls = [entry["results"].get(f"{direction}_r{k}") for k in (1, 5, 10)]
            if all(recalls):
                name = f"{entry['task']}.{translated(direction.replace('_', ' '))}"
                shown = [f"{each['value']:.3f}" for each in recalls]
                chance = f"{entry['chance'][f'{direction}_r1']:.4f}"
                table.add_row(name, *shown, chance)
    classes = Table(box=None, pad_edge=False)
    classes.add_column(_("Zero-shot classes"))
    for column in (_("top-1"), _("chance")):
        classes.add_column(column, justify="right")
    for entry in tasks_of(evaluation, "classification"):
        classes.add_row(entry["task"], f"{entry['results']['top1']['value']:.3f}", f"{entry['chance']['top1']:.3f}")
    for each in (table, classes):
        if each.row_count:
            console.print(each)
    console.print()


def _print_times(console: Console, records: Sequence[Record], total: float, setup: float) -> None:
    table = Table(title=_("Times"), title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    table.add_column(_("seconds"), justify="right")
    table.add_row(_("corpus and stack"), f"{setup:.1f}")
    for record in records:
        table.add_row(
            _("{stage} (reused)").format(stage=record.stage) if record.reused else record.stage, f"{record.seconds:.1f}"
        )
    table.add_row(_("orchestration"), f"{total - sum(record.seconds for record in records):.1f}")
    table.add_row(_("all"), f"{total + setup:.1f}", style="bold")
    console.print(table)
    console.print()
