"""``wukong diff``: what differs between two crawls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from wukong.commands.output import Console, JsonOption, Table, print_json, wide
from wukong.commands.runs import STORAGE, StorageOption
from wukong.errors import DataError
from wukong.runs.run_records import differences, short
from wukong.runtime.language import _, translated
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

_TITLES = {
    "only_first": _("pairs only in the first"),
    "only_second": _("pairs only in the second"),
    "other_picture": _("in both, with another picture"),
    "other_captions": _("in both, with other captions"),
    "same": _("in both, the same"),
}
_WIDTH = 8  # cells of the names of both crawls


def diff(
    first: Annotated[str, typer.Argument(metavar="CRAWL", help="A run's name, or the URI of a crawl or its manifest.")],
    second: Annotated[str, typer.Argument(metavar="CRAWL", help="The crawl that is compared with it, likewise.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many queries and hosts.")] = 10,
    examples: Annotated[int, typer.Option("--examples", min=0, help="How many URLs of each kind.")] = 3,
    place: StorageOption = STORAGE,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between two crawls: pairs, results, queries, hosts and settings.

    Pairs are compared by their URL. Example:

        wukong diff demo-20261126-072750 demo-20261127-081210 --examples 5
    """
    from wukong.crawl import difference

    before, after = (_crawl_of(name, place) for name in (first, second))
    found = difference.between(before, after, top, examples)
    document = {
        "first": storage.join(before.uri, "manifest.json"),
        "second": storage.join(after.uri, "manifest.json"),
        **asdict(found),
        "config": {key: list(values) for key, values in differences(before.config, after.config).items()},
    }
    if as_json:
        print_json(document)
    else:
        _print(Console(highlight=False), document)


def _crawl_of(name: str, place: str) -> Manifest:
    """Load the manifest of a crawl by a run's name, or by an address.

    Raises:
        DataError: the run has no finished crawl, or it is the manifest of another stage.
    """
    from wukong.runs import describe
    from wukong.runs.run import Run

    uri = describe.resolve(name, place)
    if storage.exists(storage.join(uri, "experiment.json")):
        uri = Run(uri).output("crawl")
        if not uri:
            raise DataError(f"the crawl of the run {name} has not finished: run it again under its name")
    found = manifest.load(uri)
    if found.stage != "crawl":
        raise DataError(f"{uri} is the output of the stage {found.stage}: name a crawl, or a run by its name")
    return found


def _print(console: Console, document: Mapping[str, Any]) -> None:
    for which in ("first", "second"):
        console.print_titled(_(which), document[which].removesuffix("/manifest.json"), _WIDTH)
    console.print()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for kind, title in _TITLES.items():
        why = ", ".join(f"{count:,} {result}" for result, count in document["why"].get(kind, {}).items())
        there = f"there in the second: {why}" if kind == "only_first" else f"there in the first: {why}"
        table.add_row(title, f"{document['kinds'][kind]:,}", there if why else "")
    wide(console).print(table, crop=False)
    _print_changes(console, _("results"), _("URLs of the first"), document["results"])
    _print_changes(console, _("queries"), _("pairs of the first"), document["queries"])
    _print_changes(console, _("hosts"), _("pairs of the first"), document["hosts"])
    if document["config"]:
        table = Table(_("setting"), _("first"), _("second"), box=None, pad_edge=False)
        for key, values in document["config"].items():
            table.add_row(key, *(Text(short(value)) for value in values))
        console.print()
        wide(console).print(table, crop=False)
    for kind, rows in document["examples"].items():
        if rows:
            console.print(_("\n{title}, for instance").format(title=_TITLES[kind]))
        for row in rows:
            console.out(f"  {row['url']}")
            for which in ("    first", "    second"):
                console.print_titled(_(which), _shown(row[which.strip()]), 4 + _WIDTH)


def _print_changes(console: Console, title: str, counted: str, changes: Sequence[Mapping[str, Any]]) -> None:
    if not changes:
        return
    table = Table(title, box=None, pad_edge=False)
    for column in (counted, _("of the second"), _("change")):
        table.add_column(column, justify="right")
    for each in changes:
        before, now = each["first"], each["second"]
        name = Text(short(each["name"])) if each["name"] else translated(_("(none)"))
        table.add_row(name, f"{before:,}", f"{now:,}", f"{now - before:+,}")
    console.print()
    wide(console).print(table, crop=False)


def _shown(of: Mapping[str, Any] | None) -> str | Text:
    if of is None:
        return _("not found by a search")
    picture = f", {translated(_('picture'))} {of['sha256'][:12]}" if of["sha256"] else ""
    return Text(f"{of['result']}{picture}, {' | '.join(short(caption) for caption in of['captions'])}")
