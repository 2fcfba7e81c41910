"""Taking pairs down: out of a released set, and out of the crawl and the shards that it was made from.

A takedown is planned before anything is changed: the plan, which says of every file what goes, is stored as
``takedowns/pending.json``, and whoever finds one carries it out first. Each file is replaced as a whole by what is left
of it, pictures copied byte for byte; then the manifests, parents first; last the record. So a takedown that was killed
ends, when it is run again, at the bytes that it would have ended at.

Afterwards everything is as if the pairs had never been downloaded: rows and counts are less, and the digests of the
manifests are others. The record, ``takedowns/ID.json``, says when, why, by which list, and gives the digests of each
manifest before and after. It names no URL: a pair is listed by the first 20 hex digits of the SHA-256 of its URL, which
is its key, so that holders of copies can find the rows to remove. What was computed of the pictures (hashes,
similarities, features) is deleted. Trained models are left, and so are pages and copies outside of these stages.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from wukong import manifest, progress, stages, storage
from wukong.crawl.status import Status
from wukong.curate.rules import HELD_BACK
from wukong.data.schema import key_of
from wukong.data.shards import END, members, packed
from wukong.errors import ConfigError, DataError
from wukong.manifest import Manifest, Part, digest_of
from wukong.publish import release
from wukong.publish.optout import OptOut
from wukong.report import card

TAKEN_DOWN = "taken_down"
"""Name, in a manifest's ``dropped``, of the pairs that takedowns removed from it."""

FOLDER = "takedowns"
_PENDING = f"{FOLDER}/pending.json"
_MANIFEST = "manifest.json"
_RESULTS = "results.json"
_STAGES = tuple(entry.name for entry in stages.TABLE if entry.takedown == "rewrite")
_COMPUTED = {entry.name: entry.parents for entry in stages.TABLE if entry.takedown == "delete"}
_THREADS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


class Change(BaseModel):
    """What is to become of one stage's output.

    Attributes:
        stage: the stage's name.
        uri: the prefix its files lie under.
        before: digest of its manifest before the takedown.
        files: path, below ``uri``, of each file that changes, and how many of its rows go.
        counts: by how much each of the manifest's counts is less.
        dropped: by how much each of the manifest's drop reasons is less.
        pairs: pairs with a picture, or rows of a release, that go.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    uri: str
    before: str
    files: dict[str, int] = {}
    counts: dict[str, int] = {}
    dropped: dict[str, int] = {}
    pairs: int = 0


class Plan(BaseModel):
    """A takedown, whole, before it begins.

    Attributes:
        when: time of the request's execution, UTC.
        reason: what the operator said of it.
        list_name: file name of the list.
        list_sha256: digest of the list's bytes.
        listed: entries of the list: domains, urls, digests.
        keys: keys of the pairs that go, sorted.
        changes: by stage, parents first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: str
    reason: str
    list_name: str
    list_sha256: str
    listed: dict[str, int]
    keys: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def id(self) -> str:
        """16 hex digits that name this takedown."""
        return digest_of(self.model_dump(mode="json"))[:16]


def pending(place: str) -> Plan | None:
    """The takedown that was begun at this place and has not ended, if there is one."""
    uri = storage.join(place, _PENDING)
    return Plan.model_validate(storage.read_json(uri)) if storage.exists(uri) else None


