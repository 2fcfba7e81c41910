"""The word lists: features against a search of every substring, their content, and names taken out."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.curate.names import word_lists

LISTS = Path(word_lists.__file__).parent / "lists"


@given(
    st.text("甲乙丙", max_size=12),
    st.dictionaries(
        st.text("甲乙丙", min_size=1, max_size=5), st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=8
    ),
)
def test_marks_are_those_of_looking_at_every_string(text, kinds):
    expected = np.zeros((len(text), len(word_lists.MARKS)))
    for start, end in itertools.combinations(range(len(text) + 1), 2):
        for kind, place in itertools.product(kinds.get(text[start:end], ()), range(start, end)):
            for at, here in (("first", place == start), ("last", place == end - 1), ("inner", start < place < end - 1)):
                if here:
                    expected[place, word_lists.MARKS.index(f"{at} of a {word_lists.KINDS[kind]}")] = 1
    np.testing.assert_array_equal(word_lists.marks(word_lists.NameWords(kinds).find(text), len(text)), expected)


def test_the_lists_know_what_they_should():
    words = word_lists.load()

    def kinds(text):
        bits, start, end = words.find(text)
        whole = [bit for bit, low, high in zip(bits, start, end, strict=True) if (low, high) == (0, len(text))]
        return {kind for number, kind in enumerate(word_lists.KINDS) if whole and whole[0] >> number & 1}

    assert "person" in kinds("刘亦菲")
    assert kinds("李宁") >= {"brand"}
    assert "place" in kinds("黑龙江省")
    assert "word" in kinds("安静") or "dictionary name" in kinds("安静")
    assert kinds("欧阳") >= {"surname"}
    assert kinds("佐藤") >= {"japanese surname"}


@pytest.mark.parametrize("name", word_lists.NAME_LISTS)
def test_a_list_is_sorted_without_duplicates(name):
    words = word_lists.read_list(name)
    assert words == sorted(set(words))
    assert all(word == word.strip() for word in words)


def test_no_list_has_a_name_that_was_taken_out():
    digests = set((LISTS / "removed.txt").read_text(encoding="utf-8").splitlines())
    for name in word_lists.NAME_LISTS:
        back = [word for word in word_lists.read_list(name) if hashlib.sha256(word.encode()).hexdigest() in digests]
        assert back == [], f"{name} has names that a person asked to be taken out"


def test_the_digests_of_names_taken_out_are_well_formed():
    digests = word_lists.read_list("removed.txt")
    assert digests == sorted(set(digests))
    assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)


def test_a_name_that_was_taken_out_is_found(monkeypatch):
    # printf %s 张三丰 | sha256sum
    digest = "cd61f667b370586d831bcf87045878025ac38673e89cd8b267315859ac61bf12"
    monkeypatch.setattr(word_lists, "read_list", lambda name: {"removed.txt": [digest]}[name])
    assert word_lists.removed(["张三", "张三丰", "李四"]) == ["张三丰"]
