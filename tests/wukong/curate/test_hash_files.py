"""Lists of forbidden pictures as they are exchanged, and files of fingerprints."""

import gzip
import hashlib

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from wukong.curate import hash_files
from wukong.curate.hash_files import Fingerprints
from wukong.errors import ConfigError, DataError
from wukong.store import storage

PDQ = "f8f8f0cee0f4a84f06370a22038f63f0b36e2ed596621e1d33e6b39c4e9c9b22"
OTHER_PDQ = "30a10efd71cc3d429013d48d0ffffc52e34e0e17ada952a9d29685211ea9e5af"
MD5 = hashlib.md5(b"a", usedforsecurity=False).hexdigest()


def stored(tmp_path, text, name="list.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return storage.from_path(path)


@pytest.mark.parametrize(
    "text",
    [
        f"{PDQ}\n{OTHER_PDQ}\n",
        f"\ufeff# case 7\r\n\r\n  {PDQ.upper()}  \r\n{OTHER_PDQ}",
        f"{PDQ},0001,2020-07-31T18:47:52+0000,tag1 tag2\n{OTHER_PDQ},0002,,\n",
        f"id,hash\n1,{PDQ}\n2,{OTHER_PDQ}\n",
        f'hash,type,note\n{PDQ},PDQ,"a, b"\n{OTHER_PDQ},HASH_PDQ,\n',
        f"pdq,md5\n{PDQ},\n{OTHER_PDQ},\n",
        gzip.compress(f"{PDQ}\n{OTHER_PDQ}\n".encode(), mtime=0),
    ],
)
def test_a_list_is_read_in_each_form(tmp_path, text):
    found = hash_files.read_list(stored(tmp_path, text))
    assert [row.tobytes().hex() for row in found.pdq] == [PDQ, OTHER_PDQ]
    assert not len(found.md5)


def test_kinds_that_are_named_may_be_mixed(tmp_path):
    for text in (f"hash,type\n{MD5},md5\n{PDQ},pdq\n", f"md5,pdq\n{MD5},{PDQ}\n"):
        found = hash_files.read_list(stored(tmp_path, text))
        assert [row.tobytes().hex() for row in found.pdq] == [PDQ]
        assert [row.tobytes().hex() for row in found.md5] == [MD5]


def test_the_digest_is_of_what_is_forbidden_and_not_of_the_file(tmp_path):
    texts = f"{PDQ}\n{OTHER_PDQ}\n", f"# later\n{OTHER_PDQ}\n{PDQ}\n{PDQ}\n", f"{PDQ}\n", f"{MD5}\n"
    digests = [hash_files.read_list(stored(tmp_path, text)).digest for text in texts]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_several_lists_are_one(tmp_path):
    lists = [hash_files.read_list(stored(tmp_path, text)) for text in (f"{PDQ}\n", f"{OTHER_PDQ}\n{PDQ}\n", f"{MD5}\n")]
    whole = hash_files.together(lists)
    assert sorted(row.tobytes().hex() for row in whole.pdq) == sorted([PDQ, OTHER_PDQ])
    assert [row.tobytes().hex() for row in whole.md5] == [MD5]
    assert hash_files.together([]).pdq.shape == (0, 32)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{PDQ}\n{PDQ[:-1]}\n", "line 2: .*is no hash that can be compared"),
        (f"{PDQ}\n\n# x\n{PDQ[:-1]}g\n", "line 4: .*is no hash"),
        (f"{PDQ}\n{MD5}\n", "line 2: .*is MD5, and the lines before it hold PDQ.*Keep each kind in a file of its own"),
        (f"{'0' * 40}\n", "line 1: .*Leave hashes of other kinds out"),
        (f"hash,type\n{MD5},md5\n{PDQ},sha256\n", "line 3: .*is no hash that can be compared"),
        (f"hash,type\n{MD5},pdq\n", "line 2: .*is no hash that can be compared"),
        ("# nothing\n", "holds no hash"),
        ("", "holds no hash"),
        ("x" * 5000, "line 1 has more than 4096 bytes"),
        (b"\xff\xfe\x00", "line 1 is no text in UTF-8"),
        (gzip.compress(PDQ.encode(), mtime=0)[:-9], "damaged gzip file"),
        ("\n".join(hashlib.sha256(bytes([n])).hexdigest() for n in range(30)), "these are no PDQ hashes.*SHA-256"),
    ],
)
def test_a_list_that_cannot_be_obeyed_is_refused_with_its_line(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        hash_files.read_list(stored(tmp_path, text))


def test_a_list_of_too_many_hashes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(hash_files, "_MOST_HASHES", 3)
    assert len(hash_files.read_list(stored(tmp_path, f"{PDQ}\n" * 3)).pdq) == 3
    with pytest.raises(ConfigError, match="more than 3 hashes; split it"):
        hash_files.read_list(stored(tmp_path, f"{PDQ}\n" * 4))


def fingerprints(**changed):
    random = np.random.default_rng(0)
    made = {
        "name": "boxes",
        "split": "test",
        "digest": "d" * 64,
        "pictures": ["a.jpg", "猫.jpg", "c.jpg"],
        "forms": random.integers(0, 256, (3, 8, 32), dtype=np.uint8),
        "quality": np.array([0, 49, 100], np.uint8),
        "vectors": random.normal(size=(3, 5)).astype(np.float16),
        "made_by": "m" * 64,
        "captions": np.array([2**64 - 1, 0, 5, 5], np.uint64),
        "unread": 2,
    }
    return Fingerprints(**made | changed)


@pytest.mark.parametrize("vectors", [True, False])
def test_fingerprints_are_read_as_they_were_written(tmp_path, vectors):
    uri = storage.from_path(tmp_path / "boxes.parquet")
    made = fingerprints() if vectors else fingerprints(vectors=None, made_by="")
    hash_files.write(uri, made)
    first = storage.read_bytes(uri)
    found = hash_files.read(uri)
    assert (found.name, found.split, found.digest, found.unread) == ("boxes", "test", "d" * 64, 2)
    assert list(found.pictures) == list(made.pictures) and found.made_by == made.made_by
    assert np.array_equal(found.forms, made.forms) and np.array_equal(found.hashes, made.forms[:, 0])
    assert found.quality.tolist() == [0, 49, 100]
    assert found.captions.tolist() == [0, 5, 2**64 - 1]
    assert np.array_equal(found.vectors, made.vectors) if vectors else found.vectors is None
    hash_files.write(uri, made)
    assert storage.read_bytes(uri) == first


def test_others_read_a_picture_s_hash_in_a_column_of_its_own(tmp_path):
    uri = storage.from_path(tmp_path / "boxes.parquet")
    hash_files.write(uri, fingerprints())
    table = pl.read_parquet(tmp_path / "boxes.parquet")
    assert table["picture"].to_list() == ["a.jpg", "猫.jpg", "c.jpg"]
    assert table["pdq"].to_list() == [row.tobytes() for row in fingerprints().hashes]


@pytest.mark.parametrize("changed", [{b"kind": b"x"}, {b"version": b"2"}, {b"hash": b"phash"}])
def test_fingerprints_of_another_kind_or_version_are_refused(tmp_path, changed):
    uri = storage.from_path(tmp_path / "boxes.parquet")
    hash_files.write(uri, fingerprints())
    table = storage.read_table(uri)
    storage.write_table(uri, table.replace_schema_metadata(table.schema.metadata | changed))
    with pytest.raises(DataError, match="no fingerprints that can be compared"):
        hash_files.read(uri)


def test_a_table_of_something_else_is_refused(tmp_path):
    uri = storage.from_path(tmp_path / "other.parquet")
    storage.write_table(uri, pa.table({"key": ["a"]}))
    with pytest.raises(DataError, match="holds no fingerprints"):
        hash_files.read(uri)


def test_damaged_fingerprints_are_refused(tmp_path):
    uri = storage.from_path(tmp_path / "boxes.parquet")
    hash_files.write(uri, fingerprints())
    table = storage.read_table(uri)
    storage.write_table(uri, table.set_column(2, "forms", table["pdq"]))
    with pytest.raises(DataError, match="damaged file of fingerprints"):
        hash_files.read(uri)


def test_a_caption_s_hash_is_of_its_normal_form_and_the_same_everywhere():
    found = hash_files.caption_hashes(pl.Series(["一只猫", "Ａ  Cat", "a cat"]))
    expected = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in ("一只猫", "a cat", "a cat")]
    assert found.tolist() == expected
    assert not len(hash_files.caption_hashes(pl.Series([], dtype=pl.String)))
