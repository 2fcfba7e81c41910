"""Plan a takedown: find the pairs that a list covers, and every file and number that changes when they go.

Nothing is changed here; ``wukong.publish.takedown`` carries a plan out.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

import polars as pl
from pydantic import BaseModel, ConfigDict

from wukong import stages
from wukong.crawl import attempt, previous
from wukong.crawl.optout import OptOut
from wukong.crawl.status import Status
from wukong.crawl.url import key_of
from wukong.curate.rule import HELD_BACK
from wukong.errors import ConfigError, DataError
from wukong.publish import release
from wukong.publish.traces import Traces
from wukong.report import card
from wukong.runtime import progress
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, digest_of

RESULTS = "results.json"
"""Where a validate stage stores the outcome of each expectation, with examples."""

_MANIFEST = "manifest.json"
_STAGES = tuple(entry.name for entry in stages.TABLE if entry.takedown == "rewrite")
_OF_TABLES = {entry.name for entry in stages.TABLE if entry.takedown != "keep"} | {"takedowns", "experiments"}
"""Folders whose files a plan lists one by one or deletes, or that name no pair."""
_TRACED = (".json", ".html", ".parquet")
_THREADS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


_NOT_RECORDED = {"unfinished", "computed", "traced", "words", "captions"}


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

    @property
    def id(self) -> str:
        """16 hex digits that name this takedown."""
        return digest_of(self.model_dump(mode="json", exclude=_NOT_RECORDED))[:16]

    @property
    def record(self) -> dict[str, Any]:
        """What is stored of it for good: no URL, no caption."""
        return self.model_dump(mode="json", exclude=_NOT_RECORDED | {"changes"}) | {"id": self.id}

    @property
    def traces(self) -> Traces:
        """What names its pairs."""
        return Traces(self.keys, self.words, self.captions)


def plan(place: str, list_uri: str, reason: str, now: datetime) -> Plan:
    """Find what a list of domains, URLs and digests covers. Nothing is changed.

    Args:
        place: URI of an experiment (``{storage}/{name}``) or of a single stage's output, for instance a release.
        list_uri: the list, in the form of the crawler's opt-out list.
        reason: stored in the record.
        now: stored in the record.

    Raises:
        ConfigError: the list is malformed, or it has digests and there is no shard to find their images in.
        DataError: the place has no stage that a takedown can change, or a file is damaged.
    """
    listed = OptOut.load(list_uri)
    finished = stages_at(place)
    outputs = [*_unfinished_crawls(place), *((stage, _MANIFEST) for stage in finished)]
    if not outputs:
        raise DataError(f"{place} holds neither a release nor the crawl or the shards of an experiment")
    if listed.digests and not any(stage.stage in ("crawl", "filter") for stage, _ in outputs):
        raise ConfigError(
            f"{list_uri} holds digests of pictures, and {place} has no shards to find them by: name the experiment's "
            "own storage, or list URLs"
        )
    tables = [uri for stage, _ in outputs for uri in _tables_with_urls(stage)]
    covered = for_each("look for what is listed", tables, lambda uri: _covered_keys(uri, listed))
    keys = set().union(*covered)
    changes: list[Change] = []
    for stage, name in outputs if keys else ():
        above = [each for each in changes if each.before in {parent.digest for parent in stage.parents}]
        change = _change(stage, keys, lost=any(each.pairs for each in above)).model_copy(update={"manifest": name})
        if change.files or change.deleted or above:
            changes.append(change)
    words, captions = _texts_of([stage for stage, _ in outputs], keys) if keys else (set(), set())
    whole = bool(keys) and not storage.exists(storage.join(place, _MANIFEST))
    return Plan(
        when=now.isoformat(timespec="seconds"),
        reason=reason,
        list_name=list_uri.rstrip("/").rsplit("/", 1)[-1],
        list_sha256=hashlib.sha256(storage.read_bytes(list_uri)).hexdigest(),
        listed={name: len(getattr(listed, name)) for name in ("domains", "urls", "digests")},
        keys=tuple(sorted(keys)),
        changes=tuple(changes),
        unfinished=_unfinished(place) if whole else (),
        traced=tuple(traced(place, Traces(keys, words, captions))) if whole else (),
        words=tuple(sorted(words)),
        captions=tuple(sorted(captions)),
    )


def traced(place: str, traces: Traces) -> list[str]:
    """Return the URIs of the records, pages and answers below a place that name pairs; tables of pairs are not read.

    Args:
        place: URI of an experiment, or of any other folder.
        traces: what names the pairs.
    """
    files = [
        uri
        for uri in storage.list_files(place)
        if uri.endswith(_TRACED)
        and not uri.endswith(("/manifest.json", "/experiment.json"))
        and uri[len(place) :].lstrip("/").split("/", 1)[0] not in _OF_TABLES
    ]
    hits = for_each("look for what names them", files, lambda uri: traces.in_file(uri, storage.read_bytes(uri)))
    return [uri for uri, hit in zip(files, hits, strict=True) if hit]


def _folders(place: str, name: str) -> dict[str, list[str]]:
    """Return the folders that attempts at a stage have left, each with its files."""
    folders: dict[str, list[str]] = {}
    for uri in storage.list_files(storage.join(place, name)):
        key = uri[len(storage.join(place, name)) :].lstrip("/").split("/", 1)[0]
        folders.setdefault(storage.join(place, name, key), []).append(uri)
    return folders


def _unfinished_crawls(place: str) -> list[tuple[Manifest, str]]:
    """Return the crawls that failed, or were killed, with the names of their manifests."""
    crawls = []
    for folder, files in sorted(_folders(place, "crawl").items()):
        if storage.join(folder, _MANIFEST) in files:
            continue
        if storage.join(folder, attempt.FAILED) in files:
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
        for folder, files in sorted(_folders(place, name).items())
        if storage.join(folder, _MANIFEST) not in files
    )


def _texts_of(outputs: Sequence[Manifest], keys: Set[str]) -> tuple[set[str], set[str]]:
    """Return the URLs and digests of pairs, and those of their captions that no other pair has."""
    tables = [
        storage.join(stage.uri, path)
        for stage in outputs
        if stage.stage in ("crawl", "filter")
        for path in _tables(stage)
    ]
    columns = ("key", "url", "sha256", "caption", "caption_original")

    def read(uri: str) -> pl.DataFrame:
        return pl.DataFrame(storage.read_columns(uri, columns))

    words: set[str] = set()
    captions: set[str] = set()
    for rows in for_each("read what goes", tables, lambda uri: read(uri).filter(pl.col("key").is_in(keys))):
        words |= {word for name in ("url", "sha256") if name in rows.columns for word in rows[name] if word}
        captions |= {text for name in rows.columns if name.startswith("caption") for text in rows[name] if text}

    def others(uri: str) -> set[str]:
        rows = read(uri).filter(~pl.col("key").is_in(keys))
        texts = (rows[name] for name in rows.columns if name.startswith("caption"))
        return {text for column in texts for text in column.filter(column.is_in(captions))}

    return words, captions.difference(*for_each("read what stays", tables, others))


def stages_at(place: str) -> list[Manifest]:
    """Returns the manifest of every finished stage that holds pairs, parents first.

    ``uri`` of each is where the stage lies now, which for a copy is not where it was made.

    Args:
        place: URI of an experiment or of a single stage's output.
    """
    if storage.exists(storage.join(place, _MANIFEST)):
        uris = [storage.join(place, _MANIFEST)]
    else:
        uris = [uri for name in _STAGES for uri in storage.list_files(storage.join(place, name), f"/{_MANIFEST}")]
    manifests = [manifest.load(uri).model_copy(update={"uri": uri.removesuffix(f"/{_MANIFEST}")}) for uri in uris]
    manifests = [each for each in manifests if each.stage in _STAGES]
    return sorted(manifests, key=lambda each: (_STAGES.index(each.stage), each.uri))


def for_each(what: str, items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Apply a function to files in several threads, and show the progress.

    Args:
        what: what is done, for the progress display.
        items: the files.
        work: the function.

    Returns:
        Its results, in the order of the items.
    """
    results = []
    with progress.track(what, len(items), "files") as advance, ThreadPoolExecutor(_THREADS) as pool:
        for result in pool.map(work, items):
            results.append(result)
            advance(1)
    return results


