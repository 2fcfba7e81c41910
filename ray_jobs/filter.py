"""The filter job: sections 3.1 and 3.2 over a crawl's parts, the split, and the repacking into shards.

This file says what Ray schedules and how a killed run continues. What is computed and decided is in
``wukong/curate``: ``apply.py`` over tables of pairs, ``rules/`` with one file a rule, ``split.py``, ``repack.py``.

Consecutive parts of the crawl form a group. A Ray task works on one group, part by part, and leaves a record when it is
done. The passes are:

1. count: each group writes the hashes of its captions; each range of hashes is counted (exact over the whole corpus);
2. rules: compute the rules' columns, decide, mask names (Parquet only, no picture is read);
3. look, only where a rule reads pictures: compute columns from the pictures of the pairs that are left, in a stage of
   its own, so that with another threshold no picture is read again; then decide over these columns;
4. compare, only where a rule compares pairs with each other: find the pairs that repeat an earlier one, over all
   groups;
5. split: gather over all groups the held-out pictures and the captions that training sees;
6. assign: the split and the place of each kept pair, sorted by place; dropped pairs are written with their reason;
7. repack: each range of places becomes shards, pictures are copied byte for byte.

A task holds one part, one group or one range, so its memory does not depend on how many there are. What every task
needs to know of the whole corpus lies once in Ray's object store: how often the repeated captions occur, which pairs
repeat an earlier one, the held-out pictures.

Every pass is a function of the crawl's files and the config, so a killed run continues to the same bytes.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import ray

from ray_jobs import gpus, metrics
from wukong import stages
from wukong.config.experiment import Experiment
from wukong.config.filter import Filter
from wukong.curate import apply, caption_counts, duplicates, repack, rules, split
from wukong.curate.caption_counts import CaptionCounts, Hashes
from wukong.curate.pairs import DROPPED, read_pairs
from wukong.curate.rule import HELD_BACK
from wukong.curate.text import clean
from wukong.errors import DataError
from wukong.stages import places
from wukong.store import storage
from wukong.store.manifest import Manifest, Part, Stage

log = logging.getLogger(__name__)

_GROUPS = 64
_MAX_ROWS = 100_000
_BINS = 1024
_RANGE_ROWS = 2_000_000
_BAND_ROWS = 4_000_000
_ROW_GROUP = 4096


@dataclass(frozen=True)
class _Group:
    """Consecutive parts of the crawl: the number of the first, and the URIs of their Parquet files."""

    number: int
    first: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class _Piece:
    """A run of bins of a split's shuffled order, and the shards that it becomes."""

    number: int
    split: str
    bins: tuple[int, int]
    rows: int
    first_shard: int
    shards: int


def run(experiment: Experiment, parents: Mapping[str, Manifest]) -> Manifest:
    """Filter a crawl.

    Args:
        experiment: its ``filter`` section decides the output.
        parents: the crawl's manifest under ``crawl``.

    Returns:
        The manifest. ``counts`` has ``pairs`` (downloaded pairs that came in), ``kept`` (passed every rule) and the
        pairs of each split; ``dropped`` has the pairs that each rule dropped, and those that were held back.

    Raises:
        DataError: a part is truncated, has another schema or lacks a picture, or nothing is left to train on.
        ConfigError: what a rule reads, for instance its lists of words, cannot be used.
    """
    crawl = parents["crawl"]
    stage = places.filtering(experiment, crawl)
    return stage.made(lambda: _filter(stage, experiment, crawl))


