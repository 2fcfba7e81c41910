import errno
import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.errors import StorageError
from wukong.store import storage
from wukong.store.conditional_store import ChangedError


def test_bytes_can_be_read_back(tmp_path: Path) -> None:
    uri = storage.join(storage.from_path(tmp_path), "深", "a b#c.bin")
    storage.write_bytes(uri, b"\x00\xff")
    assert storage.read_bytes(uri) == b"\x00\xff"
    assert (tmp_path / "深" / "a b#c.bin").read_bytes() == b"\x00\xff"


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=1, max_size=4))
def test_join_keeps_one_slash_between_segments(parts: list[str]) -> None:
    assert storage.join("s3://bucket/", *(f"/{part}/" for part in parts)) == "/".join(["s3://bucket", *parts])


def test_a_failed_write_keeps_the_old_content_and_leaves_no_file(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path / "file")
    storage.write_bytes(uri, b"old")
    with pytest.raises(ZeroDivisionError), storage.open_output(uri) as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    assert storage.read_bytes(uri) == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_each_folder_is_listed_once_and_only_files_are(tmp_path: Path) -> None:
    for name in ("a/x", "a/b/y", "c/z"):
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(b"1")
    outside = tmp_path / "q" / "w"
    outside.parent.mkdir()
    outside.write_bytes(b"22")
    os.mkfifo(tmp_path / "p" / "pipe")
    links = {"0": "a/b", "a/up": "..", "c/other": "../a", "loop": "loop", "gone": "nowhere", "out": outside.parent}
    for name, target in links.items():
        (tmp_path / "p" / name).symlink_to(target)
    uri = storage.from_path(tmp_path / "p")
    expected = [f"{uri}/{name}" for name in ("a/b/y", "a/x", "c/z", "out/w")]
    assert storage.list_files(uri) == sorted(storage.sizes(uri)) == expected
    assert storage.sizes(uri)[f"{uri}/out/w"] == 2
    assert storage.list_files(storage.from_path(tmp_path / "none")) == []


def test_a_pipe_or_a_device_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(StorageError, match="a pipe, a socket or a device"):
            storage.read_bytes(storage.from_path(path))
        with (
            pytest.raises(StorageError, match="a pipe, a socket or a device"),
            storage.open_input(storage.from_path(path)),
        ):
            pass


