"""The tar of a part, compared with Python's tarfile."""

import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong import storage
from wukong.crawl.part_writer import Spool, write_part


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
