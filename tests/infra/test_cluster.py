"""What the cluster's own jobs run, with an object store that does not answer at once."""

from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from infra import cluster
from wukong.errors import StorageError
from wukong.store import patience, patient_filesystem, patient_store


class Away:
    """A folder as a file system that refuses its first requests, as an object store does while it starts."""

    type_name = "away"

    def __init__(self, refused: int) -> None:
        self.left = refused
        self._local = pyarrow.fs.LocalFileSystem()

    def get_file_info(self, paths: list[str]) -> Any:
        self.left -= 1
        if self.left >= 0:
            raise OSError("AWS Error NETWORK_CONNECTION during HeadBucket operation: curlCode: 7, refused")
        return self._local.get_file_info(paths)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._local.create_dir(path, recursive=recursive)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The clock goes on by pauses alone."""
    slept: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", slept.append)
    monkeypatch.setattr(patience.time, "monotonic", lambda: 100.0 + sum(slept))
    monkeypatch.setattr(patient_store, "OUTAGE", patience.Outage("the object store"))  # of that clock
    return tmp_path


def at(folder: Path, store: Away, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cluster.storage,
        "filesystem",
        lambda uri: (patient_filesystem.patient(store), str(folder / uri.removeprefix("s3://"))),
    )


def test_buckets_are_made_once_the_store_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Away(3)
    at(folder, store, monkeypatch)
    for _ in range(2):
        cluster.make_buckets(["one", "two"])
    assert sorted(path.name for path in folder.iterdir()) == ["one", "two"]
    assert store.left == -4, "three refusals, and each of two buckets was looked for twice"


def test_a_store_that_stays_away_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(folder, Away(1_000_000), monkeypatch)
    expected = r"cannot make the bucket one: the object store is away: .* refused; so it was for 600 s"
    with pytest.raises(StorageError, match=expected):
        cluster.make_buckets(["one"])
