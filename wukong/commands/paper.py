"""``wukong paper``: Tables 5, 6 and 7 of the paper with the numbers of runs beside the paper's."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from wukong.commands.output import Console, JsonOption, Table, echo, print_json
from wukong.commands.runs import STORAGE, StorageOption
from wukong.errors import ConfigError, DataError
from wukong.evaluate import paper as numbers
from wukong.evaluate import stored
from wukong.evaluate.results import DOCUMENT
from wukong.evaluate.stored import Evaluation
from wukong.report.comparison import SIGNS
from wukong.runtime import environment
from wukong.runtime.language import _, translated
from wukong.store import manifest, storage

if TYPE_CHECKING:
    from wukong.evaluate.paper_tables import Evaluated

HERE = Path()
_RUN_ID = re.compile(r"(?:runs:/)?([0-9a-f]{32})")


class Name(StrEnum):
    """A table of the paper that runs have numbers for."""

    TABLE5 = "table5"
    TABLE6 = "table6"
    TABLE7 = "table7"


def paper(
    table: Annotated[
        Name,
        typer.Argument(
            help="table5, zero-shot classification; table6, zero-shot retrieval; table7, retrieval after fine-tuning."
        ),
    ],
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_MODEL...",
            help="A run's name, MLflow's ID of a run, models:/NAME@ALIAS or models:/NAME/VERSION, the URI of an "
            "evaluate stage, or an evaluation.json that `wukong evaluate --output` wrote.",
        ),
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME",
            help="The model of the paper that each stands for, in their order (repeatable), such as 'Wukong ViT' or "
            "none. Default: by tower, similarity and number of pairs.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the page and the JSON are written.")
    ] = HERE,
    place: StorageOption = STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Write Table 5, 6 or 7 of the paper with your numbers beside its own, as one page and one JSON.

    Differences from the paper are marked where they exceed the noise, and what is missing is listed. Example:

        wukong paper table5 rn50 vit-b-32 --output tables/
    """
    from wukong.evaluate import paper_tables
    from wukong.report import paper as page

    document = paper_tables.table(table.removeprefix("table"), _evaluated(models, columns, place))
    if as_json:
        print_json(document)
    else:
        _print(document)
    for suffix, data in (("html", page.render(document).encode()), ("json", storage.json_bytes(document))):
        path = output / f"{table}.{suffix}"
        storage.write_bytes(storage.from_path(path), data)
        echo(f"Written to {path}", err=as_json)


def _evaluated(models: Sequence[str], columns: Sequence[str] | None, place: str) -> "list[Evaluated]":
    """Read the evaluations that are named.

    Raises:
        ConfigError: a name is given twice, or the columns are not the paper's or not as many.
        DataError: there is no evaluation.
    """
    from wukong.evaluate.paper_tables import Evaluated

    if len(set(models)) != len(models):
        raise ConfigError(f"a model is named twice in {' '.join(models)}: name different ones")
    if columns and len(columns) != len(models):
        raise ConfigError(f"--column is given {len(columns)} times for {len(models)} models: give one for each")
    if unknown := [each for each in columns or () if each not in (*numbers.MODELS_OF_TABLE_5, "none")]:
        known = ", ".join(numbers.MODELS_OF_TABLE_5)
        raise ConfigError(f"--column {unknown[0]!r} is no model of Table 5; write one of {known}, or none")
    evaluated = []
    for number, name in enumerate(models):
        evaluation, column, address = _read(name, place)
        if not evaluation.document.get("tasks"):
            raise DataError(
                f"{name}: nothing was evaluated; `wukong run` ends with it, `wukong evaluate` does it alone"
            )
        if columns:
            column = None if columns[number] == "none" else columns[number]
        evaluated.append(Evaluated(name, evaluation.document, column, address))
    return evaluated


def _read(name: str, place: str) -> tuple[Evaluation, str | None, str]:
    """Return an evaluation, the model of the paper that it stands for, and the address of the pre-trained model."""
    if match := _RUN_ID.fullmatch(name):
        from wukong.registry import comparison
        from wukong.tracking import availability
        from wukong.tracking.mlflow_rest import Server

        environment.use_for("models:/")
        availability.refuse_untracked()
        server = Server()
        evaluation = comparison.read(server, comparison.find(server, [match[1]]))[0].evaluation
        return (evaluation, *_origin(evaluation.uri))
    from wukong.runs import describe
    from wukong.runs.run import Run
    from wukong.tracking import model_versions

    of_model = name.startswith("models:/")
    uri = model_versions.evaluation_of(name) if of_model else describe.resolve(name, place).rstrip("/")
    environment.use_for(uri)
    if storage.exists(storage.join(uri, "evaluate.json")):  # the folder of a run
        uri = Run(uri).output("evaluate")
        if not uri:
            raise DataError(f"{name}: its evaluation has failed; `wukong show {name}` says why")
    if uri.endswith(f"/{DOCUMENT}") and storage.exists(storage.join(uri.removesuffix(DOCUMENT), "manifest.json")):
        uri = uri.removesuffix(f"/{DOCUMENT}")
    if uri.endswith(".json") and not uri.endswith("/manifest.json"):
        return Evaluation(stored.check(storage.read_json(uri), uri)), None, ""
    if not storage.exists(storage.join(uri.removesuffix("/manifest.json"), DOCUMENT)):
        raise DataError(
            f"{name}: there is no {DOCUMENT} at {uri}; name a run that ended, its evaluate stage, or the file that "
            "`wukong evaluate --model MODEL --output FILE` writes"
        )
    return (stored.read(uri), *_origin(uri))


def _origin(uri: str) -> tuple[str | None, str]:
    """Return what an evaluate stage's zero-shot model stands for, and its address."""
    if not uri:
        return None, ""
    parent = next((each for each in manifest.load(uri).parents if each.stage == "pretrain"), None)
    if parent is None:
        return None, ""
    trained = manifest.load(parent.uri)
    model: Mapping[str, Any] = trained.config.get("model", {})
    tower, similarity = model.get("image", {}).get("name", ""), model.get("similarity", "")
    column = numbers.column_of(tower, similarity, trained.counts.get("pairs", 0))
    return column, storage.join(trained.uri, "model")


def _print(document: Mapping[str, Any]) -> None:
    """Print each model's main numbers, and what is missing."""
    console = Console(highlight=False)
    title = translated(document["title"])
    shown = Table(
        title=_("Table {table}: {title}").format(table=document["table"], title=title.lower()),
        title_justify="left",
        box=None,
    )
    shown.add_column(_("set"))
    for model in document["models"]:
        shown.add_column(Text(model["label"]), justify="right")
        shown.add_column(Text(model["column"] or "-"), justify="right")
    average = {"title": translated(_("Average")), **document["average"]} if "average" in document else None
    rows = [*document["rows"], *([average] if average else [])]
    for row in rows:
        cells = [cell for model in document["models"] for cell in _cells(row["ours"].get(model["label"]))]
        shown.add_row(row["title"], *cells)
    console.print(shown)
    for each in document["missing"]:
        which = f"{each['set'] or 'all'} ({', '.join(each['models'])})"
        console.print(f"NOT MEASURED: {which}: {each['how']}", markup=False)


def _cells(entry: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return a number with the sign of its difference, and the paper's number."""
    if entry is None:
        return SIGNS["missing"], ""
    value = entry.get("mean_recall", entry)
    sign = SIGNS[value["verdict"]] if "verdict" in value else ""
    return f"{value['value']:.1f} {sign or ' '}", f"{value['paper']:.1f}" if "paper" in value else "-"
