"""``wukong show``: what lies at an address that Wukong has printed."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from wukong.commands.output import JsonOption, print_json, size
from wukong.commands.runs import STORAGE, StorageOption

_LONGEST = 90


def show(
    place: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS",
            help="A path, s3:// or file://, models:/NAME/VERSION or models:/NAME@ALIAS, runs:/ID or runs:/ID/FILE, the "
            "address of a page in MLflow, or a run's name.",
        ),
    ],
    storage: StorageOption = STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Show what a stage or a run left: any address that Wukong prints.

    Of a stage's output: counts, what was dropped and why, what it was made from, a few pairs. Of a table its columns
    and first rows, of a model its tensors, of a tar its members, of a JSON file its content. Example:

        wukong show models:/demo@champion

        wukong show s3://wukong/demo/filter/0123456789abcdef
    """
    from wukong.runs import describe

    described = describe.describe(describe.resolve(place, storage))
    if as_json:
        print_json(described)
    else:
        _print(Console(highlight=False), described)


def _print(console: Console, found: Mapping[str, Any]) -> None:
    console.print(found["uri"], markup=False, soft_wrap=True, style="bold")
    {
        "manifest": _print_manifest,
        "run": _print_run,
        "model": _print_model,
        "tensors": _print_tensors,
        "table": _print_table,
        "folder": _print_files,
        "tar": _print_files,
    }.get(found["kind"], _print_file)(console, found)


def _print_manifest(console: Console, found: Mapping[str, Any]) -> None:
    made = found["provenance"]
    _line(console, "stage", f"{found['stage']}, made {made.get('created', 'at an unknown time')}")
    _line(console, "code", made.get("revision", "unknown"))
    _line(console, "digest", found["digest"])
    _line(console, "output", f"{found['count']:,} files, {found['rows']:,} rows, {size(found['bytes'])}")
    for parent in found["parents"]:
        _line(console, f"from {parent['stage']}", parent["uri"])
    _numbers(console, "rows", {name: f"{rows:,}" for name, rows in found["counts"].items()})
    _numbers(console, "left out", {name: f"{rows:,}" for name, rows in found["dropped"].items()})
    _numbers(console, "metrics", {name: f"{value:.4g}" for name, value in found["metrics"].items()})
    _rows(console, found["pairs"])
    _print_files(console, found)


def _print_run(console: Console, found: Mapping[str, Any]) -> None:
    _line(console, "run", f"{found['name']} of {found['experiment']}")
    for record in found["stages"]:
        how = "reused" if record.get("reused") else f"{record.get('seconds', 0):.1f} s"
        said = record.get("manifest", "").removesuffix("/manifest.json")
        _line(console, record["stage"], f"{how}  {said}" if record["state"] == "succeeded" else record["error"])
    _line(console, "report", found["report"] or "none yet")


def _print_model(console: Console, found: Mapping[str, Any]) -> None:
    settings = found["config"].get("model", {})
    image, text = settings.get("image", {}), settings.get("text", {})
    _line(console, "image tower", image.get("name", "unknown"))
    _line(console, "text tower", ", ".join(f"{text[key]} {key}" for key in ("layers", "heads", "width") if key in text))
    _line(console, "similarity", settings.get("similarity", "unknown"))
    _print_tensors(console, found)


def _print_tensors(console: Console, found: Mapping[str, Any]) -> None:
    _line(console, "parameters", f"{found['parameters']:,} in {len(found['tensors']):,} tensors")
    _rows(console, found["tensors"][:20], len(found["tensors"]))


def _print_table(console: Console, found: Mapping[str, Any]) -> None:
    _line(console, "table", f"{found['rows']:,} rows, {size(found['bytes'])}")
    _numbers(console, "columns", found["schema"])
    _rows(console, found["head"], found["rows"])


def _print_files(console: Console, found: Mapping[str, Any]) -> None:
    _rows(console, [{**file, "bytes": f"{file['bytes']:,}"} for file in found["files"]], found["count"])


def _print_file(console: Console, found: Mapping[str, Any]) -> None:
    _line(console, found["kind"], size(found["bytes"]))
    match found["kind"]:
        case "picture":
            _line(console, "format", f"{found['format']}, {' x '.join(map(str, found['size']))}, {found['mode']}")
        case "json" if found["value"] is not None:
            console.print_json(data=found["value"])
        case "json":
            _line(console, "note", found["note"])
        case "text":
            for line in found["head"]:
                console.print(line, markup=False)
        case _:
            _line(console, "begins", found["begins"])


def _rows(console: Console, rows: Sequence[Mapping[str, Any]], of: int | None = None) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, overflow="fold", justify="right" if name in ("bytes", "rows") else "left")
    for row in rows:
        table.add_row(*(_short(value) for value in row.values()))
    console.print()
    console.print(table)
    if of is not None and of > len(rows):
        console.print(f"and {of - len(rows):,} more", style="dim")


def _short(value: Any) -> str:
    from rich.markup import escape

    text = f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)
    return escape(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


def _numbers(console: Console, title: str, values: Mapping[str, str]) -> None:
    if values:
        console.print()
        table = Table(box=None, pad_edge=False, show_header=False)
        for number, (name, value) in enumerate(values.items()):
            table.add_row(title if not number else "", name, value)
        console.print(table)


def _line(console: Console, title: str, value: str) -> None:
    console.print(f"{title:<14}{value}", markup=False, soft_wrap=True)
