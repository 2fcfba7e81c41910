"""Labelled captions: the format against captions built from pieces, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.name_tagger import captions
from wukong.errors import DataError

PIECES = st.lists(st.tuples(st.booleans(), st.text("演员王宝强 ·C罗", min_size=1, max_size=5)), min_size=1, max_size=6)


@given(PIECES)
def test_brackets_are_taken_off_and_their_spans_kept(pieces):
    text, spans = captions.parse("".join(f"[{piece}]" if name else piece for name, piece in pieces))
    assert text == "".join(piece for _, piece in pieces)
    assert [text[start:end] for start, end in spans] == [piece for name, piece in pieces if name]


@pytest.mark.parametrize("line", ["[王宝强", "王宝强]", "[]出席", "[[王宝强]]", "演员[王[宝]强]"])
def test_a_line_with_wrong_brackets_is_named(tmp_path, line):
    (tmp_path / "a.txt").write_text(f"# names, hard\n\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.txt, line 3: .*write each name as \[name\]"):
        captions.read(tmp_path / "a.txt")


def test_captions_are_read_below_headings_of_a_kind(tmp_path):
    text = "# names, common\n[甲]\n乙\n\n# no names, hard\n丙\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert captions.read(tmp_path / "a.txt") == [("甲", [(0, 1)]), ("乙", []), ("丙", [])]
    assert captions.read(tmp_path / "a.txt", "hard") == [("丙", [])]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the labelled captions in .*a\.txt"):
        captions.read(tmp_path / "a.txt")
