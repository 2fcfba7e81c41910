"""Text files that people give, in every encoding in which Windows saves Chinese."""

import codecs
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.store import text_files

LINES = "一只猫在睡觉\n红色的苹果, and a pear\n\n熊猫\n"
MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"))


def read(data: bytes, assumed: list[str] | None = None) -> str:
    return text_files.utf8(io.BytesIO(data), "list.csv", assumed).read().decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("encoding", MARKED)
@given(text=texts)
def test_a_byte_order_mark_says_the_encoding(encoding: str, text: str) -> None:
    assert read(MARKED[encoding] + text.encode(encoding), assumed := []) == text
    assert not assumed, "it is said, not assumed"


@given(text=texts)
def test_utf_8_stays_as_it_is(text: str) -> None:
    assert read(text.encode(), assumed := []) == text
    assert not assumed


def test_gb_18030_is_assumed_and_counted_where_that_is_allowed() -> None:
    data = LINES.encode("gb18030")
    assert read(data, assumed := []) == LINES
    assert assumed == ["list.csv"]
    assert text_files.said([*assumed, "b"]).startswith("Read as GB 18030, because not UTF-8: 2 of the text files; the")
    assert read(data).encode("utf-8", "surrogateescape") == data, "nothing is assumed"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-16-le", "红色的苹果\n"),
        ("utf-16-be", "红色的苹果\n"),
        ("utf-32-le", "红色的苹果\n"),
        ("big5", "紅色蘋果與貓咪\n"),
        ("shift_jis", "私達は日本語\n"),
        ("latin-1", "Größe und Höhe, à la carte\n"),
    ],
)
def test_what_is_no_gb_18030_is_not_read_as_such(encoding: str, text: str) -> None:
    data = text.encode(encoding)
    assert read(data, assumed := []).encode("utf-8", "surrogateescape") == data
    assert not assumed


def test_a_damaged_line_does_not_decide() -> None:
    data = "猫在睡觉\n".encode()[1:] + LINES.encode() * 3 + "坏".encode()[:2]
    assert "一只猫在睡觉" in read(data, assumed := [])
    assert not assumed
    damaged = LINES.encode("gb18030") * 3 + b"\xff\n" + LINES.encode("gb18030")
    assert read(damaged, []) == LINES * 3 + "\udcff\n" + LINES


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8", "utf-16"])
def test_it_is_read_in_pieces(encoding: str) -> None:
    """A mebibyte of ASCII comes first, and a character lies over the end of a piece."""
    text = "a,b\n" * (1 << 18) + "c" + "猫和狗\n" * (1 << 18)
    assert read(text.encode(encoding), []) == text
