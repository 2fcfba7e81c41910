"""The shards that a lookup names, against the shards in which the keys are."""

import random
from pathlib import Path

import polars as pl

from wukong.curate import lookup, repack
from wukong.store import storage
from wukong.store.manifest import Stage

SEED = 3


def filtered(tmp_path: Path, known: bool = True):
    """Shards of about ten pairs of two splits, and a table of dropped pairs; the keys of each table."""
    stage, keys, bounds = Stage(storage.from_path(tmp_path), "filter", {}), {}, []
    generator = random.Random(0)
    for split, pairs in ("train", 400), ("held", 95):
        some = pl.DataFrame({"key": [f"{generator.getrandbits(80):020x}" for _ in range(pairs)]})
        some = some.with_columns(position=repack.positions(some["key"], SEED)).sort("position")
        for number, rows in enumerate(some.iter_slices(10)):
            path = f"{split}/{number:05d}.parquet"
            keys[path] = set(rows["key"])
            bounds.append((path, int(rows["position"][0]), int(rows["position"][-1])))
    keys["dropped/00000.parquet"] = set()
    for path in keys:
        storage.write_bytes(stage.path(path), b"")
    if known:
        lookup.write(stage.uri, bounds[:-1], SEED)  # of the last shard nothing is known
    return stage.commit([stage.describe(path, 10) for path in keys]), keys, bounds[-1][0]


def test_the_named_shards_are_those_that_hold_the_keys(tmp_path: Path) -> None:
    made, keys, unknown = filtered(tmp_path)
    everywhere = sorted(key for some in keys.values() for key in some)
    for wanted in ([], everywhere[:1], everywhere[::25], ["f" * 20]):
        holding = {path for path, some in keys.items() if not some.isdisjoint(wanted)}
        named = set(lookup.tables(made, wanted))
        assert named >= holding | {unknown, "dropped/00000.parquet"}
        assert len(named) <= 2 * len(wanted) + 2
    assert set(lookup.tables(made, everywhere)) == set(keys)


def test_without_a_lookup_all_are_named(tmp_path: Path) -> None:
    made, keys, _ = filtered(tmp_path, known=False)
    assert set(lookup.tables(made, ["f" * 20])) == set(keys)