def plan(place: str, list_uri: str, reason: str, now: datetime) -> Plan:
    """Find what a list of domains, URLs and digests covers; nothing is changed.

    Args:
        place: URI of an experiment (``{storage}/{name}``) or of a single stage's output, for instance a release.
        list_uri: the list, in the form of the crawler's opt-out list.
        reason: kept in the record.
        now: kept in the record.

    Raises:
        ConfigError: the list is not one, or has digests and there is no shard to find their pictures by.
        DataError: nothing that can be taken down lies at this place, or a file is damaged.
    """
    listed = OptOut.load(list_uri)
    stages = _stages_at(place)
    if listed.digests and not any(stage.stage in ("crawl", "filter") for stage in stages):
        raise ConfigError(
            f"{list_uri} holds digests of pictures, and {place} has no shards to find them by: name the experiment's "
            "own storage, or list URLs"
        )
    tables = [uri for stage in stages for uri in _tables_with_urls(stage)]
    found = _each("look for what is listed", tables, lambda uri: _covered_keys(uri, listed))
    keys = set().union(*found)
    changes: list[Change] = []
    for stage in stages if keys else ():
        change = _change(stage, keys)
        if change.files or {parent.digest for parent in stage.parents} & {each.before for each in changes}:
            changes.append(change)
    return Plan(
        when=now.isoformat(timespec="seconds"),
        reason=reason,
        list_name=list_uri.rstrip("/").rsplit("/", 1)[-1],
        list_sha256=hashlib.sha256(storage.read_bytes(list_uri)).hexdigest(),
        listed={name: len(getattr(listed, name)) for name in ("domains", "urls", "digests")},
        keys=tuple(sorted(keys)),
        changes=tuple(changes),
    )


def carry_out(place: str, planned: Plan) -> dict[str, Any]:
    """Do what a plan says; killed at any moment and called again, it ends at the same bytes.

    Args:
        place: the plan's.
        planned: the plan.

    Returns:
        The record: the plan's request and keys, ``id``, and for each stage its digests before and after.

    Raises:
        DataError: a file is damaged.
        StorageError: a file cannot be read or written.
    """
    storage.write_json(storage.join(place, _PENDING), planned.model_dump(mode="json"))
    keys = set(planned.keys)
    files = [storage.join(change.uri, path) for change in planned.changes for path in change.files]
    # A row whose picture is gone is an error to every reader, a picture without a row is nothing: tables go first.
    tables, others = (
        [uri for uri in files if uri.endswith(".parquet")],
        [uri for uri in files if not uri.endswith(".parquet")],
    )
    _each("take down: tables", tables, lambda uri: _rewrite(uri, keys))
    _each("take down: pictures, lists and pages", others, lambda uri: _rewrite(uri, keys))
    record = planned.model_dump(mode="json", exclude={"changes"}) | {"id": planned.id}
    stages = []
    after: dict[str, str] = {}
    for change in planned.changes:
        _delete_computed(place, change)
        after[change.before] = _rewrite_manifest(change, after, record)
        facts = change.model_dump(include={"stage", "uri", "pairs"})
        stages.append(facts | {"digest_before": change.before, "digest_after": after[change.before]})
    record |= {"stages": stages}
    if not any(change.uri == place for change in planned.changes):
        storage.write_json(storage.join(place, FOLDER, f"{planned.id}.json"), record)
    storage.delete(storage.join(place, _PENDING))
    return record


def pages(place: str) -> list[str]:
    """URIs of the reports of earlier runs, which may show pictures that were taken down since."""
    return storage.list_files(storage.join(place, "runs"), ".html")


