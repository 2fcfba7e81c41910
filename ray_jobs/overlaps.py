"""The filter's pass that compares what would be trained on with test sets and hold-outs (``docs/overlap.md``)."""

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from ray_jobs import fingerprints
from ray_jobs.exchange import Answers
from ray_jobs.groups import Compared, Group, overlap_paths, pairs_left, read_columns, told
from wukong.config.decontaminate import Decontaminate
from wukong.config.filter import Filter
from wukong.curate import caption_counts, captions, overlap, split
from wukong.data.schema import OVERLAPS
from wukong.store import storage
from wukong.store.manifest import Manifest, Part, Stage


def _placed(
    stage: Stage,
    group: Group,
    settings: Filter,
    look: Stage,
    compared: Compared,
    held_out: Answers,
) -> Iterator[pl.DataFrame]:
    """The pairs of each part that are left, with ``split`` and the columns that are compared with test sets.

    Whether training sees the caption of a test is not known yet, so each is in the hold-out that may take it.
    """
    for number, kept in enumerate(pairs_left(stage, group, settings, compared), group.first):
        placed = split.assign(
            kept, settings.split, told(held_out, group, "hash"), caption_counts.hashes(kept["caption"])
        )
        columns = read_columns(look, number, overlap.COLUMNS)
        yield kept.with_columns(placed).join(
            columns.unique("key", keep="first"), on="key", how="left", maintain_order="left"
        )


def held_out_path(group: int) -> str:
    """Where a group's part of the hold-outs stands with what their pictures are compared by."""
    return f"_work/held-out/{group:05d}.parquet"


def write_held_out(
    stage: Stage,
    group: Group,
    holdouts: Sequence[str],
    settings: Filter,
    look: Stage,
    compared: Compared,
    held_out: Answers,
) -> dict[str, Any]:
    """Gather what the pictures of hold-outs are compared by."""
    placed = _placed(stage, group, settings, look, compared, held_out)
    # Parts of which no pair is left have no columns of pictures.
    tests = pl.concat([rows.filter(pl.col("split").is_in(holdouts)) for rows in placed], how="diagonal")
    tests = tests.select("split", *(name for name in overlap.COLUMNS if name in tests.columns))
    storage.write_table(stage.path(held_out_path(group.number)), tests.to_arrow())
    return {}


def find_overlaps(
    stage: Stage,
    group: Group,
    asked: Decontaminate,
    sets: Sequence[Manifest],
    holdouts: Sequence[str],
    groups: Sequence[int],
    settings: Filter,
    look: Stage,
    compared: Compared,
    held_out: Answers,
) -> dict[str, Any]:
    """Find which pairs that would be trained on show a test picture or have a caption of a test set.

    Returns:
        The names of the test sets, under ``sets``.
    """
    known = [*map(fingerprints.read, sets), *map(overlap.read, asked.hashes)]
    names = [*(tests.name for tests in known), *holdouts]
    held = [pl.DataFrame(storage.read_table(stage.path(held_out_path(number)))) for number in groups]
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
        for path, tables in zip(overlap_paths(number), (found, named), strict=True):
            storage.write_table(stage.path(path), pl.concat(tables).to_arrow())
    return {"sets": names}


def write(stage: Stage, groups: Sequence[Group], action: str) -> Part:
    """Bring together which pairs show which test picture, for those who read the stage."""
    parts = sum(len(group.parts) for group in groups)
    found = pl.concat(pl.DataFrame(storage.read_table(stage.path(overlap_paths(number)[0]))) for number in range(parts))
    rows = found.sort("set", "picture", "key").with_columns(action=pl.lit(action))
    return stage.write_table(OVERLAPS, rows.to_arrow())


def searched(stage: Stage, group: Group) -> dict[str, int]:
    """A count of 0 for each test set that was looked for, so that the manifest names those without a find."""
    record = stage.finished_task(f"overlap-{group.number:05d}", lambda _: ()) or {}
    return {f"overlap/{name}": 0 for name in record.get("sets", ())}


def counts(stage: Stage, part: int, settings: Filter) -> dict[str, int]:
    """Count the pairs of a part that show a picture, or have a caption, of each test set."""
    counts: dict[str, int] = {}
    if settings.decontaminate is not None:
        for name, path in zip(("overlap", "overlap_captions"), overlap_paths(part), strict=True):
            pairs = pl.DataFrame(storage.read_table(stage.path(path), ["set", "key"])).unique()
            counts |= {f"{name}/{of}": rows for of, rows in pairs["set"].value_counts().iter_rows()}
    return counts
