"""Plan a takedown: find the pairs that a list covers, and every file and number that changes when they go.

Nothing is changed here; ``wukong.publish.takedown`` carries a plan out.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import polars as pl
from pydantic import BaseModel, ConfigDict

from wukong import stages
from wukong.crawl import attempt, previous
from wukong.crawl.optout import OptOut
from wukong.crawl.status import Status
from wukong.crawl.url import key_of
from wukong.curate.apply import count_near
from wukong.curate.near_duplicates import COSINE
from wukong.curate.rule import HELD_BACK
from wukong.data.schema import MORE_CAPTIONS, OVERLAPS
from wukong.errors import ConfigError, DataError, StorageError
from wukong.publish import release
from wukong.publish.parallel import for_each
from wukong.publish.traces import Traces
from wukong.publish.trained_models import TrainedModel, trained_on
from wukong.report import card
from wukong.runs import located
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, digest_of

RESULTS = "results.json"
"""Where a validate stage stores the outcome of each expectation, with examples."""

TAKEDOWN = "takedown"
"""Name, in the provenance of a manifest that takedowns have replaced, of the last one's ``id``."""

_MANIFEST = "manifest.json"
_MANIFESTS = (_MANIFEST, attempt.FAILED)
_STAGES = tuple(entry.name for entry in stages.TABLE if entry.takedown == "rewrite")
_WORDS = ("url", "sha256")
_CAPTIONS = ("caption", "caption_original")
_SEVERAL = "captions"
_OF_TABLES = {entry.name for entry in stages.TABLE if entry.takedown != "keep"} | {"takedowns", "experiments"}
"""Folders whose files a plan lists one by one or deletes, or that name no pair."""
_TRACED = (".json", ".html", ".parquet")

_REQUEST = {"when", "reason", "list_name", "list_sha256", "listed"}
_RECORDED = {*_REQUEST, "keys"}


log = logging.getLogger(__name__)


class Change(BaseModel):
    """What a takedown changes in one stage's output.

    Attributes:
        stage: the stage's name.
        uri: the prefix its files lie under.
        before: digest of its manifest before the takedown.
        manifest: name of its manifest: ``manifest.json``, that of a crawl that failed, or empty for a crawl that was
            killed and has none.
        files: path, below ``uri``, of each file that is rewritten, and the number of its rows that go.
        deleted: path of each file that is deleted: pages that may show the pairs and cannot be made again without them.
        counts: how much is taken off each of the manifest's counts.
        dropped: how much is taken off each of the manifest's drop reasons.
        pairs: number of pairs with an image, or of rows of a release, that go.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    uri: str
    before: str
    manifest: str = _MANIFEST
    files: dict[str, int] = {}
    deleted: tuple[str, ...] = ()
    counts: dict[str, int] = {}
    dropped: dict[str, int] = {}
    pairs: int = 0


class Plan(BaseModel):
    """A whole takedown, before it begins.

    Attributes:
        when: when it was planned, UTC.
        reason: the reason that the operator gave.
        list_name: file name of the list.
        list_sha256: digest of the list's bytes.
        listed: number of entries of the list: domains, urls, digests.
        keys: keys of the pairs that go, sorted.
        changes: one for each stage that changes, parents first.
        unfinished: URIs of folders that attempts at stages behind the crawl left, which were killed. They are deleted:
            the crawl has another digest afterwards, so no attempt goes on from them.
        computed: URIs of the stages that were computed of the images and are deleted; found when the plan is carried
            out, so that a takedown that was killed between two of their files goes on.
        traced: URIs of other files that name the pairs.
        words: URLs of the pairs and digests of their images. They are not in the record.
        captions: captions of the pairs that no other pair has. They are not in the record.
        models: the models of the experiment that were trained on the pairs, or of which that is not known.
        entries: the list, by which the plan is made anew where outputs have changed since.
        seen: versions of the manifests of all outputs at the place, by their URIs; empty for one without a manifest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: str
    reason: str
    list_name: str
    list_sha256: str
    listed: dict[str, int]
    keys: tuple[str, ...]
    changes: tuple[Change, ...]
    unfinished: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    traced: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    models: tuple[TrainedModel, ...] = ()
    entries: str
    seen: dict[str, str]

    @property
    def id(self) -> str:
        """16 hex digits that name this takedown, also where its plan is made anew."""
        return digest_of(self.model_dump(mode="json", include=_REQUEST))[:16]

    @property
    def record(self) -> dict[str, Any]:
        """What is stored of it for good, also in a release: no URL, no caption."""
        return self.model_dump(mode="json", include=_RECORDED) | {"id": self.id}

    @property
    def traces(self) -> Traces:
        """What names its pairs."""
        return Traces(self.keys, self.words, self.captions)