def _each(what: str, items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    results = []
    with progress.track(what, len(items), "files") as advance, ThreadPoolExecutor(_THREADS) as pool:
        for result in pool.map(work, items):
            results.append(result)
            advance(1)
    return results


def _stages_at(place: str) -> list[Manifest]:
    """Every finished stage that holds pairs, parents first; what was copied says where it lies now."""
    if storage.exists(storage.join(place, _MANIFEST)):
        uris = [storage.join(place, _MANIFEST)]
    else:
        uris = [uri for name in _STAGES for uri in storage.list_files(storage.join(place, name), f"/{_MANIFEST}")]
    found = [manifest.load(uri).model_copy(update={"uri": uri.removesuffix(f"/{_MANIFEST}")}) for uri in uris]
    found = [each for each in found if each.stage in _STAGES]
    if not found:
        raise DataError(f"{place} holds neither a release nor the crawl or the shards of an experiment")
    return sorted(found, key=lambda each: (_STAGES.index(each.stage), each.uri))


def _tables_with_urls(stage: Manifest) -> list[str]:
    if stage.stage == "release":
        return stage.part_uris(suffix=".csv")
    return stage.part_uris("parts/" if stage.stage == "crawl" else "", ".parquet")


def _covered_keys(uri: str, listed: OptOut) -> set[str]:
    if uri.endswith(".csv"):
        rows = release.read_csv(uri)
        return {key_of(url) for url in rows.filter(release.covered(rows, listed))["url"]}
    rows = pl.DataFrame(storage.read_table(uri, ["key", "url", "sha256"]))
    return set(rows.filter(release.covered(rows, listed))["key"])


def _paths(stage: Manifest) -> list[str]:
    """Files of a stage that may name a pair or show its picture, tars left out: they go with their tables."""
    paths = [part.path for part in stage.parts if part.path.endswith((".parquet", ".csv"))]
    paths += [part.path for part in stage.parts if part.path in (card.PATH, _RESULTS)]
    if stage.stage == "crawl":
        # The plan of a finished crawl is no part of its output, but it is still there and names the URLs.
        planned = storage.list_files(storage.join(stage.uri, "plan"), ".parquet")
        paths = [path for path in paths if path.startswith(("parts/", "search/"))]
        paths += [uri[len(stage.uri) + 1 :] for uri in planned]
    return paths


def _change(stage: Manifest, keys: Set[str]) -> Change:
    """What becomes of one stage, were these pairs never downloaded."""
    changes = _each(f"look through {stage.stage}", _paths(stage), lambda path: _change_of_file(stage, path, keys))
    whole = Change(stage=stage.stage, uri=stage.uri, before=stage.digest)
    for change in changes:
        whole = whole.model_copy(
            update={
                "files": whole.files | change.files,
                "counts": _sum(whole.counts, change.counts),
                "dropped": _sum(whole.dropped, change.dropped),
                "pairs": whole.pairs + change.pairs,
            }
        )
    return whole


def _change_of_file(stage: Manifest, path: str, keys: Set[str]) -> Change:
    uri = storage.join(stage.uri, path)
    files, counts, dropped, pairs = {}, {}, {}, 0
    if path.endswith((".html", ".json")):
        files = {path: 0} if keys & _shown_keys(storage.read_bytes(uri)) else {}
    elif path.endswith(".csv"):
        pairs = sum(key_of(url) in keys for url in release.read_csv(uri)["url"])
        files, counts = {path: pairs}, {"pairs": pairs}
    else:
        folder, tar = path.split("/", 1)[0], path.removesuffix(".parquet") + ".tar"
        reason = {"parts": "status", "dropped": "dropped_by"}.get(folder)
        rows = pl.DataFrame(storage.read_table(uri, ["key", *([reason] if reason else [])]))
        hit = rows.filter(pl.col("key").is_in(keys))
        reasons = {str(name): int(number) for name, number in hit[reason].value_counts().iter_rows()} if reason else {}
        files = {path: len(hit)}
        if folder == "parts":
            pairs = reasons.get(Status.SUCCESS, 0)
            files |= {tar: pairs} if pairs else {}
            counts = {"urls": len(hit), **reasons}
            dropped = {status: number for status, number in reasons.items() if status != Status.SUCCESS}
        elif folder == "search":
            counts = {"results": len(hit)}
        elif folder == "dropped":
            counts, dropped = {"pairs": len(hit), "kept": reasons.get(HELD_BACK, 0)}, reasons
        elif folder != "plan":
            pairs = len(hit)
            files |= {tar: pairs}
            counts = {"pairs": pairs, "kept": pairs, folder: pairs}
    changed = {name: rows for name, rows in files.items() if rows or path.endswith((".html", ".json"))}
    return Change(
        stage=stage.stage, uri=stage.uri, before="", files=changed, counts=counts, dropped=dropped, pairs=pairs
    )


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}


def _shown_keys(page: bytes) -> set[str]:
    """Keys of the pairs that a card shows, or that are examples of what did not meet an expectation."""
    return {key.decode() for key in re.findall(rb'key(?:": |=)"([0-9a-f]{20})"', page)}


def _rewrite(uri: str, keys: Set[str]) -> None:
    """Replace a file by what is left of it."""
    suffix = uri.rsplit(".", 1)[-1]
    {
        "parquet": _rewrite_table,
        "tar": _rewrite_tar,
        "csv": _rewrite_csv,
        "html": _rewrite_card,
        "json": _rewrite_results,
    }[suffix](uri, keys)


