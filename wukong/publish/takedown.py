"""Take pairs down: remove them from a release, and from all that an experiment stored of them.

A takedown is planned first (``wukong.publish.takedown_plan``). Then it marks the place, so that no stage begins and
``gc`` deletes nothing there (``wukong.store.takedowns``), and waits for whoever is at work. If outputs have changed
since the plan, it is made anew. Before anything changes, the plan, which lists every file that changes, is stored as
``takedowns/pending.json``; a later takedown carries out a pending plan before its own.
Each file is replaced as a whole by what is left of it. Then the manifests are replaced, parents first, then what else
names the pairs (``wukong.publish.traces``) goes, here and in copies elsewhere, and last the record is written. So a
takedown that was killed and is run again gives the same bytes as one that was not killed. The mark is the last to go.

Afterwards the data are as if the pairs had never been downloaded: rows and counts are smaller, and the manifests have
other digests. So it is with crawls that failed or were killed. The record, ``takedowns/ID.json``, stores when, why and
by which list, and the digests of each manifest before and after. It stores no URL. It names a pair by its key, the
first 20 hex digits of the SHA-256 of its URL, so that holders of copies can find the rows to remove. What was computed
of the images (hashes, similarities, features) is deleted, and so are data docs that may show the pairs. Measured
numbers, statistics, and the numbers on the dataset card stay those from before, and so do trained models.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from wukong import stages
from wukong.crawl import attempt, previous
from wukong.evaluate import results
from wukong.publish import croissant, release, rewrite
from wukong.publish.parallel import for_each
from wukong.publish.takedown_plan import TAKEDOWN, Change, Plan, current, finished, versions
from wukong.publish.traces import Traces
from wukong.report import evaluation as evaluation_page
from wukong.stages.places import RESERVED
from wukong.store import lease, manifest, storage, takedowns
from wukong.store.manifest import Part
from wukong.store.parts import Parts
from wukong.store.takedowns import FOLDER, PENDING

TAKEN_DOWN = "taken_down"
"""Name, in a manifest's ``dropped``, of the pairs that takedowns removed from it."""

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_COMPUTED = {entry.name: entry.parents for entry in stages.TABLE if entry.takedown == "delete"}


def pending(place: str) -> Plan | None:
    """Returns the plan of a takedown that was begun at this place and has not ended, or None."""
    uri = storage.join(place, PENDING)
    return Plan.model_validate(storage.read_json(uri)) if storage.exists(uri) else None