def _filter(stage: Stage, experiment: Experiment, crawl: Manifest) -> Manifest:
    settings = experiment.filter
    rules.load(settings)  # a list that cannot be used ends the job here, before any task
    groups = _groups(crawl)

    judged = _run_missing(
        "rules", stage, _apply_rules, groups, lambda: (settings, ray.put(_count(stage, groups, settings)))
    )
    metrics.add("wukong_filter_rows", sum(record["pairs"] for record in judged))
    _show_dropped(judged)
    by_pictures = []
    if rules.needs_pictures(settings):
        by_pictures = _run_missing(
            "decide",
            stage,
            _apply_picture_rules,
            groups,
            lambda: (settings, _compute_from_pictures(experiment, crawl, groups, stage)),
        )
        _show_dropped(by_pictures)
    assigned = _run_missing(
        "assign", stage, _assign, groups, lambda: (settings, *_corpus_facts(stage, groups, settings))
    )
    _show_dropped(assigned)
    pieces = _pieces([record["bins"] for record in assigned], settings.shard_size)
    repacked = _run_missing("repack", stage, _repack, pieces, lambda: (len(groups),))

    applied = rules.applied(settings)
    dropped = dict.fromkeys([*applied, HELD_BACK], 0)
    for record in [*judged, *by_pictures, *assigned]:
        for rule, rows in record["dropped"].items():
            dropped[rule] += rows
    pairs = sum(record["pairs"] for record in judged)
    counts = {"pairs": pairs, "kept": pairs - sum(dropped[rule] for rule in applied)}
    for name in (split.TRAIN, *(holdout.name for holdout in settings.split.holdouts)):
        counts[name] = sum(piece.rows for piece in pieces if piece.split == name)
    if not pairs:
        raise DataError(
            f"no pair came in: the crawl at {crawl.uri} holds no picture, because all were taken down or it is an old "
            "one that failed. Crawl anew, with other queries or another list"
        )
    if not counts[split.TRAIN]:
        reasons = ", ".join(f"{rule} dropped {rows}" for rule, rows in dropped.items() if rows)
        raise DataError(
            f"no pair is left to train on: {pairs} came in; {reasons or 'all are held out'}. "
            "Loosen filter.* or filter.split, or crawl more"
        )
    parts = [Part.model_validate(part) for record in [*assigned, *repacked] for part in record["parts"]]
    return stage.commit(parts, counts=counts, dropped=dropped)


def _show_dropped(records: Sequence[Mapping[str, Any]]) -> None:
    for record in records:
        for rule, rows in record["dropped"].items():
            metrics.add("wukong_filter_dropped", rows, rule=rule)


