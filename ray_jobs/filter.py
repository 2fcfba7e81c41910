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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import polars as pl
import ray

from ray_jobs import fingerprints, gpus, metrics, near_duplicates, overlaps, repacking
from ray_jobs.exchange import Answers
from ray_jobs.groups import (
    Compared,
    Group,
    ask_all,
    columns_path,
    decides_late,
    groups_of,
    judged_path,
    overlap_paths,
    pairs_left,
    pairs_so_far,
    read_columns,
    run_missing,
    told,
)
from ray_jobs.repacking import Tar
from ray_jobs.waiting_place import waiting_place
from wukong.config.experiment import Experiment
from wukong.config.filter import Filter
from wukong.curate import apply, caption_counts, captions, duplicates, lookup, repack, rules, split
from wukong.curate.caption_counts import CaptionCounts, Hashes
from wukong.curate.pairs import DROPPED, read_pairs, schema_of
from wukong.curate.rule import HELD_BACK, Comparison
from wukong.curate.text import clean
from wukong.data.crawl_part import CrawlPart
from wukong.data.schema import MORE_CAPTIONS
from wukong.errors import DataError
from wukong.stages import places
from wukong.store import manifest, storage
from wukong.store.manifest import Manifest, Part, Stage

log = logging.getLogger(__name__)

FORBIDDEN = "forbidden.txt"
"""Where a filter stage lists the digests of pictures that nobody may see, for a takedown; no part of the manifest."""

_READ_FOR_PICTURES = ("key", "caption", "captions", "dropped_by")


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
    groups = groups_of(crawl)

    judged = run_missing(
        "rules",
        stage,
        _apply_rules,
        groups,
        lambda: (settings, _count(stage, groups, settings)),
        work_files=lambda group: map(judged_path, group.numbers),
    )
    metrics.add("wukong_filter_rows", sum(record["pairs"] for record in judged))
    _show_dropped(judged)
    by_pictures, compared = [], False
    if decides_late(settings):

        def looked() -> tuple[Filter, Stage | None]:
            nonlocal compared
            computed, compared = _compute_from_pictures(experiment, crawl, groups, stage)
            return settings, computed

        by_pictures = run_missing(
            "decide",
            stage,
            _apply_picture_rules,
            groups,
            looked,
            work_files=lambda group: (judged_path(number, by_pictures=True) for number in group.numbers),
        )
        _show_dropped(by_pictures)
        _name_forbidden(stage, crawl, by_pictures)
    pairs = sum(record["pairs"] for record in judged)
    assigned = run_missing(
        "assign",
        stage,
        _assign,
        groups,
        lambda: _corpus_facts(experiment, crawl, stage, groups),
        work_files=lambda group: [_placed_path(group.number), *_overlap_files(group, settings)],
    )
    _show_dropped(assigned)
    tars = _tars(stage, crawl, groups, compared=compared)
    kept, pair_bytes = sum(record["kept"] for record in assigned), sum(tar.bytes for tar in tars) / max(1, pairs)
    pieces, buckets = repacking.planned(tars, kept, settings.shard_size, pair_bytes)
    with waiting_place(stage, repacking.room(tars, buckets)) as place:
        repacked = run_missing(
            "repack", stage, repacking.pack, pieces, lambda: (ray.put(repacking.scattered(place, tars, buckets)),)
        )

    applied = rules.applied(settings)
    dropped = dict.fromkeys([*applied, HELD_BACK], 0)
    for record in [*judged, *by_pictures, *assigned]:
        for rule, rows in record["dropped"].items():
            dropped[rule] += rows
    counts = Counter({"pairs": pairs, "kept": pairs - sum(dropped[rule] for rule in applied)})
    counts.update(overlaps.searched(stage, groups[0]))
    for record in [*by_pictures, *assigned]:
        counts.update(record["counts"])
    for name in (split.TRAIN, *(holdout.name for holdout in settings.split.holdouts)):
        counts[name] = sum(piece.rows for piece in pieces if piece.split == name)
    if MORE_CAPTIONS in crawl.counts:
        counts[MORE_CAPTIONS] = sum(record[MORE_CAPTIONS] for record in assigned)
    if not pairs:
        raise DataError(
            f"no pair came in: the crawl at {crawl.uri} holds no picture, because all were taken down. Crawl anew, "
            "with other queries or another list"
        )
    if not counts[split.TRAIN]:
        reasons = ", ".join(f"{rule} dropped {rows:d}" for rule, rows in dropped.items() if rows)
        raise DataError(
            f"no pair is left to train on: {pairs} came in; {reasons or 'all are held out'}. "
            "Loosen filter.* or filter.split, or crawl more"
        )
    lookup.write(stage.uri, (tuple(each) for record in repacked for each in record["bounds"]), settings.seed)
    parts = (Part.model_validate(part) for record in [*assigned, *repacked] for part in record["parts"])
    of_tests = [overlaps.write(stage, groups, settings.decontaminate.action)] if settings.decontaminate else []
    return stage.commit(chain(parts, of_tests), counts=counts, dropped=dropped)


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


