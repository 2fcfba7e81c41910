"""``wukong evaluate``: measure a model on evaluation sets under a named protocol."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from wukong import storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wukong.evaluate.protocol import Protocol
    from wukong.evaluate.tasks import Outcome


_WIDTH = 120  # a narrower table would break its lines


def evaluate(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="The model's folder or URI, or models:/NAME@ALIAS in MLflow; of others open_clip:NAME/WEIGHTS, "
            "cn_clip:NAME, cn_clip:NAME/FILE or wukong_release:NAME/FILE, see docs/evaluation.md.",
        ),
    ],
    tasks: Annotated[
        str, typer.Option("--tasks", help="Names of evaluation sets with commas between them, or all that are there.")
    ] = "all",
    protocol: Annotated[
        str, typer.Option("--protocol", help="paper, cn-clip or clip-benchmark; docs/evaluation.md compares them.")
    ] = "paper",
    data: Annotated[
        Path, typer.Option("--data", help="The folder that holds a folder for each set, see docs/evaluation-sets.md.")
    ] = Path("~/evaluation"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write all results to this file, those of each class too.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where the model computes, for instance cuda.")] = "cpu",
) -> None:
    """Measure a model on evaluation sets under a named protocol: the paper's 22, and two that are fetched when asked.

    All sets are read before the model works. A set that is named and not there is an error, with what to download and
    where to put it; with `all`, the missing ones are listed at the end. fashion-mnist and tuxpaint are fetched from
    Debian. Example:

        wukong evaluate --model models:/demo@champion --tasks fashion-mnist,tuxpaint --protocol paper
    """
    from infra.corpus import catalogue
    from wukong.evaluate import adapters
    from wukong.evaluate import tasks as runs
    from wukong.evaluate.protocol import named

    rules, root = named(protocol), data.expanduser()
    folders = _embedded([name for name in runs.chosen(tasks) if not (root / name).is_dir()], catalogue.cache_folder())
    there = runs.read(tasks, folders, root, rules)
    loaded = adapters.load(model, device)
    outcomes = []
    for name, found in there.data.items():
        typer.echo(f"{name}: {len(found):,} images", err=True)
        cache = catalogue.cache_folder().with_name("classes")
        outcomes.append(runs.measure(loaded, name, found, rules, cache))
    _print(loaded.name, rules, outcomes)
    for message in there.missing.values():
        typer.echo(f"NOT MEASURED: {message}", err=True)
    if json_file is not None:
        storage.write_json(storage.from_path(json_file), runs.as_json(loaded, rules, outcomes, there.missing))
        typer.echo(f"Results in {json_file}")


def _embedded(names: "Sequence[str]", cache: Path) -> dict[str, Path]:
    """Fetch the packages of the embedded sets among these; return the folders of those sets."""
    from infra.corpus import packages

    embedded = {
        "fashion-mnist": (packages.FASHION_MNIST, "usr/share/datasets/fashion-mnist"),
        "tuxpaint": (packages.STAMPS, "usr/share/tuxpaint"),
    }
    return {
        name: packages.fetch(package, cache / "packages") / place
        for name, (package, place) in embedded.items()
        if name in names
    }


def _print(model: str, protocol: "Protocol", outcomes: "Sequence[Outcome]") -> None:
    """Print the protocol and a table with a line for each result; each line names its protocol."""
    console = Console(width=max(_WIDTH, Console().width))
    console.print(f"Model {model}", highlight=False, markup=False, soft_wrap=True)
    for sentence in protocol.describe():
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    table = Table("Set", "Split", "Items", "Result", "%", "95 % interval", "Chance", "Protocol")
    for each in outcomes:
        for number, (name, value) in enumerate(each.results.items()):
            sizes = ", ".join(f"{count:,} {what}" for what, count in each.sizes.items())
            table.add_row(
                *((each.title, each.split, sizes) if not number else ("", "", "")),
                f"{name} *" if name == each.headline else name,
                f"{100 * value.value:.2f}",
                f"{100 * value.low:.2f} to {100 * value.high:.2f}",
                f"{100 * each.chance[name]:.2f}" if name in each.chance else "",
                protocol.name,
            )
        table.add_section()
    console.print(table)
    console.print("* the protocol's number for this set")
