"""``wukong release`` and ``wukong takedown``: publish a set, and remove pairs from it again."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from wukong.commands.output import Console, Table
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, DataError
from wukong.runs import run_records
from wukong.runtime import environment
from wukong.runtime.language import translated
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest
from wukong.tracking import availability

if TYPE_CHECKING:
    from wukong.publish.traces import Traces

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The experiment, a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. release.licence=CC-BY-4.0 (repeatable)."),
]
_DEMO = Path("configs/demo.yaml")
_WIDTH = 10  # cells of a line's title


def release(
    config_file: ConfigOption = _DEMO,
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
    run: Annotated[
        str | None, typer.Option(help="Release the set that this run validated; by default the newest.")
    ] = None,
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
    """
    from wukong.publish import release as library

    values = [f"release.files={files}"] if files else []
    values += [f"release.opt_out={uri_of(opt_out)}"] if opt_out else []
    experiment = documents.load(config_file, [*(overrides or []), *values])
    if experiment.crawl.source.reads_files:
        raise ConfigError(
            f"crawl.engine: {experiment.crawl.engine!r} are pictures on disks of your own, whose paths are of no use "
            "to others: put them on the web, and train on a list of their URLs (crawl.engine: urls) to release it"
        )
    use_embedded_store(experiment.storage)
    released = library.release(experiment, _validated(experiment, run))
    set_uri = _copied(released, uri_of(output)) if output else released.uri
    written = released.parts.below(suffix=".csv")
    left_out = released.dropped[library.OPTED_OUT]
    console = Console()
    console.print_titled(
        "Released",
        f"{released.counts['pairs']:,} pairs in {len(written):,} files, {written.bytes / 2**20:,.1f} MiB",
        _WIDTH,
    )
    console.print_titled("Left out", f"{left_out:,} pairs on the opt-out list", _WIDTH)
    console.print_titled("Set", set_uri, _WIDTH)
    console.print_titled("Digest", released.digest, _WIDTH)


def takedown(
    listed: Annotated[
        str,
        typer.Argument(
            metavar="LIST",
            help="The list of what to remove: a domain (with all hosts below it), a URL, or the SHA-256 of a picture "
            "as downloaded, one a line; # begins a comment. A path or a URI.",
        ),
    ],
    reason: Annotated[str, typer.Option(help="The reason, for the record; name a case, not a person.")],
    config_file: ConfigOption = _DEMO,
    overrides: SetOption = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Change only this release, or this stage's output: a path or a URI. By default the whole experiment.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and change nothing.")] = False,
) -> None:
    """Remove pairs from a released set, and from the crawl and the shards that it was made from.

    Rows and pictures are removed; counts, checksums and manifests are brought in line; what is left is copied byte for
    byte. It can be killed and run again: a takedown that was begun is finished first. The record under takedowns/ says
    when, why, by which list, and which pairs; it has hashes, no URL. Run nothing else on the experiment meanwhile.

    Reports and pages that show the pairs are deleted, also in MLflow and on this machine; `wukong run` makes those of
    a run anew. Trained models and measured numbers stay. Name the same list in crawl.politeness.opt_out, so that
    the next crawl does not fetch the pictures again. Example:

        wukong takedown requests.txt --config my.yaml --reason "case 2026-17" --dry-run
    """
    from wukong.publish import takedown as library
    from wukong.publish import takedown_plan

    experiment = documents.load(config_file, overrides)
    root = uri_of(at).rstrip("/") if at else experiment.root
    use_embedded_store(root)
    console = Console(highlight=False, soft_wrap=True)
    tell = partial(console.out, translated("Deleted"))
    copies = [] if at else _copies(experiment.name)
    shown = () if at else _files_of_copies(experiment.name)
    if (begun := library.pending(root)) is not None and not dry_run:
        console.print(f"Finishing the takedown by {escape(begun.list_name)} that was begun on {begun.when}")
        library.carry_out(root, begun, copies, tell)
    planned = takedown_plan.plan(root, uri_of(listed), reason, datetime.now(UTC), shown)
    entries = planned.listed
    console.print(
        f"The list {escape(planned.list_name)} ({entries['domains']:,} domains, {entries['urls']:,} urls, "
        f"{entries['digests']:,} digests) covers {len(planned.keys):,} URLs at {escape(root)}"
    )
    if not planned.keys:
        return
    table = Table("stage", "pairs", "files", "where", box=None)
    for change in planned.changes:
        table.add_row(change.stage, f"{change.pairs:,}", f"{len(change.files) + len(change.deleted):,}", change.uri)
    console.print(table)
    if planned.traced or planned.unfinished:
        console.print(
            f"{len(planned.traced):,} records, pages and answers name them, and {len(planned.unfinished):,} folders of "
            "killed attempts go"
        )
    if dry_run:
        console.print("Nothing was changed (--dry-run)")
        return
    library.carry_out(root, planned, copies, tell)
    console.print(f"Taken down. Record: {escape(storage.join(root, library.FOLDER, planned.id))}.json")
    if not at and not availability.enabled():
        console.print("MLFLOW_TRACKING_URI is not set: MLflow's copies of pages were not looked at")


def _copies(name: str) -> list[Callable[["Traces"], Sequence[str]]]:
    """Return what removes traces from the copies that an experiment has in MLflow and in the home of the stack."""
    from wukong.publish import mlflow_copies, takedown_plan
    from wukong.publish import takedown as library

    def of_home(traces: "Traces") -> list[str]:
        runs = _runs_of_home(name)
        return [page for run in runs for page in library.remove_traces(takedown_plan.traced(run, traces), traces)]

    return [*([partial(mlflow_copies.remove_traces, name)] if availability.enabled() else []), of_home]


def _files_of_copies(name: str) -> Iterator[tuple[str, bytes]]:
    """Iterate over the files of the copies that an experiment has in MLflow and in the home of the stack."""
    from wukong.publish import mlflow_copies, takedown_plan

    for run in _runs_of_home(name):
        yield from ((uri, storage.read_bytes(uri)) for uri in takedown_plan.may_name(run))
    if availability.enabled():
        yield from mlflow_copies.files()


def _runs_of_home(name: str) -> list[str]:
    """Return the URIs of the folders that an experiment's runs have in the home of the stack."""
    home = environment.find_home()
    runs = sorted(home.glob("runs/*/experiment.json")) if home else []
    names = {each: json.loads(each.read_bytes())["experiment"]["name"] for each in runs}
    return [storage.from_path(each.parent) for each in runs if names[each] == name]


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


def _validated(experiment: Experiment, run: str | None) -> Manifest:
    if run is None:
        newest = run_records.latest(experiment, "validate")
        if newest is None:
            raise DataError(
                f"no run of {experiment.name} has validated its data yet: `wukong run` does, or `wukong submit data`"
            )
        return manifest.load(newest)
    record = run_records.read(experiment, run, "validate")
    if record is None or not record.manifest:
        raise ConfigError(f"run {run} of {experiment.name} has no data that passed the gate")
    return manifest.load(record.manifest)


def _copied(released: Manifest, target: str) -> str:
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
        storage.write_bytes(storage.join(target, path), storage.read_bytes(storage.join(released.uri, path)))
    manifest.save(released, storage.join(target, "manifest.json"), storage.write_json)
    return target