def _tars(stage: Stage, crawl: Manifest, groups: Sequence[Group], *, compared: bool) -> list[Tar]:
    """Return the tars of a crawl; those that this run has ``compared`` with their digests are not compared again."""
    sizes = {storage.join(crawl.uri, part.path): part.bytes for part in crawl.parts.below("parts/", ".tar")}
    return [
        Tar(
            number,
            part.tar,
            sizes[part.tar],
            stage.path(_placed_path(group.number)),
            "" if compared else part.tar_sha256,
        )
        for group in groups
        for number, part in enumerate(group.parts, group.first)
    ]


def _count(stage: Stage, groups: Sequence[Group], settings: Filter) -> Answers:
    """Count every caption of the corpus: a group is told about those of its own that occur more than once.

    They are counted anew by every run: another version of Polars may hash otherwise.
    """
    return ask_all("captions", stage, groups, _captions, caption_counts.repeated, settings)


def _captions(stage: Stage, group: Group, settings: Filter) -> pl.DataFrame:
    def of_part(part: CrawlPart) -> Hashes:
        rows = captions.apart(read_pairs(part.table, part.table_sha256))
        hashes = caption_counts.hashes(clean.cleaned(rows["caption"], settings))
        if captions.PAIR not in rows.columns:
            return hashes
        # A caption occurs once in a pair, also where two of its captions have become equal.
        return rows.select(captions.PAIR, hash=pl.Series(hashes)).unique()["hash"].to_numpy()

    return caption_counts.counted(*map(of_part, group.parts))


def _apply_rules(stage: Stage, group: Group, settings: Filter, counted: Answers) -> dict[str, Any]:
    loaded = rules.load(settings, known=stage.config.get("digests", {}))
    counts = CaptionCounts.of_rows(counted.of(group.number))
    pairs, dropped = 0, dict.fromkeys((rule.name for rule in rules.decided("pairs", settings)), 0)
    for number, part in enumerate(group.parts, group.first):
        judged = apply.apply_rules(read_pairs(part.table, part.table_sha256), settings, counts, loaded)
        storage.write_table(stage.path(judged_path(number)), judged.to_arrow())
        pairs += len(judged)
        for reason, rows in apply.count_reasons([judged], dropped).items():
            dropped[reason] += rows
    return {"pairs": pairs, "dropped": dropped}


def _compute_from_pictures(
    experiment: Experiment, crawl: Manifest, groups: Sequence[Group], stage: Stage
) -> tuple[Stage | None, bool]:
    """Finish the stage that holds the columns which rules compute from the pictures of the pairs that are left.

    Returns:
        The stage, None where no rule reads pictures; and whether all tars were read, and compared, for that just now.
    """
    if not rules.needs_pictures(experiment.filter):
        return None, False
    computed, compared = places.look(experiment, crawl), False

    def look() -> Manifest:
        nonlocal compared
        compared = not storage.list_names(computed.path("_parts"))  # else an earlier attempt has read some of them
        on_gpu = rules.run_a_model(experiment.filter) and gpus.count() > 0
        loaders = experiment.pretrain.loader_workers if on_gpu else 0
        records = run_missing(
            "look",
            computed,
            _read_pictures,
            groups,
            lambda: (stage, experiment.filter, on_gpu, loaders),
            num_gpus=1 if on_gpu else 0,
        )
        return computed.commit([Part.model_validate(part) for record in records for part in record["parts"]])

    computed.made(look)
    return computed, compared


def _read_pictures(
    computed: Stage, group: Group, stage: Stage, settings: Filter, on_gpu: bool, loaders: int
) -> dict[str, Any]:
    device, parts = gpus.of_task() if on_gpu else "cpu", []
    for number, part in enumerate(group.parts, group.first):
        uri = stage.path(judged_path(number))
        judged = pl.DataFrame(storage.read_table(uri, _READ_FOR_PICTURES, present_only=True))
        left = captions.apart(judged.filter(pl.col("dropped_by").is_null()))
        texts = dict(left.group_by("key", maintain_order=True).agg("caption").iter_rows())
        columns = rules.compute_from_pictures(part.tar, texts, settings, device, loaders, part.tar_sha256)
        parts.append(computed.write_table(columns_path(number), columns.to_arrow()).model_dump())
    return {"parts": parts}


def _apply_picture_rules(stage: Stage, group: Group, settings: Filter, computed: Stage | None) -> dict[str, Any]:
    dropped = dict.fromkeys((rule.name for rule in rules.decided("pictures", settings)), 0)
    loaded = rules.load(settings, late=True, known=stage.config.get("digests", {}))
    counts, digests = Counter[str](), list[str]()
    for number in group.numbers:
        judged = pl.DataFrame(storage.read_table(stage.path(judged_path(number))))
        columns = judged.select("key").clear()
        if computed is not None:
            columns = read_columns(computed, number)
        judged, counted = apply.apply_picture_rules(judged, columns, settings, loaded)
        counts.update(counted)
        for reason, rows in apply.count_reasons([judged], dropped).items():
            dropped[reason] += rows
        digests.extend(judged.filter(pl.col("dropped_by").is_in(rules.never_shown()))["sha256"].drop_nulls())
        storage.write_table(stage.path(judged_path(number, by_pictures=True)), judged.to_arrow())
    return {"dropped": dropped, "counts": dict(counts), **({"never_shown": digests} if digests else {})}


