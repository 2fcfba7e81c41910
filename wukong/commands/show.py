"""``wukong show``: what lies at an address that Wukong has printed."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.text import Text

from wukong.commands.output import Console, JsonOption, Table, print_json
from wukong.commands.runs import STORAGE, StorageOption
from wukong.runs import failed_urls
from wukong.runtime.amounts import size
from wukong.runtime.language import _, translated

_LONGEST = 90
_CELL = 16  # characters that a column needs at least, if it has as many
_WIDTH = 14  # cells of a line's title
_FILES = {"picture": _("picture"), "json": "json", "text": _("text"), "file": _("file")}


def show(
    place: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS",
            help="A path, s3:// or file://, models:/NAME/VERSION or models:/NAME@ALIAS, runs:/ID or runs:/ID/FILE, the "
            "address of a page in MLflow, or a run's name.",
        ),
    ],
    failed: Annotated[
        bool,
        typer.Option("--failed", help="List the files or URLs of the crawl that gave no picture, and why."),
    ] = False,
    page: Annotated[int, typer.Option("--page", min=1, help="Which page of the list of --failed.")] = 1,
    storage: StorageOption = STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Show what a stage or a run left: any address that Wukong prints.

    Of a stage's output: counts, what was dropped and why, what it was made from, a few pairs. Of a table its columns
    and first rows, of a model its tensors, of a tar its members, of a JSON file its content. Example:

        wukong show models:/demo@champion

        wukong show s3://wukong/demo/filter/0123456789abcdef

        wukong show pictures-20261202-101500 --failed
    """
    from wukong.runs import describe

    uri = describe.resolve(place, storage)
    described = failed_urls.page(uri, page) if failed else describe.describe(uri)
    if as_json:
        print_json(described)
    else:
        _print(Console(highlight=False), described)


def _print(console: Console, found: Mapping[str, Any]) -> None:
    console.out(found["uri"], style="bold")
    {
        "manifest": _print_manifest,
        "run": _print_run,
        "model": _print_model,
        "tensors": _print_tensors,
        "table": _print_table,
        "folder": _print_files,
        "tar": _print_files,
        "failed": _print_failed,
    }.get(found["kind"], _print_file)(console, found)


def _print_manifest(console: Console, found: Mapping[str, Any]) -> None:
    made = found["provenance"]
    created = made.get("created") or _("at an unknown time")
    console.print_titled(_("stage"), _("{stage}, made {created}").format(stage=found["stage"], created=created), _WIDTH)
    console.print_titled(_("code"), made.get("revision") or _("unknown"), _WIDTH)
    console.print_titled(_("digest"), found["digest"], _WIDTH)
    output = _("{count:,} files, {rows:,} rows, {bytes}").format(
        count=found["count"], rows=found["rows"], bytes=size(found["bytes"])
    )
    console.print_titled(_("output"), output, _WIDTH)
    for parent in found["parents"]:
        console.print_titled(_("made from"), f"{parent['stage']}  {parent['uri']}", _WIDTH)
    _numbers(console, _("rows"), {name: f"{rows:,}" for name, rows in found["counts"].items()})
    _numbers(console, _("left out"), {name: f"{rows:,}" for name, rows in found["dropped"].items()})
    _numbers(console, _("metrics"), {name: f"{value:.4g}" for name, value in found["metrics"].items()})
    _rows(console, found["pairs"])
    _print_files(console, found)


def _print_run(console: Console, found: Mapping[str, Any]) -> None:
    console.print_titled(_("run"), found["name"], _WIDTH)
    console.print_titled(_("experiment"), found["experiment"], _WIDTH)
    if (origin := found["origin"]) and origin["revision"]:
        place = " ".join(filter(None, [origin["repository"], origin["file"]]))
        said = f"{place} {origin['revision'][:12]}" + (translated(_(", with changes")) if origin["dirty"] else "")
        console.print_titled(_("config"), Text(said), _WIDTH)
    for record in found["stages"]:
        how = translated(_("reused")) if record.get("reused") else f"{record.get('seconds', 0):.1f} s"
        said = f"{how}  {record.get('manifest', '').removesuffix('/manifest.json')}"
        shown = Text(said) if record["state"] == "succeeded" else record["error"]
        console.print_titled(record["stage"], shown, _WIDTH)
    console.print_titled(_("report"), found["report"] or _("none yet"), _WIDTH)


