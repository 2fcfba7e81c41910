"""Repacking: pictures come from tars that are read in order, and shards begin anew inside of a table."""

from pathlib import Path

import polars as pl
import pytest

from wukong.curate import repack
from wukong.data.shards import END, packed
from wukong.errors import DataError
from wukong.store import storage


def tar(folder: Path, name: str, keys: list[str]) -> str:
    uri = storage.from_path(folder / name)
    files = [packed(f"{key}.{suffix}", f"{suffix} of {key}".encode()) for key in keys for suffix in ("jpg", "txt")]
    storage.write_bytes(uri, b"".join(files) + END)
    return uri


def test_tables_hold_as_many_pictures_as_fit_and_no_pair_twice(tmp_path: Path) -> None:
    uris = [tar(tmp_path, f"{n}.tar", [f"{n}{row}" for row in range(10)]) for n in range(3)]
    wanted = [pl.DataFrame({"key": [f"{n}{row}" for row in (8, 1, 5)]}) for n in range(3)]
    tables = list(
        repack.with_pictures(zip(uris, [""] * len(uris), wanted, strict=True), run_bytes=4 * len("jpg of 00"))
    )
    assert [len(table) for table in tables] == [4, 4, 1]
    whole = pl.concat(tables)
    assert sorted(whole["key"]) == sorted(key for each in wanted for key in each["key"])
    assert whole["picture"].to_list() == [f"jpg of {key}".encode() for key in whole["key"]]


def test_pictures_that_are_missing_are_named(tmp_path: Path) -> None:
    uri = tar(tmp_path, "0.tar", ["a", "b"])
    with pytest.raises(DataError, match=r"0\.tar lacks the picture of 2 of its pairs, the first c\.jpg"):
        list(repack.with_pictures([(uri, "", pl.DataFrame({"key": ["a", "c", "d"]}))], 1000))
