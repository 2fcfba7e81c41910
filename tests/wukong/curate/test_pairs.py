"""Damaged parts of a crawl: each ends in an error that names the file."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.curate.pairs import read_pairs
from wukong.data.schema import CRAWLED
from wukong.errors import DataError, StorageError
from wukong.store import storage

ROW = dict.fromkeys(CRAWLED.names) | {
    "key": "0" * 20, "url": "http://a/b.jpg", "caption": "一只猫", "queries": ["猫"], "engine": "test",
    "status": "success",
}  # fmt: skip


def table(**columns):
    whole = pa.Table.from_pylist([ROW], schema=CRAWLED)
    for name, values in columns.items():
        place = whole.schema.get_field_index(name)
        whole = whole.set_column(place, name, values) if values is not None else whole.remove_column(place)
    return whole


def parquet(value):
    target = io.BytesIO()
    pq.write_table(value, target)
    return target.getvalue()


def written(folder, data):
    uri = storage.from_path(folder / "00007.parquet")
    storage.write_bytes(uri, data)
    return uri


def not_utf8(data):
    return pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, len(data)], pa.int32()).buffers()[1], pa.py_buffer(data)]
    )


@pytest.mark.parametrize(
    "columns",
    [
        {"caption": None},
        {"caption": pa.array([[1, 2]])},
        {"caption": pa.array([None], pa.string())},
        {"width": pa.array(["wide"])},
        {"width": pa.array([2**40])},
        {"caption": not_utf8(b"\xed\xa0\x80")},  # a lone surrogate, as some writers of UTF-8 encode it
        {"caption": not_utf8(b"\xff\xfe")},
    ],
    ids=["missing", "type", "null", "text-for-number", "too-large", "surrogate", "latin-1"],
)
def test_another_schema_is_an_error(tmp_path, columns):
    with pytest.raises(DataError, match=r"00007\.parquet is not a part of a crawl"):
        read_pairs(written(tmp_path, parquet(table(**columns))))


def test_strings_of_any_kind_and_parts_without_rows_are_read(tmp_path):
    for caption in ("", "   ", "\x00\x01\x1b", "猫" * 350_000, "繁體ひらがな한국어", "\ufffd", "a\r\nb"):
        assert read_pairs(written(tmp_path, parquet(table(caption=pa.array([caption])))))["caption"][0] == caption
    assert (
        read_pairs(written(tmp_path, parquet(table(caption=pa.array(["猫"], pa.large_string())))))["caption"][0] == "猫"
    )
    assert len(read_pairs(written(tmp_path, parquet(CRAWLED.empty_table())))) == 0


@given(cut=st.integers(0))
@settings(deadline=None, max_examples=60)
def test_a_part_cut_anywhere_is_an_error(tmp_path_factory, cut):
    data = parquet(table())
    with pytest.raises(StorageError, match=r"00007\.parquet"):
        read_pairs(written(tmp_path_factory.getbasetemp(), data[: cut % len(data)]))
