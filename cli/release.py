"""``wukong release``: publish a set."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.own_data import DataOption, chosen
from wukong.commands.chosen import ConfigOption, RunOption
from wukong.commands.output import Console
from wukong.runtime import environment
from wukong.runtime.language import _
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. release.licence=CC-BY-4.0 (repeatable)."),
]
_WIDTH = 10  # cells of a line's title


def release(
    config_file: ConfigOption = None,
    data: DataOption = None,
    overrides: SetOption = None,
    files: Annotated[
        int | None, typer.Option("--files", "-n", min=1, help="CSV files to write; by default release.files.")
    ] = None,
    opt_out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Leave out the pairs that it lists: a domain, a URL or a picture's SHA-256 a line. A path or a URI; "
            "by default the crawl's own list.",
        ),
    ] = None,
    run: RunOption = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FOLDER", help="Put a copy here: a path or a URI.")
    ] = None,
) -> None:
    """Write the training pairs as a set to publish: CSV files of url,caption, as the paper published its own.

    It also writes the dataset card (docs/card.html), a description in Croissant (croissant.json), the EU's summary of
    training content (docs/training_summary.html) and SHA256SUMS, which `sha256sum --check SHA256SUMS` reads. Only a set
    that has passed the validation gate is released; person names are masked. The same set, list and number of files
    give the same bytes. Example:

        wukong release --config my.yaml --files 256 --opt-out requests.txt --output s3://public/my-set

        wukong release --data ~/my-urls.csv
    """
    from wukong.publish import release as library

    values = [f"release.files={files}"] if files else []
    values += [f"release.opt_out={uri_of(opt_out)}"] if opt_out else []
    of = chosen(config_file, data, run, [*(overrides or []), *values])
    use_embedded_store(of.experiment.storage)
    validated = of.output("validate", "pairs that passed the gate")
    released = library.release(of.experiment, manifest.load(validated.uri))
    set_uri = copied(released, uri_of(output)) if output else released.uri
    written = released.parts.below(suffix=".csv")
    left_out = released.dropped[library.OPTED_OUT]
    console = Console()
    console.print_titled(
        _("Released"),
        _("{pairs:,} pairs in {count:,} files, {bytes:,.1f} MiB").format(
            pairs=released.counts["pairs"], count=len(written), bytes=written.bytes / 2**20
        ),
        _WIDTH,
    )
    console.print_titled(_("Of run"), f"{validated.run}, {of.experiment.crawl.endpoint}", _WIDTH)
    console.print_titled(_("Left out"), _("{left_out:,} pairs on the opt-out list").format(left_out=left_out), _WIDTH)
    console.print_titled(_("Set"), set_uri, _WIDTH)
    console.print_titled(_("Digest"), released.digest, _WIDTH)


def uri_of(place: str) -> str:
    """Returns the URI of a place that is given as a path or as a URI."""
    return place if "://" in place else storage.from_path(Path(place))


def use_embedded_store(place: str) -> None:
    """Use the embedded stack's object store for a place on S3, unless the environment names another one.

    Raises:
        StackError: the place is on S3, the environment names no object store, and there is no embedded stack.
    """
    from infra import stack

    if place.startswith("s3://") and not environment.is_named(place):
        os.environ.update(stack.load(stack.found()).environment())


def copied(released: Manifest, target: str) -> str:
    """Copy a release, its manifest last.

    The data of its card are copied too, for a takedown from the copy needs them.

    Returns:
        The target.
    """
    from wukong.report import card

    paths = released.parts.paths
    if storage.exists(storage.join(released.uri, card.DATA_PATH)):
        paths.append(card.DATA_PATH)
    for path in paths:
        storage.write_bytes(storage.join(target, path), storage.read_bytes(*released.file(path)))
    manifest.save(released, storage.join(target, "manifest.json"), storage.write_json)
    return target
