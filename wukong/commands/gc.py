"""``wukong gc``: delete from a storage what nothing needs any more."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wukong.commands.output import Console, JsonOption, Table, print_json, wide
from wukong.commands.runs import STORAGE, StorageOption
from wukong.errors import ConfigError
from wukong.runtime import environment
from wukong.runtime.amounts import size
from wukong.runtime.language import _
from wukong.tracking import availability
from wukong.tracking.mlflow_rest import Server

if TYPE_CHECKING:
    from wukong.publish.unneeded import Garbage, Holders, Kept

_HOUR, _DAY = 3600.0, 86_400.0


def gc(
    place: StorageOption = STORAGE,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; without this it is only listed.")] = False,
    keep_runs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Need only the newest N finished runs of each experiment, and all that began since; by default all.",
        ),
    ] = None,
    older_than: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="Delete nothing of which a file was written later.")
    ] = 0,
    grace: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="HOURS",
            help="What was written later, or a run that left a trace later and has no end, may be in use.",
        ),
    ] = 24,
    without_mlflow: Annotated[
        bool, typer.Option("--without-mlflow", help="Delete even if MLflow is not asked which models have an alias.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List what no run, alias or release of a storage needs any more; with --delete, delete it.

    Kept is what runs recorded, what a registered model with an alias was made from, releases, all that these were made
    from, and everything of an experiment while a run of it may be going on. Records of runs and of takedowns always
    stay. It can be killed and run again, and runs may begin meanwhile: docs/store.md says how. Example:

        wukong gc --keep-runs 5 --older-than 30
    """
    from wukong.publish.unneeded import Collection, Policy

    environment.use_for(place)
    holders = _holders()
    if holders is None and delete and not without_mlflow:
        raise ConfigError(
            "MLflow does not answer, so it is not known which models have an alias, and nothing is deleted. Start it "
            "(`wukong up`) or set MLFLOW_TRACKING_URI; if no model is registered, say --without-mlflow"
        )
    policy = Policy(keep_runs=keep_runs, older_than=older_than * _DAY, grace=grace * _HOUR)
    found = Collection(place, policy, holders)
    garbage, kept = found.garbage, found.kept
    left = [each for each in garbage if not found.delete(each)] if delete else []
    if as_json:
        print_json(_document(place, garbage, left, kept, deleted=delete, asked=holders is not None))
        return
    console = Console(highlight=False, soft_wrap=True)
    _print(console, garbage, place)
    for reason in kept:
        console.print(f"kept: {reason.outputs} outputs, {size(reason.bytes)}: {reason.reason}", markup=False)
    if holders is None:
        console.print("MLflow was not asked: models with an alias are not among the reasons", style="yellow")
    _conclude(console, garbage, left, place, deleted=delete)


def _holders() -> "Holders | None":
    """Return what asks MLflow for the versions that are needed; None if it does not answer."""
    from wukong.registry import aliases

    environment.use_for("models:/")
    return (lambda: aliases.needed_versions(Server())) if availability.enabled() and availability.answers(0) else None


def _print(console: Console, garbage: Sequence["Garbage"], place: str) -> None:
    if not garbage:
        return
    table = Table(box=None, pad_edge=False)
    for column in (_("place"), _("stage")):
        table.add_column(column, no_wrap=True)
    for column in (_("size"), _("age")):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(_("why"), no_wrap=True)
    for each in garbage:
        where = each.uri.removeprefix(f"{place.rstrip('/')}/")
        table.add_row(where, each.stage, size(each.bytes), f"{_age(each):.1f} d", each.why)
    wide(console).print(table, crop=False)


def _conclude(
    console: Console, garbage: Sequence["Garbage"], left: Sequence["Garbage"], place: str, *, deleted: bool
) -> None:
    gone = [each for each in garbage if each not in left]
    total = f"{len(gone):,} places, {size(sum(each.bytes for each in gone))}"
    if not garbage:
        console.print("Nothing is to be deleted")
    elif not deleted:
        console.print(f"{total} would be deleted: say --delete")
    else:
        console.print(f"Deleted {total}")
    if garbage and place.startswith("s3://"):
        console.print(_when_free(place))
    if left:
        console.print(f"{len(left)} places stay: they came into use meanwhile, or the store has no conditional writes")


def _when_free(place: str) -> str:
    from wukong.store import address, s3_requests

    store, bucket = address.of_environment(), place.removeprefix("s3://").partition("/")[0]
    if not s3_requests.keeps_versions(store, bucket):
        return (
            "An object store frees their space later: SeaweedFS when its vacuum comes round, minutes from now "
            "(docs/operating.md)"
        )
    if s3_requests.expires_versions(store, bucket):
        return f"The bucket {bucket} keeps versions: their space is free once its lifecycle rule deletes them"
    return (
        f"The bucket {bucket} keeps versions, and no lifecycle rule of it deletes them: their space stays taken "
        "(docs/store.md)"
    )


def _age(each: "Garbage") -> float:
    return (datetime.now(UTC).timestamp() - each.written) / _DAY


def _document(
    place: str,
    garbage: Sequence["Garbage"],
    left: Sequence["Garbage"],
    kept: Sequence["Kept"],
    *,
    deleted: bool,
    asked: bool,
) -> dict[str, Any]:
    listed = [
        asdict(each)
        | {
            "written": datetime.fromtimestamp(each.written, UTC).isoformat(timespec="seconds"),
            "deleted": deleted and each not in left,
        }
        for each in garbage
    ]
    return {
        "storage": place,
        "garbage": listed,
        "bytes": sum(each.bytes for each in garbage),
        "kept": [asdict(each) for each in kept],
        "mlflow": asked,
    }