def _tables_with_urls(stage: Manifest) -> list[str]:
    if stage.stage == "release":
        return stage.part_uris(suffix=".csv")
    # What a finished search has found is in the plan too.
    left_out = "search/" if stage.stage == "crawl" and stage.parts else "\0"
    return [storage.join(stage.uri, path) for path in _tables(stage) if not path.startswith(left_out)]


def _covered_keys(uri: str, listed: OptOut) -> set[str]:
    if uri.endswith(".csv"):
        rows = release.read_csv(uri)
        return {key_of(url) for url in rows.filter(listed.covers_pairs(rows))["url"]}
    rows = pl.DataFrame(storage.read_columns(uri, ("key", "url", "sha256")))
    covered = rows.filter(listed.covers_pairs(rows))
    # An older stage may have made its keys of other spellings of the URLs than a release's are found by.
    return {*covered["key"], *map(key_of, covered["url"])}


def _tables(stage: Manifest) -> list[str]:
    """Returns the paths of a stage's tables and CSV files. A tar is not among them: it changes with its table."""
    if stage.stage == "crawl":
        # The plan of a crawl is not a part of its output, and an attempt that was killed has no parts.
        folders = [storage.join(stage.uri, folder) for folder in ("parts", "plan", "search")]
        return [uri[len(stage.uri) + 1 :] for folder in folders for uri in storage.list_files(folder, ".parquet")]
    return [part.path for part in stage.parts if part.path.endswith((".parquet", ".csv"))]