def test_a_full_disk_for_temporary_copies_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    no_room = r"s3://bucket/file: there is no room for its temporary copy in .*TMPDIR"
    with pytest.raises(StorageError, match=no_room), storage.open_output("s3://bucket/file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(PermissionError), storage.open_output("s3://bucket/file"):
        raise PermissionError


def test_listing_is_sorted_recursive_and_empty_for_nothing(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    for name in ("b/2.txt", "a/1.txt", "a/1.bin"):
        storage.write_bytes(storage.join(root, name), b"")
    assert storage.list_files(root, ".txt") == [storage.join(root, "a/1.txt"), storage.join(root, "b/2.txt")]
    assert storage.list_files(storage.join(root, "absent")) == []


def test_delete_removes_a_file_or_a_prefix_and_accepts_neither(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    storage.write_bytes(storage.join(root, "d/x"), b"")
    storage.delete(storage.join(root, "d"))
    storage.delete(storage.join(root, "d"))
    assert storage.list_files(root) == []


def test_parquet_is_readable_by_pyarrow_and_columns_can_be_selected(tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b"], "caption": ["猫", "狗"]})
    uri = storage.from_path(tmp_path / "t.parquet")
    storage.write_table(uri, table)
    assert pq.read_table(tmp_path / "t.parquet").equals(table)
    assert storage.read_table(uri, ["caption"]).column_names == ["caption"]


def test_equal_tables_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        storage.write_table(storage.from_path(tmp_path / name), pa.table({"x": list(range(1000))}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path / "t.parquet")
    storage.write_table(uri, pa.table({"x": [1]}))
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-7])
    with pytest.raises(StorageError, match=r"t\.parquet is not a readable Parquet file"):
        storage.read_table(uri)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path / "t.parquet")
    storage.write_table(uri, pa.table({"x": [1], "y": [["a"]]}))
    with pytest.raises(StorageError, match=r"t\.parquet .* lacks the columns z; it has x, y"):
        storage.read_table(uri, ["y", "z"])


def test_reading_a_table_does_not_import_pandas(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path / "t.parquet")
    storage.write_table(uri, pa.table({"x": [1]}))
    code = (
        "import sys; from wukong.store import storage; storage.read_table(sys.argv[1]); print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("uri", ["http://x/y", "/plain/path", "gs://b/k"])
def test_an_unknown_scheme_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="s3, file"):
        storage.read_bytes(uri)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing at that address"):
        storage.read_bytes(storage.from_path(tmp_path / "none"))


def test_json_that_is_not_json_is_named(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path / "x.json")
    storage.write_bytes(uri, b"{")
    with pytest.raises(StorageError, match="not valid JSON"):
        storage.read_json(uri)


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="you may write to it"):
        storage.write_bytes(storage.from_path(tmp_path / "file" / "x"), b"")


def test_an_unreachable_store_is_reported_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("WUKONG_STORE_PATIENCE", "0")
    with pytest.raises(StorageError, match=r"object store at http://127\.0\.0\.1:1 running") as caught:
        storage.exists("s3://bucket/key")
    assert "nothing" not in str(caught.value).replace("there is nothing", "")


def test_a_file_is_written_only_as_it_was_seen(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path / "folder" / "one")
    assert storage.version(uri) is None
    storage.write_if(uri, b"first", None)
    with pytest.raises(ChangedError, match="one was written by somebody else"):
        storage.write_if(uri, b"second", None)
    seen = storage.version(uri)
    storage.write_bytes(uri, b"other")
    with pytest.raises(ChangedError):
        storage.write_if(uri, b"third", seen)
    storage.write_if(uri, b"fourth", storage.version(uri))
    assert storage.read_bytes(uri) == b"fourth"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["one"]
    seen = storage.version(uri)
    storage.delete(uri)
    with pytest.raises(ChangedError):
        storage.write_if(uri, b"fifth", seen)
    assert not storage.exists(uri)


def test_of_many_writers_of_a_new_file_one_succeeds(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path / "one")

    def write(number: int) -> bool:
        try:
            storage.write_if(uri, str(number).encode(), None)
        except ChangedError:
            return False
        return True

    with ThreadPoolExecutor(8) as writers:
        succeeded = list(writers.map(write, range(32)))
    assert storage.read_bytes(uri) == str(succeeded.index(True)).encode() and sum(succeeded) == 1


def test_names_are_those_directly_below(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    for name in ("b.json", "a/one.json", "a/deep/two.json"):
        storage.write_json(f"{root}/x/{name}", 1)
    assert storage.list_names(f"{root}/x") == ["a", "b.json"] and storage.list_names(f"{root}/none") == []


def test_a_stream_is_written_as_its_bytes(tmp_path: Path) -> None:
    uri = storage.from_path(tmp_path / "d" / "one")
    content = io.BytesIO(b"one")
    content.seek(3)
    storage.write_if(uri, content, None)
    assert storage.read_version(uri) == (b"one", storage.version(uri))
    with pytest.raises(ChangedError):
        storage.write_if(uri, content, None)
    storage.delete(uri)
    assert storage.read_version(uri) is None


def test_what_others_delete_at_the_same_time_is_no_error(tmp_path: Path) -> None:
    root = storage.from_path(tmp_path)
    for _ in range(5):
        for number in range(200):
            (tmp_path / "x" / str(number % 20)).mkdir(parents=True, exist_ok=True)
            (tmp_path / "x" / str(number % 20) / str(number)).touch()
        with ThreadPoolExecutor(6) as pool:
            for deleted in [pool.submit(storage.delete, f"{root}/x") for _ in range(6)]:
                deleted.result()
        assert storage.list_names(root) == []


@pytest.mark.parametrize("kind", [pafs.FileType.File, pafs.FileType.Directory])
def test_what_is_gone_between_the_look_and_the_deletion_is_no_error(
    monkeypatch: pytest.MonkeyPatch, kind: pafs.FileType
) -> None:
    class Gone:
        """A store where somebody else is faster."""

        looks = 0

        def get_file_info(self, path: str) -> pafs.FileInfo:
            Gone.looks += 1
            return pafs.FileInfo(path, kind if Gone.looks < 3 else pafs.FileType.NotFound)

        def delete(self, path: str) -> None:
            raise FileNotFoundError(path)

        delete_dir = delete_file = delete

    monkeypatch.setattr(storage, "filesystem", lambda uri: (Gone(), uri))
    storage.delete("s3://b/k")
    assert Gone.looks == 3
