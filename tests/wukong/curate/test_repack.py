"""Repacking: pictures from many tars."""

from pathlib import Path

import polars as pl

from wukong.curate import repack
from wukong.data.shards import END, packed
from wukong.store import storage


def open_tars() -> int:
    """How many files that end in ``.tar`` this process has open."""
    opened = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            opened += descriptor.readlink().suffix == ".tar"
        except FileNotFoundError:  # the listing's own descriptor
            continue
    return opened


def test_a_shard_from_more_tars_than_may_be_open_at_once(tmp_path: Path) -> None:
    count, located = repack._OPEN + 150, []
    for number in range(count):
        tar = tmp_path / f"{number:05d}.tar"
        tar.write_bytes(packed(f"{number}.jpg", f"picture {number}".encode()) + END)
        located.append(repack.locate(pl.DataFrame({"key": [str(number)]}), storage.from_path(tar)))
    # The second half comes back to every tar of the first.
    pairs = pl.concat([*located, *reversed(located)])
    seen, most = [], 0
    for row, picture in repack._with_pictures(pairs):
        assert picture == f"picture {row['key']}".encode()
        seen.append(row["key"])
        most = max(most, open_tars())
    assert seen == pairs["key"].to_list()
    assert repack._AT_A_TIME < most <= repack._OPEN
    assert open_tars() == 0