def _change(stage: Manifest, keys: Set[str], *, lost: bool) -> Change:
    """Returns how a stage's output and manifest would differ if these pairs had never been downloaded.

    Args:
        stage: its manifest.
        keys: keys of the pairs that go.
        lost: whether a parent of the stage loses pairs.
    """
    whole = Change(stage=stage.stage, uri=stage.uri, before=stage.digest)
    changes = for_each(f"look through {stage.stage}", _tables(stage), lambda path: _change_of_table(stage, path, keys))
    changes.append(_change_of_pages(stage, keys, lost=lost or any(change.pairs for change in changes)))
    if stage.stage == "crawl" and _is_bound(storage.join(stage.uri, previous.INDEX), keys):
        changes.append(Change(stage=stage.stage, uri=stage.uri, before="", files={previous.INDEX: 0}))
    for change in changes:
        whole = whole.model_copy(
            update={
                "files": whole.files | change.files,
                "deleted": whole.deleted + change.deleted,
                "counts": _sum(whole.counts, change.counts),
                "dropped": _sum(whole.dropped, change.dropped),
                "pairs": whole.pairs + change.pairs,
            }
        )
    return whole


def _is_bound(index_uri: str, keys: Set[str]) -> bool:
    """Return whether a crawl's index of its parts names a key as the first or the last of a part."""
    if not storage.exists(index_uri):
        return False
    index = storage.read_table(index_uri)
    return not keys.isdisjoint([*index["first_key"].to_pylist(), *index["last_key"].to_pylist()])


def _change_of_table(stage: Manifest, path: str, keys: Set[str]) -> Change:
    """Returns what one table or CSV file, and the tar beside it, contribute to a stage's change."""
    uri = storage.join(stage.uri, path)
    files, counts, dropped, pairs = {}, {}, {}, 0
    if path.endswith(".csv"):
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
    files = {name: rows for name, rows in files.items() if rows}
    return Change(stage=stage.stage, uri=stage.uri, before="", files=files, counts=counts, dropped=dropped, pairs=pairs)


def _change_of_pages(stage: Manifest, keys: Set[str], *, lost: bool) -> Change:
    """Returns what the results, the data docs and the dataset card contribute to a stage's change.

    Args:
        stage: its manifest.
        keys: keys of the pairs that go.
        lost: whether any of the pairs that the pages may show goes.
    """
    paths = {part.path for part in stage.parts}
    rewritten: dict[str, int] = {}
    deleted: list[str] = []
    if RESULTS in paths:
        results = storage.read_json(storage.join(stage.uri, RESULTS))
        if any(sample.get("key") in keys for outcome in results["expectations"] for sample in outcome["samples"]):
            rewritten[RESULTS] = 0
        if rewritten or (lost and _docs_show_more(results)):
            docs = storage.list_files(storage.join(stage.uri, "docs"))
            deleted += [path for path in (uri[len(stage.uri) + 1 :] for uri in docs) if path != card.PATH]
    if card.PATH in paths:
        shown = card.read(stage.uri)
        if shown is None:
            # Without the card's data nobody can tell which pairs it shows.
            deleted += [card.PATH] if lost or deleted else []
        elif (shown.docs and deleted) or any(pair.key in keys for pair in shown.pairs):
            rewritten[card.PATH] = 0
    return Change(stage=stage.stage, uri=stage.uri, before="", files=rewritten, deleted=tuple(deleted))


def _docs_show_more(results: Mapping[str, Any]) -> bool:
    """Tell whether the data docs may show pairs that the results do not list.

    The results list a few rows that break an expectation; the docs list a few for each batch of pairs.
    """
    return any(outcome["unexpected"] > len(outcome["samples"]) for outcome in results["expectations"])


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}
