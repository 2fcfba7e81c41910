"""Reading tars: files that tarfile wrote can be read back, and all damage is found."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate import repack
from wukong.data import shards
from wukong.errors import DataError
from wukong.store import storage

FILES = {"a1.jpg": b"first", "a1.txt": "一只猫".encode(), "b2.jpg": b"", "b2.json": b"{}" * 700, "c3.jpg": b"x" * 512}


@pytest.fixture(scope="module")
def whole():
    """A tar written by tarfile, without the zeros that fill its last record."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        return target.getvalue()[: tar.offset] + bytes(1024)


def written(folder, data):
    uri = storage.from_path(folder / "shard.tar")
    storage.write_bytes(uri, data)
    return uri


def test_members_can_be_read_back(tmp_path, whole):
    uri = written(tmp_path, whole)
    assert {f"{m.key}.{m.suffix}": m.read() for m in shards.members(uri)} == FILES
    assert dict(shards.pictures(uri)) == {"a1": b"first", "b2": b"", "c3": b"x" * 512}
    places = {row["key"]: whole[row["offset"] : row["offset"] + row["size"]] for row in
              repack.picture_places(uri).to_dicts()}  # fmt: skip
    assert places == {"a1": b"first", "b2": b"", "c3": b"x" * 512}


@given(cut=st.integers(0))
@settings(deadline=None, max_examples=100)
def test_a_tar_cut_anywhere_is_an_error_that_names_it(tmp_path_factory, whole, cut):
    uri = written(tmp_path_factory.getbasetemp(), whole[: cut % len(whole)])
    with pytest.raises(DataError, match=r"shard\.tar is not a complete tar"):
        list(shards.members(uri))


@given(cut=st.integers(0))
@settings(deadline=None, max_examples=50)
def test_no_content_is_cut_short_without_an_error(tmp_path_factory, whole, cut):
    uri, read = written(tmp_path_factory.getbasetemp(), whole[: cut % len(whole)]), {}
    with pytest.raises(DataError, match=r"shard\.tar is not a complete tar"):
        for member in shards.members(uri):
            read[f"{member.key}.{member.suffix}"] = member.read()
    assert read == {name: FILES[name] for name in read}


def test_a_file_that_is_not_a_tar_is_an_error(tmp_path):
    with pytest.raises(DataError, match="is not a complete tar"):
        list(shards.pictures(written(tmp_path, b"PAR1" + bytes(range(256)) * 8)))


names = st.text("0123456789abcdef._-", min_size=1, max_size=100)


@given(names, st.integers(0, 8**11 - 1))
def test_headers_equal_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o444
    assert shards.header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


def test_a_packed_file_can_be_read_back(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"".join(shards.packed(name, data) for name, data in FILES.items()) + shards.END)
    with tarfile.open(tmp_path / "0.tar") as tar:
        assert {entry.name: tar.extractfile(entry).read() for entry in tar} == FILES
