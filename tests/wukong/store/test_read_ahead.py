"""A stream of an object is like a file, whatever is read and wherever it is moved to, and asks for each byte once."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.store import read_ahead, storage

DATA = bytes(range(256)) * 2
MOVES = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 90)),
    st.tuples(st.just("line"), st.just(0)),
    st.tuples(st.just("seek"), st.integers(0, len(DATA) + 9)),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("object") / "data"
    made.write_bytes(DATA)
    return made


@given(st.lists(MOVES, max_size=30), st.integers(1, 600))
def test_it_is_like_a_file(path: Path, moves: list[tuple[str, int]], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_ahead, "_PIECE_BYTES", piece)
        with path.open("rb") as file, read_ahead.opened(storage.from_path(path), len(DATA)) as stream:
            assert stream.seek(0, os.SEEK_END) == len(DATA)
            stream.seek(0)
            for move, count in moves:
                done = [
                    each.read(count) if move == "read" else each.readline() if move == "line" else each.seek(count)
                    for each in (file, stream)
                ]
                assert done[0] == done[1] and file.tell() == stream.tell()


def test_from_start_to_end_with_steps_back_each_piece_is_asked_for_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[int] = Counter()
    read = read_ahead._Pieces._read
    monkeypatch.setattr(read_ahead, "_PIECE_BYTES", 50)
    monkeypatch.setattr(read_ahead._Pieces, "_read", lambda self, start: (asked.update([start]), read(self, start))[1])
    with read_ahead.opened(storage.from_path(path), len(DATA)) as stream:
        for start in range(1, len(DATA), 40):
            stream.seek(start - 1)  # as tarfile does it
            assert stream.read(41) == DATA[start - 1 : start + 40]
    assert asked == dict.fromkeys(range(0, len(DATA), 50), 1)
