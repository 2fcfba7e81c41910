"""The filter job: sections 3.1 and 3.2 over a crawl's parts, the split, and the repacking into shards.

This file says what Ray schedules and how a killed run continues. What is computed and decided is in
``wukong/curate``: ``apply.py`` over tables of pairs, ``rules/`` with one file a rule, ``split.py``, ``repack.py``.

Consecutive parts of the crawl form a group. A Ray task works on one group, part by part, and leaves a record when it is
done. The passes are:

1. count: each group asks how often its captions occur in the whole corpus (exact);
2. rules: compute the rules' columns, decide, mask names (Parquet only, no picture is read);
3. look, only where a rule reads pictures: compute columns from the pictures of the pairs that are left, in a stage of
   its own, so that with another threshold no picture is read again; then decide over these columns;
4. compare, only where a rule compares pairs with each other: each group asks which of its pairs repeat an earlier one,
   and which of those left have a vector near that of another (``ray_jobs/near_duplicates.py``);
5. split: each group asks which of its pictures are held out, and which captions of its tests training sees;
6. overlap, only where ``filter.decontaminate`` asks for it, and before the captions that training sees are counted:
   what would be trained on is compared with published sets, and with the pictures of the hold-outs;
7. assign: the split and the place of each kept pair; dropped pairs are written with their reason;
8. scatter: each tar is read once, and its kept pairs are written into files of buckets, pictures and all. A bucket is a
   range of places that fits into memory. Where there are many, they are divided in several rounds;
9. repack: the buckets of each range of places become shards.

A task holds one part, one group or one range, so its memory does not depend on how many there are. What a group needs
to know of the whole corpus it asks: its question goes to the ranges of hashes, and it reads only its own answers
(``ray_jobs/exchange.py``).

Every pass is a function of the crawl's files and the config, so a killed run continues to the same bytes.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import polars as pl
import ray

from ray_jobs import fingerprints, gpus, metrics, near_duplicates, repacking
from ray_jobs.exchange import ASKER, Answers, ask, run_all
from ray_jobs.repacking import Piece, Tar
from wukong.config.experiment import Experiment
from wukong.config.filter import Filter
from wukong.curate import apply, caption_counts, captions, duplicates, exchange, lookup, overlap, repack, rules, split
from wukong.curate.caption_counts import CaptionCounts, Hashes
from wukong.curate.pairs import DROPPED, read_pairs, schema_of
from wukong.curate.rule import HELD_BACK
from wukong.curate.text import clean
from wukong.data.schema import MORE_CAPTIONS, OVERLAPS
from wukong.errors import DataError
from wukong.runtime.language import message
from wukong.stages import places
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, Part, Stage

log = logging.getLogger(__name__)

FORBIDDEN = "forbidden.txt"
"""Where a filter stage lists the digests of pictures that nobody may see, for a takedown; no part of the manifest."""

_GROUPS = 64
_MAX_ROWS = 100_000
_ROW_GROUP = 4096
_READ_FOR_PICTURES = ("key", "caption", "captions", "dropped_by")


@dataclass(frozen=True)
class _Group:
    """Consecutive parts of the crawl: the number of the first, and the URIs of their Parquet files."""

    number: int
    first: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class _Compared:
    """What the rules found that compare pairs, as it is told to each group.

    Attributes:
        repeats: see ``_repeats``.
        near: what ``wukong.curate.near_duplicates.nearest`` found.
        tested: whether what would be trained on was compared with test sets: the files of the pass ``overlap`` exist.
    """

    repeats: Mapping[str, Answers] = field(default_factory=dict)
    near: Answers | None = None
    tested: bool = False


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
    for late in (False, True):
        rules.load(settings, late=late)  # a list that cannot be used ends the job here, before any task
    groups = _groups(crawl)

    judged = _run_missing("rules", stage, _apply_rules, groups, lambda: (settings, _count(stage, groups, settings)))
    metrics.add("wukong_filter_rows", sum(record["pairs"] for record in judged))
    _show_dropped(judged)
    by_pictures = []
    if _decides_late(settings):
        by_pictures = _run_missing(
            "decide",
            stage,
            _apply_picture_rules,
            groups,
            lambda: (settings, _compute_from_pictures(experiment, crawl, groups, stage)),
        )
        _show_dropped(by_pictures)
        _name_forbidden(stage, crawl, by_pictures)
    pairs = sum(record["pairs"] for record in judged)
    assigned = _run_missing("assign", stage, _assign, groups, lambda: _corpus_facts(experiment, crawl, stage, groups))
    _show_dropped(assigned)
    tars = _tars(stage, crawl, groups)
    kept, pair_bytes = sum(record["kept"] for record in assigned), sum(tar.bytes for tar in tars) / max(1, pairs)
    pieces, buckets = repacking.planned(tars, kept, settings.shard_size, pair_bytes)
    repacked = _run_missing(
        "repack", stage, repacking.pack, pieces, lambda: (ray.put(repacking.scattered(stage, tars, buckets)),)
    )

    applied = rules.applied(settings)
    dropped = dict.fromkeys([*applied, HELD_BACK], 0)
    for record in [*judged, *by_pictures, *assigned]:
        for rule, rows in record["dropped"].items():
            dropped[rule] += rows
    counts = Counter({"pairs": pairs, "kept": pairs - sum(dropped[rule] for rule in applied)})
    for record in [*by_pictures, *assigned]:
        counts.update(record.get("counts", {}))  # records of earlier versions have none
    for name in (split.TRAIN, *(holdout.name for holdout in settings.split.holdouts)):
        counts[name] = sum(piece.rows for piece in pieces if piece.split == name)
    if MORE_CAPTIONS in crawl.counts:
        counts[MORE_CAPTIONS] = sum(record[MORE_CAPTIONS] for record in assigned)
    if not pairs:
        raise DataError(
            f"no pair came in: the crawl at {crawl.uri} holds no picture, because all were taken down or it is an old "
            "one that failed. Crawl anew, with other queries or another list"
        )
    if not counts[split.TRAIN]:
        reasons = ", ".join(message(f"{rule} dropped {rows:d}") for rule, rows in dropped.items() if rows)
        raise DataError(
            f"no pair is left to train on: {pairs} came in; {reasons or message('all are held out')}. "
            "Loosen filter.* or filter.split, or crawl more"
        )
    # Records of earlier versions have no bounds; such shards are looked through by a takedown.
    lookup.write(stage.uri, (tuple(each) for record in repacked for each in record.get("bounds", [])), settings.seed)
    parts = (Part.model_validate(part) for record in [*assigned, *repacked] for part in record["parts"])
    overlaps = [_write_overlaps(stage, groups, settings.decontaminate.action)] if settings.decontaminate else []
    return stage.commit(chain(parts, overlaps), counts=counts, dropped=dropped)


def _show_dropped(records: Sequence[Mapping[str, Any]]) -> None:
    for record in records:
        for rule, rows in record["dropped"].items():
            metrics.add("wukong_filter_dropped", rows, rule=rule)


def _name_forbidden(stage: Stage, crawl: Manifest, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a list for a takedown of the pictures that nobody may see, because the crawl still holds them."""
    digests = sorted({digest for record in records for digest in record.get("never_shown", ())})
    if digests:
        uri = stage.path(FORBIDDEN)
        storage.write_bytes(uri, "".join(f"{digest}\n" for digest in digests).encode())
        log.warning(
            f"{len(digests):,} pictures of the crawl at {crawl.uri} are forbidden (filter.forbidden). No shard has "
            f"them, but the crawl does. Take them out: wukong takedown {uri} --config EXPERIMENT --reason REASON. Name "
            "the same list in crawl.politeness.opt_out, so that they are not fetched again"
        )