def carry_out(
    place: str,
    planned: Plan,
    copies: Sequence[Callable[[Traces], Sequence[str]]] = (),
    tell: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Carry out a plan. If it is killed at any moment and called again, it gives the same bytes.

    Nobody makes or deletes an output of the place meanwhile (``wukong.store.takedowns``); whoever is at work is waited
    for. Where outputs have changed since the plan was made, it is made anew. An earlier takedown that was killed is
    finished first.

    Args:
        place: the plan's place.
        planned: the plan.
        copies: functions that remove what names the pairs from copies in other places, and return what they deleted.
        tell: gets the address of each page that is deleted.

    Returns:
        The record: the plan's request and keys, ``id``, for each stage its digests before and after, and the models
        that were trained on the pairs.

    Raises:
        DataError: a file is damaged.
        StorageError: a file cannot be read or written.
    """
    with takedowns.begun(place):
        _wait_for_work(place)
        if (earlier := pending(place)) is not None:
            record = _carry_out(place, current(place, earlier, may_be_begun=True), copies, tell)
            if earlier.id == planned.id:
                return record
        return _carry_out(place, current(place, planned, may_be_begun=False), copies, tell)


def _wait_for_work(place: str) -> None:
    """Wait for whoever makes or deletes an output at a place. Who seems dead is fenced, and writes no more."""
    for uri in versions(place):
        if (stored := storage.read_version(storage.join(uri, lease.NAME))) is None:
            continue
        holder = lease.Holder.model_validate_json(stored[0])
        # Whose job has not begun writes nothing: the job waits for the end of the takedown.
        if holder.released or holder.attempt.endswith(f"/{RESERVED}"):
            continue
        log.warning("waiting for %s, which is at work on %s", holder, uri)
        if not lease.wait_for_deletion(uri):
            with lease.held(uri, partial(storage.exists, storage.join(uri, _MANIFEST))):
                pass


def _carry_out(
    place: str, planned: Plan, copies: Sequence[Callable[[Traces], Sequence[str]]], tell: Callable[[str], None]
) -> dict[str, Any]:
    computed = sorted({*planned.computed, *_computed(place, planned)})
    planned = planned.model_copy(update={"computed": tuple(computed)})
    storage.write_json(storage.join(place, PENDING), planned.model_dump(mode="json"))
    _rewrite_files(planned)
    for uri in computed:  # the next run computes it again
        storage.delete(storage.join(uri, _MANIFEST))  # first, so that what remains is not taken for the whole
        _delete(uri)
    record = planned.record
    told = []
    after: dict[str, str] = {}
    for change in planned.changes:
        if not change.manifest:
            rewrite.markers(change.uri, change.files)
            continue
        after[change.before] = _rewrite_manifest(change, after, record)
        manifest.delete_old_tables(storage.join(change.uri, change.manifest))
        storage.delete(storage.join(change.uri, "_parts"))  # of use only to an attempt that goes on
        facts = change.model_dump(include={"stage", "uri", "pairs"})
        told.append(facts | {"digest_before": change.before, "digest_after": after[change.before]})
    for folder in planned.unfinished:
        _delete(folder)
    # Killed processes leave the files that they were writing on a local disk, which may hold pairs.
    for output in versions(place) if place.startswith("file://") else ():
        for half in storage.list_files(output, ".partial"):
            storage.delete(half)
    removers: list[Callable[[Traces], Sequence[str]]] = [partial(remove_traces, planned.traced), *copies]
    for remove in removers:
        for page in remove(planned.traces):
            tell(page)
    record |= {"stages": told, "models": [model.model_dump(mode="json") for model in planned.models]}
    if not any(change.uri == place for change in planned.changes):
        storage.write_json(storage.join(place, FOLDER, f"{planned.id}.json"), record)
    storage.delete(storage.join(place, PENDING))
    return record


def _delete(uri: str) -> None:
    """Delete an output, but a lease: it tells who was taken for dead that the output was taken over."""
    names = storage.list_names(uri)
    if lease.NAME not in names:
        storage.delete(uri)
        return
    for name in names:
        if name != lease.NAME:
            storage.delete(storage.join(uri, name))


def remove_traces(files: Sequence[str], traces: Traces) -> list[str]:
    """Remove what names pairs from files; a second call changes nothing.

    Args:
        files: URIs of records, pages and stored answers.
        traces: what names the pairs.

    Returns:
        The URIs of the pages that were deleted.
    """
    deleted = []
    evaluations = sorted({folder for uri in files if (folder := _evaluation_of(uri))})
    for uri in files:
        if uri.endswith(".html"):
            if not _evaluation_of(uri):
                storage.delete(uri)
                deleted.append(uri)
        elif storage.exists(uri) and (left := traces.without_in_file(uri, storage.read_bytes(uri))) is not None:
            storage.write_bytes(uri, left)
    for folder in evaluations:
        deleted += _describe_evaluation(folder, traces)
    return deleted


def _evaluation_of(uri: str) -> str:
    """Return the folder of the evaluate stage that a file belongs to; empty if to none."""
    before, separator, below = uri.rpartition("/evaluate/")
    return f"{before}{separator}{below.split('/', 1)[0]}" if separator and "/" in below else ""


def _describe_evaluation(folder: str, traces: Traces) -> list[str]:
    """Make the page of an evaluation again from its rewritten records, and describe its files in its manifest.

    Its parents stay those that it measured.

    Returns:
        The page's URI, if it could not be made and was deleted.
    """
    measured = manifest.load(folder)
    page, deleted = storage.join(folder, "evaluation.html"), []
    if storage.exists(page) and traces.in_page(storage.read_bytes(page)):
        document = storage.read_json(storage.join(folder, results.DOCUMENT))
        records = [storage.read_json(uri) for uri in storage.list_files(storage.join(folder, "_parts"), ".json")]
        shown = {record["name"]: record["pictures"] for record in records}
        if {task["task"] for task in document["tasks"]} <= shown.keys():
            storage.write_bytes(page, evaluation_page.render(document, shown).encode())
        else:
            storage.delete(page)
            deleted.append(page)
    parts = [
        manifest.describe(folder, part.path, part.rows)
        for part in measured.parts
        if storage.exists(storage.join(folder, part.path))
    ]
    updated = measured.model_copy(update={"parts": parts})
    manifest.save(updated, storage.join(folder, _MANIFEST), storage.write_json)
    return deleted


def _rewrite_files(planned: Plan) -> None:
    without_docs = {
        change.uri for change in planned.changes if any(each.startswith("docs/") for each in change.deleted)
    }
    work = partial(_rewrite_file, keys=frozenset(planned.keys), without_docs=without_docs)
    files = [(change.uri, path) for change in planned.changes for path in change.files]
    # Every reader rejects a row without an image; an image without a row does no harm. So tables are rewritten first.
    # An index is read from its tables: a store whose object is replaced meanwhile may answer with parts of both.
    indexes = [each for each in files if each[1] == previous.INDEX]
    tables = [each for each in files if each[1].endswith(".parquet") and each not in indexes]
    others = [each for each in files if not each[1].endswith(".parquet")]
    for what, some in ("tables", tables), ("indexes", indexes), ("pictures, lists and pages", others):
        for _ in for_each(f"take down: {what}", some, work):
            pass
    for change in planned.changes:
        for path in change.deleted:
            storage.delete(storage.join(change.uri, path))


def _rewrite_file(file: tuple[str, str], keys: frozenset[str], without_docs: set[str]) -> None:
    stage_uri, path = file
    rewrite.without_pairs(stage_uri, path, keys, docs_deleted=stage_uri in without_docs)


def _computed(place: str, planned: Plan) -> list[str]:
    """Return the URIs of the stages that were computed of the images of the crawls and filtered sets that change."""
    computed = []
    for name, parents in _COMPUTED.items():
        changed = {change.uri for change in planned.changes if change.stage in parents}
        for uri in finished(place, [name]) if changed else ():
            if changed & {parent.uri for parent in manifest.load(uri).parents}:
                computed.append(uri.removesuffix(f"/{_MANIFEST}"))
    return computed


def _rewrite_manifest(change: Change, after: Mapping[str, str], record: Mapping[str, Any]) -> str:
    """Bring one manifest in line with its files and parents.

    Args:
        change: change of its stage.
        after: new digest of each manifest that was replaced before, by its old digest.
        record: what a release stores of the takedown.

    Returns:
        The manifest's new digest.
    """
    uri = storage.join(change.uri, change.manifest)
    old = manifest.load(uri)
    if old.digest != change.before:
        return old.digest  # this takedown replaced it before it was killed
    # The number of rows is at least 0: parts of search results are stored with 0 rows.
    shorter = {
        part.path: max(0, part.rows - change.files[part.path])
        for part in old.parts.named(change.files)
        if part.path not in change.deleted
    }
    described = for_each("describe", list(shorter.items()), partial(_described, stage_uri=change.uri))
    parts = old.parts.replaced({part.path: part for part in described}, change.deleted)
    if change.stage == "release":
        parts = parts.replaced(_rewrite_release_lists(change.uri, parts, record))
    updated = old.model_copy(
        update={
            "parents": tuple(
                parent.model_copy(update={"digest": after.get(parent.digest, parent.digest)}) for parent in old.parents
            ),
            "parts": parts,
            "counts": {name: number - change.counts.get(name, 0) for name, number in old.counts.items()},
            "dropped": {name: number - change.dropped.get(name, 0) for name, number in old.dropped.items()}
            | ({TAKEN_DOWN: old.dropped.get(TAKEN_DOWN, 0) + change.pairs} if change.pairs else {}),
        }
    )
    named = {TAKEDOWN: record["id"]}
    if change.stage == "crawl":  # the key of the attempt after one that failed has the digest that this one had
        named[attempt.FIRST_DIGEST] = old.provenance.get(attempt.FIRST_DIGEST, old.digest)
    updated = updated.model_copy(update={"provenance": old.provenance | named})
    manifest.save(updated, uri, storage.write_json)
    return updated.digest


def _described(file: tuple[str, int], stage_uri: str) -> Part:
    path, rows = file
    return manifest.describe(stage_uri, path, rows)


def _rewrite_release_lists(uri: str, parts: Parts, record: Mapping[str, Any]) -> dict[str, Part]:
    """Write a release's copy of the record, and bring its description and its checksums in line with its files.

    Returns:
        The parts that were written, by path.
    """
    named = f"{FOLDER}/{record['id']}.json"
    storage.write_json(storage.join(uri, named), dict(record))
    changed = {named: manifest.describe(uri, named)}
    description = storage.join(uri, croissant.PATH)
    storage.write_json(description, croissant.with_files(storage.read_json(description), parts))
    changed[croissant.PATH] = manifest.describe(uri, croissant.PATH)
    storage.write_bytes(storage.join(uri, release.SUMS), release.sums(parts.replaced(changed)))
    return changed | {release.SUMS: manifest.describe(uri, release.SUMS)}
