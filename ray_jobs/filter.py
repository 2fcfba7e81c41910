"""The filter job: sections 3.1 and 3.2 over a crawl's parts, the split, and the repacking into shards.

Consecutive parts form a group, the unit of work and of recovery; a task goes through it part by part. The passes:

1. count: caption hashes of each group, merged range by range (exact over the whole corpus);
2. rules: compute the columns, decide, mask names (Parquet only, no picture is read);
3. look, only where a rule asks for it: perceptual hashes and similarities of the pictures of kept pairs, in a stage of
   its own, so that another threshold over them looks at no picture again; then decide over them, and gather over all
   groups the pairs whose picture another pair shows;
4. split: the pictures that training may not see and the captions that it sees, gathered over all groups;
5. assign: the split and place of each kept pair, sorted by place; dropped pairs are written with their rule;
6. repack: each range of places becomes shards, pictures copied byte for byte.

A task holds a part, a group or a range, so its memory does not depend on how many there are. What every task must know
of the whole corpus, how often the repeated captions occur and what the split withholds, lies once in the object store.

Every pass is a function of the crawl's files, the config and the seed, so a killed run continues to the same bytes.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import ray

from wukong import stages, storage
from wukong.config import Experiment, Filter
from wukong.curate import duplicates, names, phash, repack, rules, split
from wukong.curate.pairs import read_pairs
from wukong.curate.rules import frequency, sensitive
from wukong.curate.rules.frequency import CaptionCounts, Hashes
from wukong.curate.text import clean
from wukong.data.schema import DROPPED
from wukong.data.shards import pictures
from wukong.errors import DataError
from wukong.manifest import Manifest, Part, Stage

log = logging.getLogger(__name__)

_VERSION = stages.of("filter").version
_GROUPS = 64
_MAX_ROWS = 100_000
_BINS = 1024
_RANGE_ROWS = 2_000_000
_BAND_ROWS = 4_000_000
_PICTURES = 64
_ROW_GROUP = 4096
_NOT_LOOKED_BY = {"min_similarity", "max_hash_distance", "shard_size", "split"}


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
        experiment: its ``filter`` section and seed decide the output.
        parents: the crawl's manifest under ``crawl``.

    Returns:
        The manifest. ``counts`` has ``pairs`` (downloaded pairs that came in), ``kept`` (passed every rule) and the
        pairs of each split; ``dropped`` the pairs left out by each of ``RULES`` and ``held_back``.

    Raises:
        DataError: a part is truncated, has another schema or lacks a picture, or nothing is left to train on.
        ConfigError: the lists of sensitive words cannot be used.
    """
    settings, crawl = experiment.filter, parents["crawl"]
    config = settings.model_dump(mode="json") | {"seed": experiment.seed}
    stage = Stage(experiment.root, "filter", config, [crawl], version=_VERSION)
    if finished := stage.finished():
        return finished
    sensitive.load(settings.sensitive_words, with_default=settings.default_words)
    groups = _groups(crawl)

    decided = _each("rules", stage, _apply_rules, groups, lambda: (settings, ray.put(_count(stage, groups, settings))))
    looked = []
    if _looks(settings):
        looked = _each("decide", stage, _decide, groups, lambda: (settings, _looked(experiment, crawl, groups, stage)))
    assigned = _each(
        "assign", stage, _assign, groups, lambda: (settings, experiment.seed, *_corpus_facts(stage, groups, settings))
    )
    pieces = _pieces([record["bins"] for record in assigned], settings.shard_size)
    repacked = _each("repack", stage, _repack, pieces, lambda: (len(groups),))

    applied = rules.applied(settings)
    dropped = dict.fromkeys([*applied, rules.HELD_BACK], 0)
    for record in [*decided, *looked, *assigned]:
        for rule, rows in record["dropped"].items():
            dropped[rule] += rows
    pairs = sum(record["pairs"] for record in decided)
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
    manifest = stage.commit(parts, counts=counts, dropped=dropped)
    storage.delete(stage.path("_work"))
    return manifest


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


def _each(
    name: str,
    stage: Stage,
    task: Callable[..., dict[str, Any]],
    units: Sequence[_Group] | Sequence[_Piece],
    shared: Callable[[], tuple[Any, ...]],
) -> list[dict[str, Any]]:
    """Run a task for each unit that is not recorded as complete; what tasks share is made only if one must run."""
    records = {unit.number: stage.finished_task(f"{name}-{unit.number:05d}") for unit in units}
    missing = [unit for unit in units if records[unit.number] is None]
    if missing:
        common = shared()
        made = _map(_recorded, [(task, name, stage, unit, *common) for unit in missing])
        records |= {unit.number: record for unit, record in zip(missing, made, strict=True)}
    log.info("filter: %s: %d of %d groups done, the others were before", name, len(missing), len(units))
    return [record for record in records.values() if record is not None]