def plan(
    place: str,
    list_uri: str,
    reason: str,
    now: datetime,
    copies: Iterable[tuple[str, bytes]] = (),
    entries: bytes | None = None,
    begun: Plan | None = None,
) -> Plan:
    """Find what a list of domains, URLs and digests covers. Nothing is changed.

    Args:
        place: URI of an experiment (``{storage}/{name}``) or of a single stage's output, for instance a release.
        list_uri: the list, in the form of the crawler's opt-out list.
        reason: stored in the record.
        now: stored in the record.
        copies: names and contents of files elsewhere that may name pairs.
        entries: the list's bytes; None to read it.
        begun: an earlier plan by the list, of which a part may have been carried out.

    Raises:
        ConfigError: the list is malformed, or it has digests and there is no shard to find their images in.
        DataError: the place has no stage that a takedown can change, or a file is damaged.
    """
    entries = storage.read_bytes(list_uri) if entries is None else entries
    listed, seen = OptOut.parse(entries, list_uri), versions(place)
    outputs = [*unfinished_crawls(place), *((stage, _MANIFEST) for stage in stages_at(place))]
    if not outputs and begun is None:
        raise DataError(f"{place} holds neither a release nor the crawl or the shards of an experiment")
    if begun is None and listed.digests and not any(stage.stage in ("crawl", "filter") for stage, _ in outputs):
        raise ConfigError(
            f"{list_uri} holds digests of pictures, and {place} has no shards to find them by: name the experiment's "
            "own storage, or list URLs"
        )
    holders = [stage for stage, _ in outputs]
    tables = [uri for stage in holders for uri in located.tables_with_urls(stage, listed, holders)]
    keys: set[str] = set().union(*for_each("look for what is listed", tables, partial(_covered_keys, listed=listed)))
    changes: list[Change] = []
    words: set[str] = set()
    captions: set[str] = set()
    earlier = {change.uri: change for change in begun.changes} if begun else {}
    if begun:
        keys.update(begun.keys)
        words.update(begun.words)
        captions.update(begun.captions)
    for stage, name in outputs if keys else ():
        known = earlier.get(stage.uri)
        if begun and known and known.manifest and _holds(known, stage, begun):
            changes.append(known)
            continue
        above = [each for each in changes if each.before in {parent.digest for parent in stage.parents}]
        lost = any(each.pairs for each in above)
        crawled = known if known and not known.manifest else None  # by a crawl that may have gone on since
        change = _change(stage, name, keys, words, captions, lost=lost, begun=crawled)
        if change.files or change.deleted or above:
            changes.append(change)
    whole = bool(keys) and not storage.exists(storage.join(place, _MANIFEST))
    with_all_captions = Traces(keys, words, captions)
    naming = traced(place, with_all_captions) if whole else []
    if begun is None:  # else not all that may show them is given
        # Those that files show, and that decide whether these files, or records in them, go.
        files = chain(((uri, storage.read_bytes(uri)) for uri in naming), copies if captions else ())
        captions = set().union(*(with_all_captions.captions_in(name, data) for name, data in files))
    captions = _of_no_other(holders, keys, captions)
    trained = (manifest.load(uri) for uri in finished(place, stages.TRAININGS)) if whole else ()
    models = {model.uri: model for model in trained_on(trained, sorted(keys))}
    models |= {model.uri: model for model in begun.models} if begun else {}
    return Plan(
        when=now.isoformat(timespec="seconds"),
        reason=reason,
        list_name=list_uri.rstrip("/").rsplit("/", 1)[-1],
        list_sha256=begun.list_sha256 if begun else hashlib.sha256(entries).hexdigest(),
        listed=begun.listed if begun else {n: len(getattr(listed, n)) for n in ("domains", "urls", "digests")},
        keys=tuple(sorted(keys)),
        changes=tuple(changes),
        unfinished=_unfinished(place) if whole else (),
        traced=tuple(sorted({*_naming(naming, Traces(keys, words, captions)), *(begun.traced if begun else ())})),
        words=tuple(sorted(words)),
        captions=tuple(sorted(captions)),
        models=tuple(models.values()),
        entries=entries.decode("utf-8", "replace"),
        seen=seen,
    )


def _holds(known: Change, stage: Manifest, begun: Plan) -> bool:
    """Return whether what a plan says of an output still holds: its manifest is as it was, or the takedown wrote it."""
    return known.before == stage.digest or stage.provenance.get(TAKEDOWN) == begun.id