def _placed_path(group: int) -> str:
    return f"_work/placed/{group:05d}.parquet"


def _overlap_files(group: Group, settings: Filter) -> list[str]:
    return [path for number in group.numbers for path in overlap_paths(number)] if settings.decontaminate else []


def _corpus_facts(
    experiment: Experiment, crawl: Manifest, stage: Stage, groups: Sequence[Group]
) -> tuple[Filter, Compared, Answers, Answers]:
    """What ``_assign`` needs of the whole corpus: the settings, compared pairs, held-out pictures, trained captions."""
    settings = experiment.filter
    compared = Compared(_repeats(stage, groups, settings))
    _compute_from_pictures(experiment, crawl, groups, stage)  # finished, unless a killed run's was deleted since
    if rules.nearness(settings) is not None:
        compared = replace(compared, near=_near(experiment, crawl, stage, groups, compared))
    held_out = ask_all("pictures", stage, groups, _pictures, split.known, settings, compared)
    if (asked := settings.decontaminate) is not None:
        facts = (settings, places.look(experiment, crawl), compared, held_out)
        sets, holdouts = fingerprints.made(experiment), experiment.decontaminated_holdouts
        numbers = [group.number for group in groups]
        run_missing(
            "held-out",
            stage,
            overlaps.write_held_out,
            groups,
            lambda: (holdouts, *facts),
            work_files=lambda group: [overlaps.held_out_path(group.number)],
        )
        run_missing(
            "overlap",
            stage,
            overlaps.find_overlaps,
            groups,
            lambda: (asked, sets, holdouts, numbers, *facts),
            work_files=lambda group: _overlap_files(group, settings),
        )
        compared = replace(compared, tested=True)
    seen = ask_all("seen", stage, groups, _tested, split.known, settings, compared, held_out)
    return settings, compared, held_out, seen


def _repeats(stage: Stage, groups: Sequence[Group], settings: Filter) -> dict[str, Answers]:
    """Find the pairs that repeat one with an earlier key, by each rule that compares pairs.

    Returns:
        By the rule's column, the keys of these pairs as numbers.
    """
    repeats = {}
    for rule in rules.decided("corpus", settings):
        if isinstance(rule, Comparison):
            search = partial(duplicates.repeats, distance=rule.distance(settings))
            repeats[rule.column] = ask_all(rule.column, stage, groups, _bands, search, settings, rule)
    return repeats


def _bands(stage: Stage, group: Group, settings: Filter, rule: Comparison) -> pl.DataFrame:
    kept = pl.concat(pairs_left(stage, group, settings, Compared()))
    return duplicates.bands((rule.values(kept, settings), duplicates.numbers(kept["key"])), rule.distance(settings))


def _near(experiment: Experiment, crawl: Manifest, stage: Stage, groups: Sequence[Group], repeats: Compared) -> Answers:
    """Find the pairs, of those that repeat no picture, whose vector is near that of another."""
    look = places.look(experiment, crawl)
    rows = partial(_vectors, stage, experiment.filter, repeats, look)
    return near_duplicates.nearest(groups, rows, manifest.load(look.uri).parts.rows, stage.path("_work/near"))


def _vectors(stage: Stage, settings: Filter, repeats: Compared, look: Stage, group: Group) -> pl.DataFrame:
    vectors = []
    for number, kept in enumerate(pairs_left(stage, group, settings, repeats), group.first):
        vectors.append(rules.vectors(kept, read_columns(look, number), settings))
    return pl.concat(vectors)


def _pictures(stage: Stage, group: Group, settings: Filter, compared: Compared) -> pl.DataFrame:
    kept = pl.concat(pairs_left(stage, group, settings, compared))
    if not split.holds_out(settings.split):
        kept = kept.clear()
    return split.question(split.held_out_pictures(kept, settings.split), split.picture_digests(kept))


def _tested(stage: Stage, group: Group, settings: Filter, compared: Compared, held_out: Answers) -> pl.DataFrame:
    kept = pl.concat(pairs_left(stage, group, settings, compared))
    if not split.asks_for_captions(settings.split):
        kept = kept.clear()
    trained = split.trained_captions(kept, settings.split, told(held_out, group, "hash"))
    return split.question(trained, split.asked_captions(kept, settings.split))


def _assign(
    stage: Stage,
    group: Group,
    settings: Filter,
    compared: Compared,
    held_out: Answers,
    trained: Answers,
) -> dict[str, Any]:
    placed, dropped, counts = [], [], Counter[str]()
    kept_away, seen = told(held_out, group, "hash"), told(trained, group, "hash")
    for number, judged in enumerate(pairs_so_far(stage, group, settings, compared), group.first):
        counts.update(overlaps.counts(stage, number, settings))
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
    with storage.open_output(stage.path(_placed_path(group.number))) as stream:
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