def _recorded(
    task: Callable[..., dict[str, Any]], name: str, stage: Stage, unit: _Group | _Piece, *shared: Any
) -> dict[str, Any]:
    record = task(stage, unit, *shared)
    stage.commit_task(f"{name}-{unit.number:05d}", record)
    return record


def _map(task: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    remote = ray.remote(task)
    return list(ray.get([remote.remote(*entry) for entry in arguments]))


def _count(stage: Stage, groups: Sequence[_Group], settings: Filter) -> CaptionCounts:
    """Count every caption of the corpus: each group writes its hashes, each range of hashes is merged on its own."""
    rows = sum(_map(_hash, [(stage, group, settings) for group in groups]))
    ranges = max(1, -(-rows // _RANGE_ROWS))
    edges = [2**64 * number // ranges for number in range(ranges + 1)]
    merged = _map(_merge, [(stage, len(groups), (low, high - 1)) for low, high in pairwise(edges)])
    return frequency.join(merged)


def _hash(stage: Stage, group: _Group, settings: Filter) -> int:
    hashes = [frequency.hashes(clean.cleaned(read_pairs(uri)["caption"], settings)) for uri in group.parts]
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
    return frequency.merge(*(piece["hash"].to_numpy() for piece in pieces))


def _read_some(uri: str, wanted: Sequence[tuple[str, str, Any]]) -> pl.DataFrame:
    """Rows of a sorted table, of which little else is read."""
    filesystem, path = storage.filesystem(uri)
    return pl.DataFrame(pq.read_table(path, filesystem=filesystem, filters=list(wanted)))


def _apply_rules(stage: Stage, group: _Group, settings: Filter, counts: CaptionCounts) -> dict[str, Any]:
    words = sensitive.load(settings.sensitive_words, with_default=settings.default_words)
    pairs, dropped = 0, dict.fromkeys(rules.RULES, 0)
    for number, uri in enumerate(group.parts, group.first):
        judged = _judge(read_pairs(uri), settings, counts, words)
        storage.write_table(_judged_uri(stage, number), judged.to_arrow())
        pairs += len(judged)
        for rule, rows in judged["dropped_by"].drop_nulls().value_counts().iter_rows():
            dropped[rule] += rows
    return {"pairs": pairs, "dropped": dropped}


def _judge(
    pairs: pl.DataFrame, settings: Filter, counts: CaptionCounts, words: sensitive.SensitiveWords
) -> pl.DataFrame:
    original = pairs["caption"]
    columns = rules.compute(pairs.with_columns(clean.cleaned(original, settings)), settings, counts, words)
    columns = columns.with_columns(
        dropped_by=rules.decide(columns, settings),
        caption_original=original,
        image_hash=pl.lit(None, pl.UInt64),
        similarity=pl.lit(None, pl.Float32),
    )
    if settings.mask_names:
        kept = columns["dropped_by"].is_null()
        masked = pl.Series(names.mask(columns["caption"].filter(kept), settings.name_care), dtype=pl.String)
        columns = columns.with_columns(caption=columns["caption"].scatter(kept.arg_true(), masked))
    return columns.select(DROPPED.names)


def _looks(settings: Filter) -> bool:
    """Whether a rule must look at pictures themselves."""
    return settings.duplicate_images == "similar" or settings.similarity_model is not None


def _looked(experiment: Experiment, crawl: Manifest, groups: Sequence[_Group], stage: Stage) -> Stage:
    """What the rules must know of the pictures of pairs that are kept so far, as a finished stage."""
    config = experiment.filter.model_dump(mode="json", exclude=_NOT_LOOKED_BY)
    look = Stage(experiment.root, "look", config, [crawl], version=_VERSION)
    if not look.finished():
        records = _each("look", look, _look, groups, lambda: (stage, experiment.filter))
        look.commit([Part.model_validate(part) for record in records for part in record["parts"]])
    return look


def _look(look: Stage, group: _Group, stage: Stage, settings: Filter) -> dict[str, Any]:
    parts = []
    for number, uri in enumerate(group.parts, group.first):
        judged = pl.DataFrame(storage.read_table(_judged_uri(stage, number), ["key", "caption", "dropped_by"]))
        kept = judged.filter(pl.col("dropped_by").is_null())
        seen = _seen(dict(kept.select("key", "caption").iter_rows()), f"{uri.removesuffix('.parquet')}.tar", settings)
        storage.write_table(look.path(_look_path(number)), seen.to_arrow())
        parts.append(look.describe(_look_path(number), len(seen)).model_dump())
    return {"parts": parts}


def _decide(stage: Stage, group: _Group, settings: Filter, look: Stage) -> dict[str, Any]:
    left_out = 0
    for number in range(group.first, group.first + len(group.parts)):
        judged = pl.DataFrame(storage.read_table(_judged_uri(stage, number)))
        seen = pl.DataFrame(storage.read_table(look.path(_look_path(number))))
        judged = judged.drop(seen.columns[1:]).join(seen, on="key", how="left", maintain_order="left")
        unfit = pl.col("similarity") < settings.min_similarity
        judged = judged.with_columns(
            dropped_by=pl.when(pl.col("dropped_by").is_null() & unfit)
            .then(pl.lit("similarity"))
            .otherwise("dropped_by")
        )
        left_out += int((judged["dropped_by"] == "similarity").sum())
        storage.write_table(_judged_uri(stage, number, looked=True), judged.select(DROPPED.names).to_arrow())
    return {"dropped": {"similarity": left_out} if settings.similarity_model else {}}


def _seen(captions: Mapping[str, str], tar: str, settings: Filter) -> pl.DataFrame:
    """What the rules must know of the pictures of some pairs: ``key`` and the columns that are asked for."""
    frames = [pl.DataFrame(schema={"key": pl.String})]
    wanted = ((key, data) for key, data in pictures(tar) if key in captions)
    while batch := list(itertools.islice(wanted, _PICTURES)):
        keys, names = [key for key, _ in batch], [f"{key}.jpg of {tar}" for key, _ in batch]
        columns: dict[str, Any] = {"key": keys}
        if settings.duplicate_images == "similar":
            hashed = [phash.perceptual_hash(data, name) for (_, data), name in zip(batch, names, strict=True)]
            columns["image_hash"] = pl.Series(hashed, dtype=pl.UInt64)
        if settings.similarity_model is not None:
            columns["similarity"] = _similarities(settings.similarity_model, batch, captions, names)
        frames.append(pl.DataFrame(columns))
    return pl.concat(frames[1:] or frames)


def _similarities(
    model: str, batch: Sequence[tuple[str, bytes]], captions: Mapping[str, str], names: Sequence[str]
) -> pl.Series:
    from wukong.curate.alignment import similarities

    return similarities(_model(model), [data for _, data in batch], [captions[key] for key, _ in batch], names)


@lru_cache(maxsize=1)
def _model(uri: str) -> Any:
    import torch

    from wukong.model import saved_model

    torch.set_num_threads(1)
    return saved_model.load(uri)


def _judged_uri(stage: Stage, part: int, *, looked: bool = False) -> str:
    return stage.path(f"_work/{'looked' if looked else 'rules'}/{part:05d}.parquet")


def _look_path(part: int) -> str:
    return f"parts/{part:05d}.parquet"


def _hashes_uri(stage: Stage, group: int) -> str:
    return stage.path(f"_work/hashes/{group:05d}.parquet")


def _placed_uri(stage: Stage, group: int) -> str:
    return stage.path(f"_work/placed/{group:05d}.parquet")


def _judged(stage: Stage, group: _Group, settings: Filter, repeated: Hashes | None = None) -> Iterator[pl.DataFrame]:
    """The rows of a group's parts as the rules decided over them.

    Args:
        stage: the filter.
        group: whose rows.
        settings: which rules there are.
        repeated: keys, as numbers, of the pairs whose picture another pair shows.
    """
    for number in range(group.first, group.first + len(group.parts)):
        frame = pl.DataFrame(storage.read_table(_judged_uri(stage, number, looked=_looks(settings))))
        if repeated is not None and len(repeated):
            again = pl.Series(np.isin(duplicates.numbers(frame["key"]), repeated)) & frame["dropped_by"].is_null()
            frame = frame.with_columns(
                dropped_by=pl.when(again).then(pl.lit("duplicate_image")).otherwise("dropped_by")
            )
        yield frame


def _kept(stage: Stage, group: _Group, settings: Filter, repeated: Hashes | None = None) -> Iterator[pl.DataFrame]:
    for frame in _judged(stage, group, settings, repeated):
        yield frame.filter(pl.col("dropped_by").is_null())


def _corpus_facts(stage: Stage, groups: Sequence[_Group], settings: Filter) -> tuple[Any, Any, Any]:
    """What ``_assign`` must know of the whole corpus, in the object store: repeated and withheld pictures, captions."""
    repeated = ray.put(_repeated(stage, groups, settings))
    facts = _map(_withheld_and_asked, [(stage, group, settings, repeated) for group in groups])
    withheld, asked = (ray.put(_union(arrays)) for arrays in zip(*facts, strict=True))
    trained = _map(_trained, [(stage, group, settings, repeated, withheld, asked) for group in groups])
    return repeated, withheld, ray.put(_union(trained))


def _repeated(stage: Stage, groups: Sequence[_Group], settings: Filter) -> Hashes:
    """Keys, as numbers, of the kept pairs whose picture another pair with an earlier key shows."""
    if settings.duplicate_images == "keep":
        return np.empty(0, np.uint64)
    distance = settings.max_hash_distance if settings.duplicate_images == "similar" else 0
    rows, ranges = len(groups) * _MAX_ROWS, 1
    while ranges * _BAND_ROWS < rows:
        ranges *= 2
    pieces = (distance + 1) * ranges
    sort = ray.remote(_picture_bands).options(num_returns=pieces)
    later = ray.remote(_later)
    sorted_ = [sort.remote(stage, group, settings, distance, ranges) for group in groups]
    by_group = sorted_ if pieces > 1 else [[reference] for reference in sorted_]
    found = [later.remote(distance, piece // ranges, *(entry[piece] for entry in by_group)) for piece in range(pieces)]
    return _union(ray.get(found))


def _picture_bands(stage: Stage, group: _Group, settings: Filter, distance: int, ranges: int) -> Any:
    frame = pl.concat(_kept(stage, group, settings)).select("key", "sha256", "image_hash")
    similar = settings.duplicate_images == "similar"
    values = frame["image_hash"].to_numpy() if similar else split.picture_digests(frame)
    bands = duplicates.bands((values, duplicates.numbers(frame["key"])), distance, ranges)
    return bands if len(bands) > 1 else bands[0]


def _later(distance: int, band: int, *pieces: duplicates.Pictures) -> Hashes:
    values, keys = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    return duplicates.later((values, keys), distance, band)


def _union(arrays: Sequence[Hashes]) -> Hashes:
    return np.unique(np.concatenate(arrays))


def _withheld_and_asked(stage: Stage, group: _Group, settings: Filter, repeated: Hashes) -> tuple[Hashes, Hashes]:
    withheld, asked = [], []
    for frame in _kept(stage, group, settings, repeated):
        withheld.append(split.withheld_pictures(frame, settings.split))
        asked.append(split.asked_captions(frame, settings.split))
    return _union(withheld), _union(asked)


def _trained(
    stage: Stage, group: _Group, settings: Filter, repeated: Hashes, withheld: Hashes, asked: Hashes
) -> Hashes:
    kept = _kept(stage, group, settings, repeated)
    found = [split.trained_captions(frame, settings.split, withheld) for frame in kept]
    return np.intersect1d(_union(found), asked, assume_unique=True)


def _assign(
    stage: Stage, group: _Group, settings: Filter, seed: int, repeated: Hashes, withheld: Hashes, trained: Hashes
) -> dict[str, Any]:
    placed, dropped = [], []
    for uri, judged in zip(group.parts, _judged(stage, group, settings, repeated), strict=True):
        kept = judged.filter(pl.col("dropped_by").is_null())
        kept = kept.with_columns(split=split.assign(kept, settings.split, withheld, trained))
        back = pl.col("split") == rules.HELD_BACK
        dropped.append(judged.filter(pl.col("dropped_by").is_not_null()))
        dropped.append(kept.filter(back).with_columns(dropped_by=pl.col("split")).drop("split"))
        kept = kept.filter(~back).drop("dropped_by")
        kept = kept.with_columns(position=repack.positions(kept["key"], seed))
        placed.append(repack.locate(kept, uri.removesuffix(".parquet") + ".tar"))
    pairs, out = pl.concat(placed).sort("split", "position", "key"), pl.concat(dropped)
    # Small row groups, sorted: whoever needs a range of a split reads little else.
    with storage.open_output(_placed_uri(stage, group.number)) as stream:
        pairs.write_parquet(stream, row_group_size=_ROW_GROUP)
    path = f"dropped/{group.number:05d}.parquet"
    storage.write_table(stage.path(path), out.select(DROPPED.names).to_arrow().cast(DROPPED))
    return {
        "bins": {str(name): _histogram(rows["position"]) for (name,), rows in pairs.group_by("split")},
        "dropped": {
            reason: int((out["dropped_by"] == reason).sum())
            for reason in (rules.HELD_BACK, *({"duplicate_image"} & {*rules.applied(settings)}))
        },
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