def current(place: str, planned: Plan, *, may_be_begun: bool) -> Plan:
    """Return the plan by a list that holds for what is there now; nobody may make or delete outputs meanwhile.

    Args:
        place: the plan's place.
        planned: a plan.
        may_be_begun: whether a part of it may have been carried out.
    """
    now, deleted = versions(place), {*planned.unfinished, *planned.computed}
    changed = {uri for uri in {*now, *planned.seen} if now.get(uri) != planned.seen.get(uri)}
    changed = {uri for uri in changed if not (uri in deleted and not now.get(uri)) and not _is_written(uri, planned)}
    if not changed:
        return planned
    log.warning("the takedown by %s is planned anew: outputs have changed since", planned.list_name)
    if not may_be_begun:
        planned = planned.model_copy(update={"changes": ()})
    when = datetime.fromisoformat(planned.when)
    return plan(place, planned.list_name, planned.reason, when, entries=planned.entries.encode(), begun=planned)


def versions(place: str) -> dict[str, str]:
    """Return what identifies the present state of each output at a place, by its URI; empty for one that is deleted."""
    if storage.exists(storage.join(place, _MANIFEST)):
        return {place: storage.version(storage.join(place, _MANIFEST)) or ""}
    found = {}
    for stage in (entry.name for entry in stages.TABLE if entry.version):
        for uri, there in located.outputs(place, stage).items():
            if name := next((name for name in _MANIFESTS if name in there), ""):
                found[uri] = storage.version(storage.join(uri, name)) or ""
            else:
                found[uri] = f"{len(storage.list_files(uri)):,} files" if stage == "crawl" else ""
    return found


def _is_written(uri: str, planned: Plan) -> bool:
    """Return whether a takedown has written the manifest of an output."""
    there = (storage.join(uri, name) for name in _MANIFESTS)
    return any(manifest.load(each).provenance.get(TAKEDOWN) == planned.id for each in there if storage.exists(each))


def traced(place: str, traces: Traces) -> list[str]:
    """Return the URIs of the records, pages and answers below a place that name pairs; tables of pairs are not read.

    Args:
        place: URI of an experiment, or of any other folder.
        traces: what names the pairs.
    """
    return _naming(may_name(place), traces)


def may_name(place: str) -> list[str]:
    """Return the URIs of the records, pages and answers below a place."""
    names = [name for name in storage.list_names(place) if name not in _OF_TABLES]
    files = sorted(uri for name in names for uri in storage.sizes(storage.join(place, name)))
    return [uri for uri in files if uri.endswith(_TRACED) and not uri.endswith(("/manifest.json", "/experiment.json"))]


def _naming(files: Sequence[str], traces: Traces) -> list[str]:
    def names(uri: str) -> bool:
        try:
            data = storage.read_bytes(uri)
        except StorageError:
            if storage.exists(uri):
                raise
            return False  # a stage beside this has ended, and deleted its lease or a work file
        return traces.in_file(uri, data)

    hits = for_each("look for what names them", files, names, many=False)
    return [uri for uri, hit in zip(files, hits, strict=True) if hit]


def _of_no_other(outputs: Sequence[Manifest], keys: Set[str], captions: set[str]) -> set[str]:
    """Return those of some captions that no pair has that stays. Mostly the first tables have most of the others."""
    tables = [uri for stage in outputs for uri in located.tables_with_captions(stage)] if captions else []
    left = set(captions)
    others = partial(_captions_of_others, keys=frozenset(keys), captions=frozenset(captions))
    for theirs in for_each("read what stays", tables, others):
        left -= theirs
        if not left:
            break
    return left


def _captions_of_others(uri: str, keys: Set[str], captions: Set[str]) -> set[str]:
    rows = pl.DataFrame(storage.read_table(uri, ("key", *_CAPTIONS, _SEVERAL), present_only=True))
    theirs = _captions(rows.filter(~pl.col("key").is_in(keys)))
    return set(theirs.filter(theirs.is_in(captions)).unique())


def _captions(rows: pl.DataFrame) -> pl.Series:
    """All captions of pairs, also of those that have several."""
    tables = [rows]
    if _SEVERAL in rows.columns:
        tables.append(rows[_SEVERAL].drop_nulls().explode().struct.unnest())
    columns = [table[name] for table in tables for name in _CAPTIONS if name in table.columns]
    return pl.concat([pl.Series(dtype=pl.String), *columns])


