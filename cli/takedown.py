"""``wukong takedown``: remove pairs from a released set, and from all that an experiment stored of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cli import alike
from cli.own_data import DataOption, chosen
from cli.release import SetOption, uri_of, use_embedded_store
from wukong.commands.chosen import ConfigOption, RunOption
from wukong.commands.output import Console, Table
from wukong.errors import ConfigError
from wukong.runtime import environment
from wukong.runtime.language import _, translated
from wukong.store import storage, takedowns
from wukong.tracking import availability

if TYPE_CHECKING:
    from wukong.publish.takedown_plan import Plan
    from wukong.publish.traces import Traces
    from wukong.publish.trained_models import TrainedModel


def takedown(
    listed: Annotated[
        str | None,
        typer.Argument(
            metavar="[LIST]",
            help="The list of what to remove: a domain (with all hosts below it), a URL, or the SHA-256 of a picture "
            "as downloaded, one a line; # begins a comment. A path or a URI.",
        ),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="The reason, for the record; name a case, not a person. Needed to remove.")
    ] = None,
    config_file: ConfigOption = None,
    data: DataOption = None,
    run: RunOption = None,
    overrides: SetOption = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Change only this release, or this stage's output: a path or a URI. By default the whole experiment.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and change nothing.")] = False,
    index: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Where a search keeps its indexes, if not in the stack's home or storage."),
    ] = None,
    like: alike.LikeOption = None,
    like_hashes: alike.LikeHashesOption = None,
    distance: alike.DistanceOption = alike.DISTANCE,
    cosine: alike.CosineOption = alike.COSINE,
    model: alike.ModelOption = None,
) -> None:
    """Remove pairs from a released set, and from the crawl and the shards that it was made from.

    Rows and pictures are removed; counts, checksums and manifests are brought in line; what is left is copied byte for
    byte. It can be killed and run again: a takedown that was begun is finished first. The record under takedowns/ says
    when, why, by which list, and which pairs; it has hashes, no URL. It waits for stages of the experiment that are at
    work; those that begin meanwhile wait for it, and `wukong gc` deletes nothing of the experiment.

    Reports and pages that show the pairs are deleted, also in MLflow and on this machine; `wukong run` makes those of
    a run anew. The pairs go from the indexes of a search, which keep all others; end a server that runs, it keeps what
    it has read. Trained models and measured numbers stay; models that were trained on the pairs are named. Name the
    same list in crawl.politeness.opt_out, so that the next crawl does not fetch the pictures again. Example:

        wukong takedown requests.txt --config my.yaml --reason "case 2026-17" --dry-run

    With --like, what is near a picture is printed as a LIST: equal files, hashes that differ in few bits, and vectors,
    these behind a #. Delete what is to stay, and take down the rest by the list. Example:

        wukong takedown --like sent.jpg --config my.yaml > near.txt
    """
    from wukong.publish import takedown as library
    from wukong.publish import takedown_plan

    by_example = bool(like or like_hashes)
    if (listed is None) != by_example:
        raise ConfigError("give a LIST, or --like PICTURE, one of them: `wukong takedown --help` has examples")
    if reason is None and not dry_run and not by_example:
        raise ConfigError('say why, for the record: --reason "case 2026-17"; to look only, say --dry-run')
    experiment = chosen(config_file, data, run, overrides or []).experiment
    root = uri_of(at).rstrip("/") if at else experiment.root
    use_embedded_store(root)
    indexes = _roots_of_indexes(experiment.storage if root.startswith(experiment.storage) else None, index)
    if listed is None:
        pictures, hashes = [uri_of(each) for each in like or ()], [uri_of(each) for each in like_hashes or ()]
        alike.print_near(root, pictures, hashes, indexes, distance=distance, cosine=cosine, model=model)
        return
    console = Console(highlight=False, soft_wrap=True)
    tell = partial(console.out, translated(_("Deleted")))
    copies = [] if at else _copies(experiment.name, root)
    copies.append(partial(_update_indexes, indexes, root))
    shown = () if at else _files_of_copies(experiment.name)
    if (begun := library.pending(root)) is not None and not dry_run:
        console.print(f"Finishing the takedown by {escape(begun.list_name)} that was begun on {begun.when}")
        library.carry_out(root, begun, copies, tell)
    elif takedowns.is_begun(root) and not dry_run:
        with takedowns.begun(root):  # nothing was changed yet, or all: what was begun is at its end
            pass
    planned = takedown_plan.plan(root, uri_of(listed), reason or "", datetime.now(UTC), shown)
    if planned.models and availability.enabled():
        planned = planned.model_copy(update={"models": _registered(planned.models)})
    if not _print_plan(console, planned, root):
        return
    if dry_run:
        console.print("Nothing was changed (--dry-run)")
        return
    library.carry_out(root, planned, copies, tell)
    console.print(f"Taken down. Record: {escape(storage.join(root, takedowns.FOLDER, planned.id))}.json")
    if not at and not availability.enabled():
        console.print("MLFLOW_TRACKING_URI is not set: MLflow's copies of pages were not looked at")


def _print_plan(console: Console, planned: "Plan", root: str) -> bool:
    """Print what a plan removes, and return whether it removes anything."""
    entries = planned.listed
    console.print(
        f"The list {escape(planned.list_name)} ({entries['domains']:,} domains, {entries['urls']:,} urls, "
        f"{entries['digests']:,} digests) covers {len(planned.keys):,} URLs at {escape(root)}"
    )
    if not planned.keys:
        return False
    table = Table(_("stage"), _("pairs"), _("files"), _("where"), box=None)
    for change in planned.changes:
        table.add_row(change.stage, f"{change.pairs:,}", f"{len(change.files) + len(change.deleted):,}", change.uri)
    console.print(table)
    if planned.traced or planned.unfinished:
        console.print(
            f"{len(planned.traced):,} records, pages and answers name them, and {len(planned.unfinished):,} folders of "
            "killed attempts go"
        )
    for each in planned.models:
        named = escape(", ".join([each.uri, *each.registered]))
        if each.pairs is None:
            console.print(f"Whether a model was trained on them is not known, its data are gone: {named}")
        else:
            console.print(f"A model was trained on {each.pairs:,} of them: {named}")
    if planned.models:
        console.print(
            "Trained models are not changed. Train anew on what is left (`wukong run`), or withdraw them: move the "
            "alias (`wukong rollback`) and delete the versions in MLflow"
        )
    return True


def _registered(models: Sequence["TrainedModel"]) -> tuple["TrainedModel", ...]:
    """Return models with the versions that MLflow has of them; without those where it does not answer."""
    from wukong.tracking.mlflow_rest import Server
    from wukong.tracking.model_versions import versions_of

    versions = availability.unless_away(lambda: versions_of(Server()), "registered models are not named") or {}
    return tuple(model.model_copy(update={"registered": versions.get(model.uri, ())}) for model in models)


def _copies(name: str, root: str) -> list[Callable[["Traces"], Sequence[str]]]:
    """Return what removes traces from the copies that an experiment has in MLflow and in the home of the stack.

    Pictures are there too: those that a killed filter has left.
    """
    from ray_jobs.waiting_place import delete_left
    from wukong.publish import mlflow_copies, takedown_plan
    from wukong.publish import takedown as library

    def of_home(traces: "Traces") -> list[str]:
        delete_left(root)
        runs = _runs_of_home(name)
        return [page for run in runs for page in library.remove_traces(takedown_plan.traced(run, traces), traces)]

    return [*([partial(mlflow_copies.remove_traces, name)] if availability.enabled() else []), of_home]


def _roots_of_indexes(store: str | None, named: str | None) -> list[str]:
    """Return the URIs under which indexes of a search may be kept: on this machine, on a cluster, and as named."""
    home = environment.find_home()
    usual = [storage.from_path(home / "indexes") if home else None, storage.join(store, "indexes") if store else None]
    return list(dict.fromkeys(filter(None, [*usual, uri_of(named) if named else None])))


def _update_indexes(roots: Sequence[str], place: str, _traces: "Traces") -> list[str]:
    """Take the pairs out of the indexes of what has changed at a place; return those that were replaced or deleted."""
    from wukong.publish import superseded

    if not any(superseded.changed_below(root, place) for root in roots):
        return []
    from wukong.serve import taken_down  # it imports torch

    return [folder for root in roots for folder in taken_down.update(root, place)]


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
