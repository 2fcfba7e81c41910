"""``wukong compare``: what differs between runs, and by more than noise."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from wukong.commands.output import Console, JsonOption, Table, echo, print_json, sizes
from wukong.config.evaluators import result_of
from wukong.errors import ConfigError
from wukong.registry import comparison
from wukong.report import comparison as page
from wukong.runtime import environment
from wukong.runtime.language import _, joined, translated
from wukong.store import storage
from wukong.tracking import availability, mlflow_runs
from wukong.tracking.mlflow_rest import Run, Server

_WIDTH = 120  # a narrower table would break its lines
_LONGEST = 40  # characters of a parameter's value


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN...", help="Names of runs, or MLflow's IDs. The first is the baseline."),
    ],
    as_json: JsonOption = False,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the page to a file.")] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="RUN", help="The run that the page is logged to; by default the newest of them."),
    ] = None,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Log the page to MLflow, or only print.")] = True,
) -> None:
    """Compare runs: the parameters that differ, and each metric's difference with its paired interval.

    ▲ is better and ▼ worse by more than noise, ≈ is within the noise. What was measured on other data or by another
    protocol is not compared (≠). Runs that differ in their seed alone are also shown together: mean, standard deviation
    and intervals over seeds. Example:

        wukong compare demo-20261101-0900 demo-20261102-0900
    """
    environment.use_for("models:/")
    availability.refuse_untracked()
    if len(runs) < 2:
        raise ConfigError("wukong compare takes two runs or more: `wukong compare FIRST SECOND`")
    server = Server()
    tracked = comparison.find(server, [*runs, *([to] if to and to not in runs else [])])
    compared = tracked[: len(runs)]
    target = tracked[-1] if to and to not in runs else None
    if to in runs:
        target = compared[runs.index(to)]
    document = comparison.compare(comparison.read(server, compared))
    if as_json:
        print_json(document)
    else:
        print_comparison(Console(), document)
    newest = target or max(compared, key=lambda run: run.started)
    keep_page(server, newest if log else None, document, html, err=as_json)


def keep_page(
    server: Server, run: Run | None, document: Mapping[str, Any], html: Path | None, *, err: bool = False
) -> None:
    """Write the page of a comparison to a file and log it to a run, and say where it is.

    Args:
        server: MLflow's.
        run: the run that it is logged to; None for none.
        document: what ``wukong.registry.comparison.compare`` returned.
        html: the file; None for none.
        err: whether standard error is told, because standard output has JSON.
    """
    rendered = page.render(document)
    if html is not None:
        storage.write_bytes(storage.from_path(html), rendered.encode())
        echo(f"Page in {html}", err=err)
    if run is not None:
        files = {"comparison.html": rendered, "comparison.json": json.dumps(document, ensure_ascii=False)}
        echo(f"Logged as comparison.html to {mlflow_runs.log_files(server, run, files)}", err=err)


def print_comparison(console: Console, document: Mapping[str, Any]) -> None:
    """Print the parameters that differ, and a table for each data set."""
    console = Console(file=console.file, width=max(_WIDTH, console.width))
    names = [run["name"] for run in document["runs"]]
    said = _("Baseline: {baseline}").format(baseline=document["baseline"])
    console.print(said, highlight=False, markup=False)
    if document["parameters"]:
        table = Table(title=_("Parameters that differ"), title_justify="left", box=None, pad_edge=False)
        keys = list(document["parameters"])
        table.add_column(_("run"), overflow="fold")
        for key in keys:
            table.add_column(Text(key), overflow="fold")
        for n, name in enumerate(names):
            table.add_row(name, *(_short(document["parameters"][key][n]) for key in keys))
        console.print(table)
    else:
        console.print(_("The runs have the same parameters."))
    if document["configurations"]:
        console.print()
        console.print(_over_seeds(document))
        said = _("Mean and standard deviation over seeds, {over_seeds}").format(over_seeds=page.OVER_SEEDS)
        console.print(said, style="dim", highlight=False)
    for each in document["sets"]:
        console.print()
        console.print(_table(each, names))
    notes = {e["note"] for each in document["sets"] for row in each["results"].values() for e in row if e["note"]}
    for note in sorted(notes):
        console.print(note, style="dim", highlight=False, markup=False)
    signs = ", ".join(f"{page.SIGNS[verdict]} {translated(said)}" for verdict, said in page.WORDS.items())
    said = _("{signs}. Differences in percentage points, 95 % intervals.").format(signs=signs)
    console.print(said, style="dim", highlight=False)


def _over_seeds(document: Mapping[str, Any]) -> Table:
    """A line for each set and configuration, with the set's headline."""
    configurations = document["configurations"]
    seeds = ", ".join(dict.fromkeys(seed for each in configurations for seed in each["runs"]))
    table = Table(title=_("Over seeds {seeds}").format(seeds=seeds), title_justify="left", box=None, pad_edge=False)
    several = len(configurations) > 1
    table.add_column(_("set"))
    if several:
        table.add_column(_("configuration"), overflow="fold")
    for column in ("seeds", "mean, %", "sd"):
        table.add_column(column, justify="right")
    table.add_column(_("interval"))
    if several:
        table.add_column(_("difference"))
    for each in document["sets"]:
        shown = joined([each["task"], result_of(each["headline"]).title], ", ")
        for configuration, entry in zip(configurations, each["over_seeds"][each["headline"]], strict=True):
            change = translated(page.difference(entry["difference"]) if entry["difference"] else entry["note"])
            own = [configuration["name"]] if several else []
            compared = [f"{change} {page.SIGNS[entry['verdict']]}".strip()] if several else []
            table.add_row(shown, *own, str(len(entry["seeds"])), *page.over_seeds(entry), *compared)
            shown = joined([], "")
    return table


def _table(each: Mapping[str, Any], names: list[str]) -> Table:
    protocol = _("protocol {protocol}").format(protocol=each["protocol"])
    title = each["title"]
    about = filter(None, [_(title), sizes(each["sizes"]), protocol])
    table = Table(title=joined(about, " · "), title_justify="left", box=None, pad_edge=False)
    table.add_column(_("run"), overflow="fold")
    headline = each["headline"]
    others = [result for result in each["results"] if result != headline]
    table.add_column(joined([result_of(headline).title, "%"], ", "), justify="right")
    table.add_column(_("difference"))
    for result in others:
        table.add_column(result_of(result).title, justify="right")
    for n, name in enumerate(names):
        entry = each["results"][headline][n]
        change = page.difference(entry["difference"]) if entry["difference"] else entry["note"]
        style = "dim" if entry["verdict"] in ("noise", "incomparable", "missing") else ""
        cells = [_cell(each["results"][result][n]) for result in others]
        table.add_row(name, _cell(entry), Text(translated(change or ""), style), *cells)
    return table


def _cell(entry: Mapping[str, Any]) -> Text:
    sign = page.SIGNS[entry["verdict"]]
    if entry["value"] is None:
        return Text(sign)
    text = f"{100 * entry['value']:.1f} {sign or ' '}"
    styles = {"better": "green", "worse": "red", "noise": "dim", "incomparable": "dim"}
    return Text(text, styles.get(entry["verdict"], ""))


def _short(value: str | None) -> str:
    text = "-" if value is None else value
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