def unfinished_crawls(place: str) -> list[tuple[Manifest, str]]:
    """Return the crawls that failed, or were killed, with the names of their manifests."""
    crawls = []
    for folder, names in located.outputs(place, "crawl").items():
        if _MANIFEST in names:
            continue
        if attempt.FAILED in names:
            failed = manifest.load(storage.join(folder, attempt.FAILED))
            crawls.append((failed.model_copy(update={"uri": folder}), attempt.FAILED))
        else:
            crawls.append((Manifest(stage="crawl", uri=folder, config={}), ""))
    return crawls


def _unfinished(place: str) -> tuple[str, ...]:
    """Return the folders of attempts at stages behind the crawl that left no manifest."""
    names = [entry.name for entry in stages.TABLE if entry.takedown != "keep" and entry.name != "crawl"]
    return tuple(
        folder
        for name in [*names, "evaluate"]
        for folder, there in located.outputs(place, name).items()
        if _MANIFEST not in there
    )


def stages_at(place: str) -> list[Manifest]:
    """Returns the manifest of every finished stage that holds pairs, parents first.

    ``uri`` of each is where the stage lies now, which for a copy is not where it was made.

    Args:
        place: URI of an experiment or of a single stage's output.
    """
    if storage.exists(storage.join(place, _MANIFEST)):
        uris = [storage.join(place, _MANIFEST)]
    else:
        uris = finished(place, _STAGES)
    manifests = [manifest.load(uri).model_copy(update={"uri": uri.removesuffix(f"/{_MANIFEST}")}) for uri in uris]
    manifests = [each for each in manifests if each.stage in _STAGES]
    return sorted(manifests, key=lambda each: (_STAGES.index(each.stage), each.uri))


def finished(place: str, names: Iterable[str]) -> list[str]:
    """Returns the URIs of the manifests of some stages of an experiment."""
    folders = {folder: there for name in names for folder, there in located.outputs(place, name).items()}
    return [storage.join(folder, _MANIFEST) for folder, there in folders.items() if _MANIFEST in there]


def _covered_keys(uri: str, listed: OptOut) -> set[str]:
    if uri.endswith(".csv"):
        rows = release.read_csv(uri)
        return {key_of(url) for url in rows.filter(listed.covers_pairs(rows))["url"]}
    rows = pl.DataFrame(storage.read_table(uri, ("key", "url", "sha256"), present_only=True))
    return set(rows.filter(listed.covers_pairs(rows))["key"])


class _Lost(NamedTuple):
    """What a table, and the tar beside it, lose: rows by file, what is taken off counts and drop reasons, and texts."""

    files: dict[str, int]
    counts: dict[str, int]
    dropped: dict[str, int]
    pairs: int
    words: set[str]
    captions: set[str]


def _change(
    stage: Manifest,
    name: str,
    keys: Set[str],
    words: set[str],
    captions: set[str],
    *,
    lost: bool,
    begun: Change | None = None,
) -> Change:
    """Returns how a stage's output and manifest would differ if these pairs had never been downloaded.

    Args:
        stage: its manifest.
        name: the manifest's name.
        keys: keys of the pairs that go.
        words: gets their URLs and the digests of their pictures.
        captions: gets their captions.
        lost: whether a parent of the stage loses pairs.
        begun: what was planned before; files that it names may be rewritten already, and are not looked through.
    """
    before = begun.files if begun else {}
    files = {path: rows for path, rows in before.items() if storage.exists(storage.join(stage.uri, path))}
    counts, dropped = (Counter(each) for each in ((begun.counts, begun.dropped) if begun else ({}, {})))
    pairs, ordered = begun.pairs if begun else 0, sorted(keys)
    find = partial(_lost, stage_uri=stage.uri, keys=ordered)
    may_hold = located.tables(stage, ordered, by_index=previous.INDEX not in before)
    tables = [path for path in may_hold if path not in before]
    for each in for_each(f"look through {stage.stage}", tables, find):
        files |= each.files
        counts.update(each.counts)
        dropped.update(each.dropped)
        pairs += each.pairs
        words |= each.words
        captions |= each.captions
    pages, deleted = _pages(stage, keys, lost=lost or pairs > 0)
    if stage.stage == "crawl" and _is_bound(storage.join(stage.uri, previous.INDEX), keys):
        pages[previous.INDEX] = 0
    return Change(
        stage=stage.stage,
        uri=stage.uri,
        before=stage.digest,
        manifest=name,
        files=files | pages,
        deleted=deleted,
        counts=dict(sorted(counts.items())),
        dropped=dict(sorted(dropped.items())),
        pairs=pairs,
    )


