"""The tar of a part, compared with Python's tarfile."""

import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.crawl.part_writer import Spool, write_part
from wukong.data.schema import CRAWLED
from wukong.store import storage


@given(st.lists(st.binary(max_size=2000), max_size=20))
def test_a_spool_returns_the_stored_images(pictures: list[bytes]) -> None:
    with Spool() as spool:
        for number, data in enumerate(pictures):
            spool.add(str(number), data)
            spool.read(str(number // 2))
        assert [spool.read(str(number)) for number in range(len(pictures))] == pictures


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_part_can_be_read_by_tarfile(tmp_path: Path, count: int) -> None:
    rows = [
        {"key": f"{n:020x}", "url": f"http://a/{n}", "caption": "图" * n, "queries": [], "engine": "urls", "status": s}
        for n in range(count)
        for s in (["success"] if n % 2 == 0 else ["timeout"])
    ]
    with Spool() as spool:
        for row in rows:
            spool.add(row["key"], b"x" * (int(row["key"], 16) * 300))
        write_part(storage.from_path(tmp_path / "0"), rows, spool)
    with tarfile.open(tmp_path / "0.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
        assert all(member.mtime == 0 and member.uid == 0 and member.isreg() for member in tar.getmembers())
    good = [row["key"] for row in rows if row["status"] == "success"]
    assert list(members) == [f"{key}.{suffix}" for key in good for suffix in ("jpg", "json", "txt")]
    assert all(members[f"{key}.jpg"] == b"x" * (int(key, 16) * 300) for key in good)


NUMBERS = ["http_status", "width", "height", "bytes", "exif_orientation", "stored_width", "stored_height"]
TEXTS = ["url", "caption", "page_url", "error", "mime", "sha256"]


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(NUMBERS), st.integers() | st.just(2**31 - 1) | st.floats()),
            st.dictionaries(st.sampled_from(TEXTS), st.text(max_size=5) | st.sampled_from(["\ud800", "a\udfff"])),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=200)
def test_a_row_that_cannot_be_written_is_an_error_of_its_url(tmp_path_factory, drawn) -> None:
    target = tmp_path_factory.mktemp("part") / "0"
    plain = {"caption": "图", "queries": ["词"], "engine": "urls", "status": "success"}
    rows = [
        {"key": f"{n:020x}", "url": f"http://a/{n}", **plain, **numbers, **texts}
        for n, (numbers, texts) in enumerate([({}, {}), *drawn])
    ]
    with Spool() as spool:
        for row in rows:
            spool.add(row["key"], b"x")
        written = write_part(storage.from_path(target), rows, spool)
    table = pq.read_table(f"{target}.parquet")
    assert table.schema.equals(CRAWLED)
    assert table["status"].to_pylist() == [row["status"] for row in written]
    for row, found in zip(rows, table.to_pylist(), strict=True):
        fits = all(
            isinstance(row.get(name), int | None) and abs(row.get(name) or 0) < 2 ** (63 if name == "bytes" else 31)
            for name in NUMBERS
        ) and all(_is_unicode(row.get(name) or "") for name in TEXTS)
        if fits:
            assert found["status"] == "success"
        if found["status"] == "success":
            assert found["url"] == row["url"]
        else:
            assert (found["status"], found["width"], found["sha256"]) == ("internal_error", None, None)
            assert found["key"] == row["key"]
            assert found["error"].startswith("unexpected ")
    with tarfile.open(f"{target}.tar") as tar:
        assert len(tar.getmembers()) == 3 * sum(row["status"] == "success" for row in written)


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