def _print_model(console: Console, found: Mapping[str, Any]) -> None:
    settings = found["config"].get("model", {})
    image, text = settings.get("image", {}), settings.get("text", {})
    sizes = Text(", ".join(f"{text[key]} {key}" for key in ("layers", "heads", "width") if key in text))
    console.print_titled(_("image tower"), image.get("name") or _("unknown"), _WIDTH)
    console.print_titled(_("text tower"), sizes, _WIDTH)
    console.print_titled(_("similarity"), settings.get("similarity") or _("unknown"), _WIDTH)
    _print_tensors(console, found)


def _print_tensors(console: Console, found: Mapping[str, Any]) -> None:
    console.print_titled(
        _("parameters"),
        _("{parameters:,} in {count:,} tensors").format(parameters=found["parameters"], count=len(found["tensors"])),
        _WIDTH,
    )
    _rows(console, found["tensors"][:20], len(found["tensors"]))


def _print_table(console: Console, found: Mapping[str, Any]) -> None:
    console.print_titled(
        _("table"), _("{rows:,} rows, {bytes}").format(rows=found["rows"], bytes=size(found["bytes"])), _WIDTH
    )
    _numbers(console, _("columns"), found["schema"])
    _rows(console, found["head"], found["rows"])


def _print_failed(console: Console, found: Mapping[str, Any]) -> None:
    _numbers(console, _("left out"), {reason: f"{count:,}" for reason, count in found["reasons"].items()})
    console.print()
    for row in found["rows"]:
        reason = f"{row['reason']}: {row['error']}" if row["error"] else row["reason"]
        console.out(f"{row['what']}\n    {reason}")
    if len(found["rows"]) == failed_urls.PAGE_ROWS:
        console.print(f"More: --page {found['page'] + 1}", style="dim")


def _print_files(console: Console, found: Mapping[str, Any]) -> None:
    _rows(console, [{**file, "bytes": f"{file['bytes']:,}"} for file in found["files"]], found["count"])


def _print_file(console: Console, found: Mapping[str, Any]) -> None:
    console.print_titled(_FILES[found["kind"]], size(found["bytes"]), _WIDTH)
    match found["kind"]:
        case "picture":
            pixels = " x ".join(map(str, found["size"]))
            console.print_titled(_("format"), Text(f"{found['format']}, {pixels}, {found['mode']}"), _WIDTH)
        case "json" if found["value"] is not None:
            console.print_json(data=found["value"])
        case "json":
            console.print_titled(_("note"), found["note"], _WIDTH)
        case "text":
            for line in found["head"]:
                console.print(Text(line))
        case _:
            console.print_titled(_("begins"), Text(found["begins"]), _WIDTH)


def _rows(console: Console, rows: Sequence[Mapping[str, Any]], of: int | None = None) -> None:
    if not rows:
        return
    cells = [[_short(value) for value in row.values()] for row in rows]
    console.print()
    if sum(min(_CELL, max(map(len, column))) + 2 for column in zip(*cells, strict=True)) <= console.width:
        table = Table(box=None, pad_edge=False)
        for name in rows[0]:
            table.add_column(Text(name), overflow="fold", justify="right" if name in ("bytes", "rows") else "left")
        for row in cells:
            table.add_row(*row)
        console.print(table)
    else:  # the columns have no room beside each other
        for row in cells:
            fields = Table.grid(padding=(0, 2))
            for name, value in zip(rows[0], row, strict=True):
                fields.add_row(Text(name, style="bold"), value)
            console.print(fields)
            console.print()
    if of is not None and of > len(rows):
        console.print(f"and {of - len(rows):,} more", style="dim")


def _short(value: Any) -> Text:
    text = size(len(value)) if isinstance(value, bytes) else str(value)
    return Text(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


def _numbers(console: Console, title: str, values: Mapping[str, str]) -> None:
    if values:
        console.print()
        table = Table(box=None, pad_edge=False, show_header=False)
        for number, (name, value) in enumerate(values.items()):
            table.add_row(translated(title) if not number else "", name, value)
        console.print(table)