def _is_bound(index_uri: str, keys: Set[str]) -> bool:
    """Return whether a crawl's index of its parts names a key as the first or the last of a part."""
    if not storage.exists(index_uri):
        return False
    index = storage.read_table(index_uri)
    return not keys.isdisjoint([*index["first_key"].to_pylist(), *index["last_key"].to_pylist()])


def _lost(path: str, stage_uri: str, keys: Sequence[str]) -> _Lost:
    """Returns what one table or CSV file, and the tar beside it, lose. The keys are sorted."""
    uri = storage.join(stage_uri, path)
    if path.endswith(".csv"):
        gone = frozenset(keys)
        pairs = sum(key_of(url) in gone for url in release.read_csv(uri)["url"])
        return _Lost({path: pairs} if pairs else {}, {"pairs": pairs}, {}, pairs, set(), set())
    if path == OVERLAPS:
        pairs_of_sets = located.rows(uri, keys, ["key", "set"])
        of_set = pairs_of_sets.unique()["set"].value_counts().iter_rows()
        counts = {f"overlap/{name}": int(pairs) for name, pairs in of_set}
        return _Lost({path: len(pairs_of_sets)} if counts else {}, counts, {}, 0, set(), set())
    folder, tar = path.split("/", 1)[0], path.removesuffix(".parquet") + ".tar"
    reason = {"parts": "status", "dropped": "dropped_by"}.get(folder)
    hit = located.rows(uri, keys, ["key", *([reason] if reason else []), *_WORDS, *_CAPTIONS, _SEVERAL, COSINE])
    several = {MORE_CAPTIONS: len(hit) - hit[_SEVERAL].null_count()} if _SEVERAL in hit.columns else {}
    reasons = {str(name): int(number) for name, number in hit[reason].value_counts().iter_rows()} if reason else {}
    files, counts, dropped, pairs = {path: len(hit)}, {}, {}, 0
    if folder == "parts":
        pairs = reasons.get(Status.SUCCESS, 0)
        files |= {tar: pairs}
        counts = {"urls": len(hit), **reasons, **several}
        dropped = {status: number for status, number in reasons.items() if status != Status.SUCCESS}
    elif folder == "search":
        counts = {"results": len(hit)}
    elif folder == "dropped":
        counts, dropped = {"pairs": len(hit), "kept": reasons.get(HELD_BACK, 0)}, reasons
    elif folder != "plan":
        pairs = len(hit)
        files |= {tar: pairs}
        counts = {"pairs": pairs, "kept": pairs, folder: pairs, **several}
    counts |= count_near(hit)
    files = {name: rows for name, rows in files.items() if rows}
    words = {text for name in _WORDS if name in hit.columns for text in hit[name] if text}
    return _Lost(files, counts, dropped, pairs, words, {*_captions(hit)} - {None, ""})


def _pages(stage: Manifest, keys: Set[str], *, lost: bool) -> tuple[dict[str, int], tuple[str, ...]]:
    """Returns which of the results, the data docs and the dataset card are rewritten, and which are deleted.

    Args:
        stage: its manifest.
        keys: keys of the pairs that go.
        lost: whether any of the pairs that the pages may show goes.
    """
    rewritten: dict[str, int] = {}
    deleted: list[str] = []
    if stage.parts.has(RESULTS):
        results = storage.read_json(storage.join(stage.uri, RESULTS))
        if any(sample.get("key") in keys for outcome in results["expectations"] for sample in outcome["samples"]):
            rewritten[RESULTS] = 0
        if rewritten or (lost and _docs_show_more(results)):
            docs = storage.list_files(storage.join(stage.uri, "docs"))
            deleted += [path for path in (uri[len(stage.uri) + 1 :] for uri in docs) if path != card.PATH]
    if stage.parts.has(card.PATH):
        if not storage.exists(storage.join(stage.uri, card.DATA_PATH)):
            # A copy that was made by the manifest has no data of the card: nobody can tell which pairs it shows.
            deleted += [card.PATH] if lost or deleted else []
        elif ((shown := card.read(stage.uri)).docs and deleted) or shown.shows_any(keys):
            rewritten[card.PATH] = 0
    return rewritten, tuple(deleted)


def _docs_show_more(results: Mapping[str, Any]) -> bool:
    """Tell whether the data docs may show pairs that the results do not list.

    The results list a few rows that break an expectation; the docs list a few for each batch of pairs.
    """
    return any(outcome["unexpected"] > len(outcome["samples"]) for outcome in results["expectations"])