def _groups(crawl: Manifest) -> list[_Group]:
    parts = crawl.parts.below("parts/", ".parquet")
    if not parts.rows:
        raise DataError(f"the crawl at {crawl.uri} is empty: its queries found nothing")
    limit = min(_MAX_ROWS, -(-parts.rows // _GROUPS))
    cuts, rows = [0], 0
    for number, part in enumerate(parts):
        if number > cuts[-1] and rows + part.rows > limit:
            cuts.append(number)
            rows = 0
        rows += part.rows
    uris = [storage.join(crawl.uri, path) for path in parts.paths]
    ends = [*cuts[1:], len(parts)]
    return [_Group(n, low, tuple(uris[low:high])) for n, (low, high) in enumerate(zip(cuts, ends, strict=True))]


def _tars(stage: Stage, crawl: Manifest, groups: Sequence[_Group]) -> list[Tar]:
    sizes = {storage.join(crawl.uri, part.path): part.bytes for part in crawl.parts.below("parts/", ".tar")}
    numbered = [
        (number, uri.removesuffix(".parquet") + ".tar", _placed_uri(stage, group.number))
        for group in groups
        for number, uri in enumerate(group.parts, group.first)
    ]
    return [Tar(number, tar, sizes[tar], placed) for number, tar, placed in numbered]


def _run_missing(
    name: str,
    stage: Stage,
    task: Callable[..., dict[str, Any]],
    units: Sequence[_Group] | Sequence[Piece],
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
        made = run_all(_run_and_record, [(task, name, stage, unit, *common) for unit in missing], num_gpus)
        records |= {unit.number: record for unit, record in zip(missing, made, strict=True)}
    log.info("filter: %s: %d of %d groups done, the others were done before", name, len(missing), len(units))
    return [record for record in records.values() if record is not None]


def _run_and_record(
    task: Callable[..., dict[str, Any]], name: str, stage: Stage, unit: _Group | Piece, *shared: Any
) -> dict[str, Any]:
    record = task(stage, unit, *shared)
    stage.commit_task(f"{name}-{unit.number:05d}", record)
    return record


def _ask(
    name: str,
    stage: Stage,
    groups: Sequence[_Group],
    question: Callable[..., pl.DataFrame],
    answer: Callable[[pl.DataFrame], pl.DataFrame],
    *shared: Any,
) -> Answers:
    """Each group asks the whole corpus.

    Args:
        name: name of the question.
        stage: that keeps its files.
        groups: that ask.
        question: takes the stage, the group and what they share; returns a table whose first column is a hash.
        answer: makes the rows of the answer from the rows of all groups with a hash in some range.
        shared: what the groups share.
    """
    folder = stage.path(f"_work/{name}")
    asked = run_all(_write_question, [(question, folder, stage, group, *shared) for group in groups])
    return ask(asked, answer, folder)


def _write_question(
    question: Callable[..., pl.DataFrame], folder: str, stage: Stage, group: _Group, *shared: Any
) -> exchange.File:
    rows = question(stage, group, *shared).with_columns(pl.lit(group.number, pl.UInt32).alias(ASKER))
    return exchange.write(storage.join(folder, f"questions/{group.number:05d}.parquet"), rows)


def _count(stage: Stage, groups: Sequence[_Group], settings: Filter) -> Answers:
    """Count every caption of the corpus: a group is told about those of its own that occur more than once.

    They are counted anew by every run: another version of Polars may hash otherwise.
    """
    return _ask("captions", stage, groups, _captions, caption_counts.repeated, settings)


def _captions(stage: Stage, group: _Group, settings: Filter) -> pl.DataFrame:
    def of_part(uri: str) -> Hashes:
        rows = captions.apart(read_pairs(uri))
        hashes = caption_counts.hashes(clean.cleaned(rows["caption"], settings))
        if captions.PAIR not in rows.columns:
            return hashes
        # A caption occurs once in a pair, also where two of its captions have become equal.
        return rows.select(captions.PAIR, hash=pl.Series(hashes)).unique()["hash"].to_numpy()

    return caption_counts.counted(*map(of_part, group.parts))


def _apply_rules(stage: Stage, group: _Group, settings: Filter, counted: Answers) -> dict[str, Any]:
    loaded = rules.load(settings)
    counts = CaptionCounts.of_rows(counted.of(group.number))
    pairs, dropped = 0, dict.fromkeys((rule.name for rule in rules.decided("pairs", settings)), 0)
    for number, uri in enumerate(group.parts, group.first):
        judged = apply.apply_rules(read_pairs(uri), settings, counts, loaded)
        storage.write_table(_judged_uri(stage, number), judged.to_arrow())
        pairs += len(judged)
        for reason, rows in apply.count_reasons([judged], dropped).items():
            dropped[reason] += rows
    return {"pairs": pairs, "dropped": dropped}


def _compute_from_pictures(
    experiment: Experiment, crawl: Manifest, groups: Sequence[_Group], stage: Stage
) -> Stage | None:
    """Finish the stage that holds the columns which rules compute from the pictures of the pairs that are left.

    Returns:
        The stage; None where no rule reads pictures.
    """
    if not rules.needs_pictures(experiment.filter):
        return None
    computed = places.look(experiment, crawl)

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
        judged = pl.DataFrame(storage.read_table(_judged_uri(stage, number), _READ_FOR_PICTURES, present_only=True))
        left = captions.apart(judged.filter(pl.col("dropped_by").is_null()))
        texts = dict(left.group_by("key", maintain_order=True).agg("caption").iter_rows())
        tar = f"{uri.removesuffix('.parquet')}.tar"
        columns = rules.compute_from_pictures(tar, texts, settings, device, loaders)
        parts.append(computed.write_table(_picture_columns_path(number), columns.to_arrow()).model_dump())
    return {"parts": parts}


def _apply_picture_rules(stage: Stage, group: _Group, settings: Filter, computed: Stage | None) -> dict[str, Any]:
    dropped = dict.fromkeys((rule.name for rule in rules.decided("pictures", settings)), 0)
    loaded, counts, digests = rules.load(settings, late=True), Counter[str](), list[str]()
    for number in range(group.first, group.first + len(group.parts)):
        judged = pl.DataFrame(storage.read_table(_judged_uri(stage, number)))
        columns = judged.select("key").clear()
        if computed is not None:
            columns = pl.DataFrame(storage.read_table(computed.path(_picture_columns_path(number))))
        judged, counted = apply.apply_picture_rules(judged, columns, settings, loaded)
        counts.update(counted)
        for reason, rows in apply.count_reasons([judged], dropped).items():
            dropped[reason] += rows
        digests.extend(judged.filter(pl.col("dropped_by").is_in(rules.never_shown()))["sha256"].drop_nulls())
        storage.write_table(_judged_uri(stage, number, by_pictures=True), judged.to_arrow())
    return {"dropped": dropped, "counts": dict(counts), **({"never_shown": digests} if digests else {})}


def _judged_uri(stage: Stage, part: int, *, by_pictures: bool = False) -> str:
    return stage.path(f"_work/{'looked' if by_pictures else 'rules'}/{part:05d}.parquet")


def _decides_late(settings: Filter) -> bool:
    """Whether the pass after the pictures is done."""
    return rules.needs_pictures(settings) or bool(rules.decided("pictures", settings))


def _picture_columns_path(part: int) -> str:
    return f"parts/{part:05d}.parquet"


def _placed_uri(stage: Stage, group: int) -> str:
    return stage.path(f"_work/placed/{group:05d}.parquet")


def _judged(stage: Stage, group: _Group, settings: Filter, compared: _Compared) -> Iterator[pl.DataFrame]:
    """The rows of a group's parts with the decisions so far, one table a part.

    Args:
        stage: the filter.
        group: whose rows.
        settings: which rules are on.
        compared: what the rules found so far that compare pairs.
    """
    own = {column: _told(answers, group, "key") for column, answers in compared.repeats.items()}
    near = None if compared.near is None else compared.near.of(group.number)
    for number in range(group.first, group.first + len(group.parts)):
        uri = _judged_uri(stage, number, by_pictures=_decides_late(settings))
        judged = apply.apply_comparisons(pl.DataFrame(storage.read_table(uri)), own, near, settings)
        if compared.tested:
            found, found_captions = (pl.DataFrame(storage.read_table(each)) for each in _overlap_uris(stage, number))
            judged = apply.apply_overlaps(judged, found, found_captions, settings)
        yield judged


def _kept(stage: Stage, group: _Group, settings: Filter, compared: _Compared) -> Iterator[pl.DataFrame]:
    for frame in _judged(stage, group, settings, compared):
        yield frame.filter(pl.col("dropped_by").is_null())


def _told(answers: Answers, group: _Group, column: str) -> Hashes:
    return np.unique(answers.of(group.number)[column].to_numpy())


def _corpus_facts(
    experiment: Experiment, crawl: Manifest, stage: Stage, groups: Sequence[_Group]
) -> tuple[Filter, _Compared, Answers, Answers]:
    """What ``_assign`` needs of the whole corpus: the settings, compared pairs, held-out pictures, trained captions."""
    settings = experiment.filter
    compared = _Compared(_repeats(stage, groups, settings))
    _compute_from_pictures(experiment, crawl, groups, stage)  # finished, unless a killed run's was deleted since
    if rules.nearness(settings) is not None:
        compared = replace(compared, near=_near(experiment, crawl, stage, groups, compared))
    held_out = _ask("pictures", stage, groups, _pictures, split.known, settings, compared)
    if settings.decontaminate is not None:
        facts = (settings, places.look(experiment, crawl), compared, held_out)
        sets, holdouts = fingerprints.made(experiment), experiment.decontaminated_holdouts
        numbers = [group.number for group in groups]
        _run_missing("held-out", stage, _write_held_out, groups, lambda: (holdouts, *facts))
        _run_missing("overlap", stage, _find_overlaps, groups, lambda: (sets, holdouts, numbers, *facts))
        compared = replace(compared, tested=True)
    seen = _ask("seen", stage, groups, _tested, split.known, settings, compared, held_out)
    return settings, compared, held_out, seen


def _repeats(stage: Stage, groups: Sequence[_Group], settings: Filter) -> dict[str, Answers]:
    """Find the pairs that repeat one with an earlier key, by each rule that compares pairs.

    Returns:
        By the column of the rule's comparison, the keys of these pairs as numbers.
    """
    repeats = {}
    for rule in rules.decided("corpus", settings):
        if rule.comparison is not None:
            distance = rule.comparison.distance(settings)
            search = partial(duplicates.repeats, distance=distance)
            repeats[rule.comparison.column] = _ask(
                rule.comparison.column, stage, groups, _bands, search, settings, rule.name, distance
            )
    return repeats


def _bands(stage: Stage, group: _Group, settings: Filter, rule: str, distance: int) -> pl.DataFrame:
    kept = pl.concat(_kept(stage, group, settings, _Compared()))
    return duplicates.bands((rules.compared_values(rule, kept, settings), duplicates.numbers(kept["key"])), distance)


def _near(
    experiment: Experiment, crawl: Manifest, stage: Stage, groups: Sequence[_Group], repeats: _Compared
) -> Answers:
    """Find the pairs, of those that repeat no picture, whose vector is near that of another."""
    look = places.look(experiment, crawl)
    rows = partial(_vectors, stage, experiment.filter, repeats, look)
    return near_duplicates.nearest(groups, rows, manifest.load(look.uri).parts.rows, stage.path("_work/near"))


def _vectors(stage: Stage, settings: Filter, repeats: _Compared, look: Stage, group: _Group) -> pl.DataFrame:
    vectors = []
    for number, kept in enumerate(_kept(stage, group, settings, repeats), group.first):
        looked = pl.DataFrame(storage.read_table(look.path(_picture_columns_path(number))))
        vectors.append(rules.vectors(kept, looked, settings))
    return pl.concat(vectors)


def _pictures(stage: Stage, group: _Group, settings: Filter, compared: _Compared) -> pl.DataFrame:
    kept = pl.concat(_kept(stage, group, settings, compared))
    if not split.holds_out(settings.split):
        kept = kept.clear()
    return split.question(split.held_out_pictures(kept, settings.split), split.picture_digests(kept))


def _placed(
    stage: Stage,
    group: _Group,
    settings: Filter,
    look: Stage,
    compared: _Compared,
    held_out: Answers,
) -> Iterator[pl.DataFrame]:
    """The pairs of each part that are left, with ``split`` and the columns that are compared with test sets.

    Whether training sees the caption of a test is not known yet, so each is in the hold-out that may take it.
    """
    for number, kept in enumerate(_kept(stage, group, settings, compared), group.first):
        placed = split.assign(
            kept, settings.split, _told(held_out, group, "hash"), caption_counts.hashes(kept["caption"])
        )
        columns = pl.DataFrame(storage.read_table(look.path(_picture_columns_path(number))))
        columns = columns.select(name for name in overlap.COLUMNS if name in columns.columns)
        yield kept.with_columns(placed).join(
            columns.unique("key", keep="first"), on="key", how="left", maintain_order="left"
        )


def _held_out_uri(stage: Stage, group: int) -> str:
    return stage.path(f"_work/held-out/{group:05d}.parquet")


def _overlap_uris(stage: Stage, part: int) -> list[str]:
    """Where the pairs of a part stand that show a test picture, and the captions that are a test's."""
    return [stage.path(f"_work/{folder}/{part:05d}.parquet") for folder in ("overlaps", "overlap-captions")]


def _write_held_out(
    stage: Stage,
    group: _Group,
    holdouts: Sequence[str],
    settings: Filter,
    look: Stage,
    compared: _Compared,
    held_out: Answers,
) -> dict[str, Any]:
    """Gather what the pictures of hold-outs are compared by."""
    placed = _placed(stage, group, settings, look, compared, held_out)
    # Parts of which no pair is left have no columns of pictures.
    tests = pl.concat([rows.filter(pl.col("split").is_in(holdouts)) for rows in placed], how="diagonal")
    tests = tests.select("split", *(name for name in overlap.COLUMNS if name in tests.columns))
    storage.write_table(_held_out_uri(stage, group.number), tests.to_arrow())
    return {}


def _find_overlaps(
    stage: Stage,
    group: _Group,
    sets: Sequence[Manifest],
    holdouts: Sequence[str],
    groups: Sequence[int],
    settings: Filter,
    look: Stage,
    compared: _Compared,
    held_out: Answers,
) -> dict[str, Any]:
    """Find which pairs that would be trained on show a test picture or have a caption of a test set."""
    asked = settings.decontaminate
    assert asked is not None  # noqa: S101 - for mypy
    known = [*map(fingerprints.read, sets), *map(overlap.read, asked.hashes)]
    held = [pl.DataFrame(storage.read_table(_held_out_uri(stage, number))) for number in groups]
    of_split = pl.concat(held, how="diagonal").partition_by("split", as_dict=True)
    known += [overlap.Tests.of_pairs(name, of_split[name,]) for name in holdouts if (name,) in of_split]
    searches = [overlap.Search(tests, asked) for tests in known]
    for number, placed in enumerate(_placed(stage, group, settings, look, compared, held_out), group.first):
        trained = placed.filter(pl.col("split") == split.TRAIN)
        texts = captions.apart(trained).select("key", "caption_original")
        found = [pl.DataFrame(schema=overlap.FOUND), *(search.found(trained) for search in searches)]
        named = [pl.DataFrame(schema=overlap.FOUND_CAPTIONS)]
        if asked.captions:
            named += [search.found_captions(texts) for search in searches]
        for uri, tables in zip(_overlap_uris(stage, number), (found, named), strict=True):
            storage.write_table(uri, pl.concat(tables).to_arrow())
    return {}


def _write_overlaps(stage: Stage, groups: Sequence[_Group], action: str) -> Part:
    """Bring together which pairs show which test picture, for those who read the stage."""
    parts = sum(len(group.parts) for group in groups)
    found = pl.concat(pl.DataFrame(storage.read_table(_overlap_uris(stage, number)[0])) for number in range(parts))
    rows = found.sort("set", "picture", "key").with_columns(action=pl.lit(action))
    return stage.write_table(OVERLAPS, rows.to_arrow())


def _tested(stage: Stage, group: _Group, settings: Filter, compared: _Compared, held_out: Answers) -> pl.DataFrame:
    kept = pl.concat(_kept(stage, group, settings, compared))
    if not split.asks_for_captions(settings.split):
        kept = kept.clear()
    trained = split.trained_captions(kept, settings.split, _told(held_out, group, "hash"))
    return split.question(trained, split.asked_captions(kept, settings.split))


def _assign(
    stage: Stage,
    group: _Group,
    settings: Filter,
    compared: _Compared,
    held_out: Answers,
    trained: Answers,
) -> dict[str, Any]:
    placed, dropped, counts = [], [], Counter[str]()
    kept_away, seen = _told(held_out, group, "hash"), _told(trained, group, "hash")
    for number, judged in enumerate(_judged(stage, group, settings, compared), group.first):
        counts.update(_overlap_counts(stage, number, settings))
        counts.update(apply.count_near(judged))
        kept = judged.filter(pl.col("dropped_by").is_null())
        kept = kept.with_columns(split=split.assign(kept, settings.split, kept_away, seen))
        kept = apply.without_tested_captions(kept, settings)
        kept = apply.hold_back(kept, settings)
        dropped.append(judged.filter(pl.col("dropped_by").is_not_null()))
        dropped.append(kept.filter(pl.col("dropped_by").is_not_null()).drop("split"))
        kept = kept.filter(pl.col("dropped_by").is_null()).drop("dropped_by")
        kept = kept.with_columns(position=repack.positions(kept["key"], settings.seed), part=pl.lit(number))
        placed.append(kept)
    pairs, out = pl.concat(placed), pl.concat(dropped)
    with storage.open_output(_placed_uri(stage, group.number)) as stream:
        pairs.write_parquet(stream)
    stored = schema_of(out, DROPPED)
    part = stage.write_table(f"dropped/{group.number:05d}.parquet", out.select(stored.names).to_arrow().cast(stored))
    late = (*rules.decided("corpus", settings), *rules.decided("tests", settings))
    reasons = (HELD_BACK, *(rule.name for rule in late))
    return {
        "kept": len(pairs),
        MORE_CAPTIONS: captions.several(pairs),
        "dropped": apply.count_reasons([out], reasons),
        "counts": dict(counts),
        "parts": [part.model_dump()],
    }


def _overlap_counts(stage: Stage, part: int, settings: Filter) -> dict[str, int]:
    """Count the pairs of a part that show a picture, or have a caption, of each test set."""
    counts: dict[str, int] = {}
    if settings.decontaminate is not None:
        for name, uri in zip(("overlap", "overlap_captions"), _overlap_uris(stage, part), strict=True):
            pairs = pl.DataFrame(storage.read_table(uri, ["set", "key"])).unique()
            counts |= {f"{name}/{of}": rows for of, rows in pairs["set"].value_counts().iter_rows()}
    return counts