def _rewrite_table(uri: str, keys: Set[str]) -> None:
    # Group by group: who wrote the table may have counted on where its groups begin.
    gone = pa.array(sorted(keys), pa.string())
    with storage.open_input(uri) as source, storage.open_output(uri) as target:
        table = pq.ParquetFile(source)
        with pq.ParquetWriter(target, table.schema_arrow, compression="zstd") as writer:
            for number in range(table.num_row_groups):
                rows = table.read_row_group(number)
                writer.write_table(rows.filter(pc.invert(pc.is_in(rows["key"], value_set=gone))))


def _rewrite_tar(uri: str, keys: Set[str]) -> None:
    with storage.open_output(uri) as target:
        for member in members(uri):
            if member.key not in keys:
                target.write(packed(f"{member.key}.{member.suffix}", member.read()))
        target.write(END)


def _rewrite_csv(uri: str, keys: Set[str]) -> None:
    rows = release.read_csv(uri)
    release.write_csv(uri, rows.filter(pl.Series([key_of(url) not in keys for url in rows["url"]], dtype=pl.Boolean)))


def _rewrite_card(uri: str, keys: Set[str]) -> None:
    def without(figure: re.Match[str]) -> str:
        return "" if figure[1] in keys else figure[0]

    page = storage.read_bytes(uri).decode()
    storage.write_bytes(
        uri, re.sub(r' *<figure data-key="(\w+)">.*?</figure>\n?', without, page, flags=re.DOTALL).encode()
    )


def _rewrite_results(uri: str, keys: Set[str]) -> None:
    results = storage.read_json(uri)
    for outcome in results["expectations"]:
        outcome["samples"] = [sample for sample in outcome["samples"] if sample.get("key") not in keys]
    storage.write_json(uri, results)
    # The data docs show the same examples, and cannot be made again without the rows.
    folder = uri.removesuffix(_RESULTS)
    for page in storage.list_files(storage.join(folder, "docs")):
        if page != storage.join(folder, card.PATH):
            storage.delete(page)


def _delete_computed(place: str, change: Change) -> None:
    """Delete what was computed of the pictures of a crawl or a filtered set; the next run computes it again."""
    computed = [name for name, parents in _COMPUTED.items() if change.stage in parents]
    for uri in [uri for name in computed for uri in storage.list_files(storage.join(place, name), f"/{_MANIFEST}")]:
        if any(parent.uri == change.uri for parent in manifest.load(uri).parents):
            storage.delete(uri)
            storage.delete(uri.removesuffix(f"/{_MANIFEST}"))


def _rewrite_manifest(change: Change, after: Mapping[str, str], record: Mapping[str, Any]) -> str:
    """Bring one manifest in line with its files and parents, and give its digest."""
    old = manifest.load(change.uri)
    if old.digest != change.before:
        return old.digest  # by the run that was killed
    parts = {part.path: part for part in old.parts}
    for path, rows in change.files.items():
        if path in parts:
            # Search results are described without their number of rows.
            parts[path] = manifest.describe(change.uri, path, max(0, parts[path].rows - rows))
    if change.stage == "release":
        parts |= _rewrite_lists(change.uri, parts, record)
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


def _rewrite_lists(uri: str, parts: Mapping[str, Part], record: Mapping[str, Any]) -> dict[str, Part]:
    """The record, the description and the checksums of a release, in line with its files."""
    named = f"{FOLDER}/{record['id']}.json"
    storage.write_json(storage.join(uri, named), dict(record))
    changed = {named: manifest.describe(uri, named)}
    description = storage.join(uri, release.DESCRIPTION)
    storage.write_json(description, release.with_files(storage.read_json(description), list(parts.values())))
    changed[release.DESCRIPTION] = manifest.describe(uri, release.DESCRIPTION)
    storage.write_bytes(storage.join(uri, release.SUMS), release.sums([*({**parts, **changed}).values()]))
    return changed | {release.SUMS: manifest.describe(uri, release.SUMS)}