def _groups(crawl: Manifest) -> list[_Group]:
    parts = [part for part in crawl.parts if part.path.startswith("parts/") and part.path.endswith(".parquet")]
    if not sum(part.rows for part in parts):
        raise DataError(f"the crawl at {crawl.uri} is empty: its queries found nothing")
    limit = min(_MAX_ROWS, -(-sum(part.rows for part in parts) // _GROUPS))
    cuts, rows = [0], 0
    for number, part in enumerate(parts):
        if number > cuts[-1] and rows + part.rows > limit:
            cuts.append(number)
            rows = 0
        rows += part.rows
    uris = [storage.join(crawl.uri, part.path) for part in parts]
    ends = [*cuts[1:], len(parts)]
    return [_Group(n, low, tuple(uris[low:high])) for n, (low, high) in enumerate(zip(cuts, ends, strict=True))]


def _run_missing(
    name: str,
    stage: Stage,
    task: Callable[..., dict[str, Any]],
    units: Sequence[_Group] | Sequence[_Piece],
    shared: Callable[[], tuple[Any, ...]],
    num_gpus: int = 0,
) -> list[dict[str, Any]]:
    """Run a task for each group or piece that has no record yet, and return the records of all.

    Args:
        name: name of the pass, by which records are found again.
        stage: that keeps the records.
        task: takes the stage, the group or piece, and what ``shared`` returns.
        units: all groups or pieces.
        shared: makes what the tasks share; it is called only if a task must run.
        num_gpus: what each task asks for.
    """
    records = {unit.number: stage.finished_task(f"{name}-{unit.number:05d}") for unit in units}
    missing = [unit for unit in units if records[unit.number] is None]
    if missing:
        common = shared()
        made = _map(_run_and_record, [(task, name, stage, unit, *common) for unit in missing], num_gpus)
        records |= {unit.number: record for unit, record in zip(missing, made, strict=True)}
    log.info("filter: %s: %d of %d groups done, the others were done before", name, len(missing), len(units))
    return [record for record in records.values() if record is not None]


def _run_and_record(
    task: Callable[..., dict[str, Any]], name: str, stage: Stage, unit: _Group | _Piece, *shared: Any
) -> dict[str, Any]:
    record = task(stage, unit, *shared)
    stage.commit_task(f"{name}-{unit.number:05d}", record)
    return record


def _map(task: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], num_gpus: int = 0) -> list[Any]:
    remote = ray.remote(task).options(num_gpus=num_gpus)
    return list(ray.get([remote.remote(*entry) for entry in arguments]))


def _count(stage: Stage, groups: Sequence[_Group], settings: Filter) -> CaptionCounts:
    """Count every caption of the corpus: each group writes its hashes, each range of hashes is merged on its own."""
    rows = sum(_map(_hash, [(stage, group, settings) for group in groups]))
    ranges = max(1, -(-rows // _RANGE_ROWS))
    edges = [2**64 * number // ranges for number in range(ranges + 1)]
    merged = _map(_merge, [(stage, len(groups), (low, high - 1)) for low, high in pairwise(edges)])
    return caption_counts.join(merged)


def _hash(stage: Stage, group: _Group, settings: Filter) -> int:
    hashes = [caption_counts.hashes(clean.cleaned(read_pairs(uri)["caption"], settings)) for uri in group.parts]
    ordered = np.sort(np.concatenate(hashes))
    # Not through the object store: Ray would keep that many small pieces in the memory of the driver. And made anew by
    # every run: another version of Polars may hash otherwise.
    with storage.open_output(_hashes_uri(stage, group.number)) as stream:
        pl.DataFrame({"hash": ordered}).write_parquet(stream, compression="uncompressed", row_group_size=_ROW_GROUP)
    return len(ordered)


def _merge(stage: Stage, groups: int, bounds: tuple[int, int]) -> CaptionCounts:
    low, high = map(np.uint64, bounds)
    wanted = [("hash", ">=", low), ("hash", "<=", high)]
    pieces = (_read_some(_hashes_uri(stage, group), wanted) for group in range(groups))
    return caption_counts.merge(*(piece["hash"].to_numpy() for piece in pieces))


def _read_some(uri: str, wanted: Sequence[tuple[str, str, Any]]) -> pl.DataFrame:
    """Rows of a sorted table, of which little else is read."""
    return pl.DataFrame(
        storage.read_with(uri, lambda store, path: pq.read_table(path, filesystem=store, filters=list(wanted)))
    )


def _apply_rules(stage: Stage, group: _Group, settings: Filter, counts: CaptionCounts) -> dict[str, Any]:
    loaded = rules.load(settings)
    pairs, dropped = 0, dict.fromkeys((rule.name for rule in rules.decided("pairs", settings)), 0)
    for number, uri in enumerate(group.parts, group.first):
        judged = apply.apply_rules(read_pairs(uri), settings, counts, loaded)
        storage.write_table(_judged_uri(stage, number), judged.to_arrow())
        pairs += len(judged)
        for reason, rows in apply.count_reasons([judged], dropped).items():
            dropped[reason] += rows
    return {"pairs": pairs, "dropped": dropped}


def _compute_from_pictures(experiment: Experiment, crawl: Manifest, groups: Sequence[_Group], stage: Stage) -> Stage:
    """Finish the stage that holds the columns which rules compute from the pictures of the pairs that are left."""
    config = rules.config_of(experiment.filter, exclude=rules.picture_thresholds() | {"shard_size", "seed", "split"})
    computed = Stage(experiment.root, "look", config, [crawl], version=stages.of("look").version)

    def look() -> Manifest:
        on_gpu = rules.run_a_model(experiment.filter) and gpus.count() > 0
        loaders = experiment.pretrain.loader_workers if on_gpu else 0
        records = _run_missing(
            "look",
            computed,
            _read_pictures,
            groups,
            lambda: (stage, experiment.filter, on_gpu, loaders),
            num_gpus=1 if on_gpu else 0,
        )
        return computed.commit([Part.model_validate(part) for record in records for part in record["parts"]])

    computed.made(look)
    return computed


def _read_pictures(
    computed: Stage, group: _Group, stage: Stage, settings: Filter, on_gpu: bool, loaders: int
) -> dict[str, Any]:
    device, parts = gpus.of_task() if on_gpu else "cpu", []
    for number, uri in enumerate(group.parts, group.first):
        judged = pl.DataFrame(storage.read_table(_judged_uri(stage, number), ["key", "caption", "dropped_by"]))
        left = judged.filter(pl.col("dropped_by").is_null())
        captions = dict(left.select("key", "caption").iter_rows())
        tar = f"{uri.removesuffix('.parquet')}.tar"
        columns = rules.compute_from_pictures(tar, captions, settings, device, loaders)
        storage.write_table(computed.path(_picture_columns_path(number)), columns.to_arrow())
        parts.append(computed.describe(_picture_columns_path(number), len(columns)).model_dump())
    return {"parts": parts}


def _apply_picture_rules(stage: Stage, group: _Group, settings: Filter, computed: Stage) -> dict[str, Any]:
    dropped = dict.fromkeys((rule.name for rule in rules.decided("pictures", settings)), 0)
    for number in range(group.first, group.first + len(group.parts)):
        judged = pl.DataFrame(storage.read_table(_judged_uri(stage, number)))
        columns = pl.DataFrame(storage.read_table(computed.path(_picture_columns_path(number))))
        judged = apply.apply_picture_rules(judged, columns, settings)
        for reason, rows in apply.count_reasons([judged], dropped).items():
            dropped[reason] += rows
        storage.write_table(_judged_uri(stage, number, by_pictures=True), judged.to_arrow())
    return {"dropped": dropped}


def _judged_uri(stage: Stage, part: int, *, by_pictures: bool = False) -> str:
    return stage.path(f"_work/{'looked' if by_pictures else 'rules'}/{part:05d}.parquet")


def _picture_columns_path(part: int) -> str:
    return f"parts/{part:05d}.parquet"


def _hashes_uri(stage: Stage, group: int) -> str:
    return stage.path(f"_work/hashes/{group:05d}.parquet")


def _placed_uri(stage: Stage, group: int) -> str:
    return stage.path(f"_work/placed/{group:05d}.parquet")


def _judged(
    stage: Stage, group: _Group, settings: Filter, repeats: Mapping[str, Hashes] | None = None
) -> Iterator[pl.DataFrame]:
    """The rows of a group's parts with the decisions so far, one table a part.

    Args:
        stage: the filter.
        group: whose rows.
        settings: which rules are on.
        repeats: result of ``_repeats``; without it, what the rules decided that compare no pairs.
    """
    for number in range(group.first, group.first + len(group.parts)):
        uri = _judged_uri(stage, number, by_pictures=rules.needs_pictures(settings))
        yield apply.apply_comparisons(pl.DataFrame(storage.read_table(uri)), repeats or {}, settings)


def _kept(
    stage: Stage, group: _Group, settings: Filter, repeats: Mapping[str, Hashes] | None = None
) -> Iterator[pl.DataFrame]:
    for frame in _judged(stage, group, settings, repeats):
        yield frame.filter(pl.col("dropped_by").is_null())


def _corpus_facts(stage: Stage, groups: Sequence[_Group], settings: Filter) -> tuple[Any, Any, Any]:
    """What ``_assign`` needs of the whole corpus, in the object store: repeats, held-out pictures, trained captions."""
    repeats = ray.put(_repeats(stage, groups, settings))
    facts = _map(_held_out_pictures_and_asked_captions, [(stage, group, settings, repeats) for group in groups])
    held_out, asked = (ray.put(_union(arrays)) for arrays in zip(*facts, strict=True))
    trained = _map(_trained_captions, [(stage, group, settings, repeats, held_out, asked) for group in groups])
    return repeats, held_out, ray.put(_union(trained))


def _repeats(stage: Stage, groups: Sequence[_Group], settings: Filter) -> dict[str, Hashes]:
    """Find the pairs that repeat one with an earlier key, by each rule that compares pairs.

    Returns:
        By the column of the rule's comparison, the keys of these pairs as numbers.
    """
    found = {}
    for rule in rules.decided("corpus", settings):
        if rule.comparison is not None:
            distance = rule.comparison.distance(settings)
            found[rule.comparison.column] = _repeats_by(rule.name, distance, stage, groups, settings)
    return found


def _repeats_by(rule: str, distance: int, stage: Stage, groups: Sequence[_Group], settings: Filter) -> Hashes:
    """Each group sorts its pairs into bands and ranges of values; then each range of a band is searched by itself."""
    rows, ranges = len(groups) * _MAX_ROWS, 1
    while ranges * _BAND_ROWS < rows:
        ranges *= 2
    pieces = (distance + 1) * ranges
    sort = ray.remote(_sort_into_bands).options(num_returns=pieces)
    search = ray.remote(_search_range)
    sorted_ = [sort.remote(stage, group, settings, rule, distance, ranges) for group in groups]
    by_group = sorted_ if pieces > 1 else [[reference] for reference in sorted_]
    found = [search.remote(distance, piece // ranges, *(entry[piece] for entry in by_group)) for piece in range(pieces)]
    return _union(ray.get(found))


def _sort_into_bands(stage: Stage, group: _Group, settings: Filter, name: str, distance: int, ranges: int) -> Any:
    frame = pl.concat(_kept(stage, group, settings))
    values = rules.compared_values(name, frame, settings)
    bands = duplicates.bands((values, duplicates.numbers(frame["key"])), distance, ranges)
    return bands if len(bands) > 1 else bands[0]


def _search_range(distance: int, band: int, *pieces: duplicates.Pictures) -> Hashes:
    values, keys = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    return duplicates.repeats((values, keys), distance, band)


def _union(arrays: Sequence[Hashes]) -> Hashes:
    return np.unique(np.concatenate(arrays))


def _held_out_pictures_and_asked_captions(
    stage: Stage, group: _Group, settings: Filter, repeats: Mapping[str, Hashes]
) -> tuple[Hashes, Hashes]:
    held_out, asked = [], []
    for frame in _kept(stage, group, settings, repeats):
        held_out.append(split.held_out_pictures(frame, settings.split))
        asked.append(split.asked_captions(frame, settings.split))
    return _union(held_out), _union(asked)


def _trained_captions(
    stage: Stage, group: _Group, settings: Filter, repeats: Mapping[str, Hashes], held_out: Hashes, asked: Hashes
) -> Hashes:
    kept = _kept(stage, group, settings, repeats)
    found = [split.trained_captions(frame, settings.split, held_out) for frame in kept]
    return np.intersect1d(_union(found), asked, assume_unique=True)


def _assign(
    stage: Stage,
    group: _Group,
    settings: Filter,
    repeats: Mapping[str, Hashes],
    held_out: Hashes,
    trained: Hashes,
) -> dict[str, Any]:
    placed, dropped = [], []
    for uri, judged in zip(group.parts, _judged(stage, group, settings, repeats), strict=True):
        kept = judged.filter(pl.col("dropped_by").is_null())
        kept = kept.with_columns(split=split.assign(kept, settings.split, held_out, trained))
        kept = apply.hold_back(kept, settings)
        dropped.append(judged.filter(pl.col("dropped_by").is_not_null()))
        dropped.append(kept.filter(pl.col("dropped_by").is_not_null()).drop("split"))
        kept = kept.filter(pl.col("dropped_by").is_null()).drop("dropped_by")
        kept = kept.with_columns(position=repack.positions(kept["key"], settings.seed))
        placed.append(repack.locate(kept, uri.removesuffix(".parquet") + ".tar"))
    pairs, out = pl.concat(placed).sort("split", "position", "key"), pl.concat(dropped)
    # Small row groups, sorted: a task that needs a range of a split reads little else.
    with storage.open_output(_placed_uri(stage, group.number)) as stream:
        pairs.write_parquet(stream, row_group_size=_ROW_GROUP)
    path = f"dropped/{group.number:05d}.parquet"
    storage.write_table(stage.path(path), out.select(DROPPED.names).to_arrow().cast(DROPPED))
    reasons = (HELD_BACK, *(rule.name for rule in rules.decided("corpus", settings)))
    return {
        "bins": {str(name): _histogram(rows["position"]) for (name,), rows in pairs.group_by("split")},
        "dropped": apply.count_reasons([out], reasons),
        "parts": [stage.describe(path, len(out)).model_dump()],
    }


def _histogram(positions: pl.Series) -> list[int]:
    bins = (positions // (repack.POSITIONS // _BINS)).to_numpy()
    return [int(count) for count in np.bincount(bins, minlength=_BINS)]


def _pieces(histograms: Sequence[Mapping[str, Sequence[int]]], shard_size: int) -> list[_Piece]:
    """Cut each split's shuffled order into pieces that fit into memory, and number the shards they become."""
    pieces: list[_Piece] = []
    for name in sorted({name for entry in histograms for name in entry}):
        total = np.sum([entry[name] for entry in histograms if name in entry], axis=0)
        rows = int(total.sum())
        shards = -(-rows // shard_size)
        first = 0
        for low, high in repack.ranges(list(total), max(min(shards, _GROUPS), -(-rows // _MAX_ROWS))):
            inside = int(total[low:high].sum())
            count = max(1, round(inside * shards / rows))
            pieces.append(_Piece(len(pieces), name, (low, high), inside, first, count))
            first += count
    return pieces


def _repack(stage: Stage, piece: _Piece, groups: int) -> dict[str, Any]:
    low, high = (edge * (repack.POSITIONS // _BINS) for edge in piece.bins)
    wanted = [("split", "==", piece.split), ("position", ">=", low), ("position", "<", high)]
    frames = [_read_some(_placed_uri(stage, group), wanted) for group in range(groups)]
    pairs = pl.concat(frames).sort("position", "key")
    parts: list[Part] = []
    start = 0
    for shard, size in enumerate(repack.balanced(piece.rows, piece.shards), piece.first_shard):
        name = f"{piece.split}/{shard:05d}"
        repack.write_shard(stage.path(name), pairs.slice(start, size))
        parts += [stage.describe(f"{name}.tar", size), stage.describe(f"{name}.parquet", size)]
        start += size
    return {"parts": [part.model_dump() for part in parts]}
