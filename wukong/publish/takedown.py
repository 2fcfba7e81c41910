"""Take pairs down: remove them from a release, and from the crawl and the shards that it was made from.

A takedown is planned first (``wukong.publish.takedown_plan``). Before anything changes, the plan, which lists every
file that changes, is stored as ``takedowns/pending.json``; a later takedown carries out a pending plan before its own.
Each file is replaced as a whole by what is left of it. Then the manifests are replaced, parents first, and last the
record is written. So a takedown that was killed and is run again gives the same bytes as one that was not killed.

Afterwards the data are as if the pairs had never been downloaded: rows and counts are smaller, and the manifests have
other digests. The record, ``takedowns/ID.json``, stores when, why and by which list, and the digests of each manifest
before and after. It stores no URL. It names a pair by its key, the first 20 hex digits of the SHA-256 of its URL, so
that holders of copies can find the rows to remove. What was computed of the images (hashes, similarities, features) is
deleted, and so are data docs that may show the pairs. Statistics, and the numbers on the dataset card, stay those from
before. Trained models, reports of runs and copies elsewhere are not changed.
"""

from collections.abc import Mapping
from typing import Any

from wukong import manifest, stages, storage
from wukong.manifest import Part
from wukong.publish import croissant, release, rewrite
from wukong.publish.takedown_plan import Change, Plan, for_each

TAKEN_DOWN = "taken_down"
"""Name, in a manifest's ``dropped``, of the pairs that takedowns removed from it."""

FOLDER = "takedowns"
"""Where the plan and the records are stored, below the place of the takedown."""

_PENDING = f"{FOLDER}/pending.json"
_MANIFEST = "manifest.json"
_COMPUTED = {entry.name: entry.parents for entry in stages.TABLE if entry.takedown == "delete"}


def pending(place: str) -> Plan | None:
    """Returns the plan of a takedown that was begun at this place and has not ended, or None."""
    uri = storage.join(place, _PENDING)
    return Plan.model_validate(storage.read_json(uri)) if storage.exists(uri) else None


def carry_out(place: str, planned: Plan) -> dict[str, Any]:
    """Carry out a plan. If it is killed at any moment and called again, it gives the same bytes.

    Args:
        place: the plan's place.
        planned: the plan.

    Returns:
        The record: the plan's request and keys, ``id``, and for each stage its digests before and after.

    Raises:
        DataError: a file is damaged.
        StorageError: a file cannot be read or written.
    """
    computed = sorted({*planned.computed, *_computed(place, planned)})
    planned = planned.model_copy(update={"computed": tuple(computed)})
    storage.write_json(storage.join(place, _PENDING), planned.model_dump(mode="json"))
    _rewrite_files(planned)
    for uri in computed:  # the next run computes it again
        storage.delete(storage.join(uri, _MANIFEST))  # first, so that what remains is not taken for the whole
        storage.delete(uri)
    record = planned.model_dump(mode="json", exclude={"changes", "computed"}) | {"id": planned.id}
    told = []
    after: dict[str, str] = {}
    for change in planned.changes:
        after[change.before] = _rewrite_manifest(change, after, record)
        facts = change.model_dump(include={"stage", "uri", "pairs"})
        told.append(facts | {"digest_before": change.before, "digest_after": after[change.before]})
    record |= {"stages": told}
    if not any(change.uri == place for change in planned.changes):
        storage.write_json(storage.join(place, FOLDER, f"{planned.id}.json"), record)
    storage.delete(storage.join(place, _PENDING))
    return record


def reports(place: str) -> list[str]:
    """Returns the URIs of the pages of earlier runs and evaluations, and of the records that evaluations are made from.

    They may show images that were taken down since.
    """
    evaluations = storage.list_files(storage.join(place, "evaluate"))
    shown = [uri for uri in evaluations if uri.endswith(".html") or "/_parts/" in uri]
    return [*storage.list_files(storage.join(place, "runs"), ".html"), *shown]


def _rewrite_files(planned: Plan) -> None:
    keys = set(planned.keys)
    files = [(change, path) for change in planned.changes for path in change.files]

    def rewrite_file(file: tuple[Change, str]) -> None:
        change, path = file
        docs_deleted = any(each.startswith("docs/") for each in change.deleted)
        rewrite.without_pairs(change.uri, path, keys, docs_deleted=docs_deleted)

    # Every reader rejects a row without an image; an image without a row does no harm. So tables are rewritten first.
    for_each("take down: tables", [each for each in files if each[1].endswith(".parquet")], rewrite_file)
    others = [each for each in files if not each[1].endswith(".parquet")]
    for_each("take down: pictures, lists and pages", others, rewrite_file)
    for change in planned.changes:
        for path in change.deleted:
            storage.delete(storage.join(change.uri, path))


def _computed(place: str, planned: Plan) -> list[str]:
    """Return the URIs of the stages that were computed of the images of the crawls and filtered sets that change."""
    found = []
    for name, parents in _COMPUTED.items():
        changed = {change.uri for change in planned.changes if change.stage in parents}
        for uri in storage.list_files(storage.join(place, name), f"/{_MANIFEST}") if changed else ():
            if changed & {parent.uri for parent in manifest.load(uri).parents}:
                found.append(uri.removesuffix(f"/{_MANIFEST}"))
    return found


def _rewrite_manifest(change: Change, after: Mapping[str, str], record: Mapping[str, Any]) -> str:
    """Bring one manifest in line with its files and parents.

    Args:
        change: of its stage.
        after: new digest of each manifest that was replaced before, by its old digest.
        record: what a release stores of the takedown.

    Returns:
        The manifest's new digest.
    """
    old = manifest.load(change.uri)
    if old.digest != change.before:
        return old.digest  # this takedown replaced it before it was killed
    parts = {part.path: part for part in old.parts if part.path not in change.deleted}
    for path, rows in change.files.items():
        if path in parts:
            # The number of rows is at least 0: parts of search results are stored with 0 rows.
            parts[path] = manifest.describe(change.uri, path, max(0, parts[path].rows - rows))
    if change.stage == "release":
        parts |= _rewrite_release_lists(change.uri, parts, record)
    updated = old.model_copy(
        update={
            "parents": tuple(
                parent.model_copy(update={"digest": after.get(parent.digest, parent.digest)}) for parent in old.parents
            ),
            "parts": tuple(parts[path] for path in sorted(parts)),
            "counts": {name: number - change.counts.get(name, 0) for name, number in old.counts.items()},
            "dropped": {name: number - change.dropped.get(name, 0) for name, number in old.dropped.items()}
            | ({TAKEN_DOWN: old.dropped.get(TAKEN_DOWN, 0) + change.pairs} if change.pairs else {}),
        }
    )
    storage.write_json(storage.join(change.uri, _MANIFEST), updated.model_dump(mode="json"))
    return updated.digest


def _rewrite_release_lists(uri: str, parts: Mapping[str, Part], record: Mapping[str, Any]) -> dict[str, Part]:
    """Write a release's copy of the record, and bring its description and its checksums in line with its files.

    Returns:
        The parts that were written, by path.
    """
    named = f"{FOLDER}/{record['id']}.json"
    storage.write_json(storage.join(uri, named), dict(record))
    changed = {named: manifest.describe(uri, named)}
    description = storage.join(uri, croissant.PATH)
    storage.write_json(description, croissant.with_files(storage.read_json(description), list(parts.values())))
    changed[croissant.PATH] = manifest.describe(uri, croissant.PATH)
    storage.write_bytes(storage.join(uri, release.SUMS), release.sums([*({**parts, **changed}).values()]))
    return changed | {release.SUMS: manifest.describe(uri, release.SUMS)}
