"""Variation of captions: what is a name before is one after, and nothing else changes."""

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.name_tagger import augment, captions

CAPTIONS = st.sampled_from(
    ["演员[海清]出席发布会", "[王宝强]、[C罗]", "猫", "[汤姆·克鲁斯]", "[Anna 李]来了", "图：[佐藤健二]与[欧阳娜娜]"]
).map(captions.parse)
GENERATORS = st.integers(0, 2**32).map(random.Random)


@cache
def pool():
    return augment.NamePool(["王宝强", "海清", "欧阳娜娜", "汤姆·克鲁斯", "C罗", "佐藤健二", "古力娜扎"])


def outside(caption):
    """The pieces of text around the names."""
    ends = [0, *(place for span in caption.names for place in span), len(caption.text)]
    return [caption.text[start:end] for start, end in zip(ends[::2], ends[1::2], strict=True)]


@given(CAPTIONS, GENERATORS)
@settings(deadline=None)
def test_a_replaced_name_is_of_the_same_kind_and_the_rest_stays(caption, generator):
    made = augment.replace_names(caption, pool(), generator)
    assert outside(made) == outside(caption)
    for before, after in zip(caption.names, made.names, strict=True):
        old, new = caption.text[slice(*before)], made.text[slice(*after)]
        assert new and (" " not in old or new == old)
        if new != old and pool().kind(old) in ("dotted", "mixed"):
            assert pool().kind(new) == pool().kind(old)
        if pool().kind(old) == "chinese 2":
            assert pool().kind(new) == "chinese 2"


@given(CAPTIONS, CAPTIONS, GENERATORS)
def test_joined_captions_keep_their_names_apart(first, second, generator):
    made = augment.join(first, second, generator)
    assert made.text.startswith(first.text) and made.text.endswith(second.text)
    names = [caption.text[slice(*span)] for caption in (first, second) for span in caption.names]
    assert [made.text[slice(*span)] for span in made.names] == names
    if first.names and second.names and len(outside(first)[-1]) == len(outside(second)[0]) == 0:
        assert made.text == f"{first.text} {second.text}"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("海清", "chinese 2"),
        ("王宝强", "chinese 3"),
        ("欧阳娜娜", "chinese 4"),
        ("佐藤健二", "japanese"),
        ("汤姆·克鲁斯", "dotted"),
        ("C罗", "mixed"),
        ("古力娜扎", "other"),
    ],
)
def test_the_kind_of_a_name(name, kind):
    assert pool().kind(name) == kind


def test_nameless_captions_have_a_word_and_no_name():
    words = augment.nameless_words()
    assert "图片" in words and "刘亦菲" not in words
    made = augment.nameless_caption(["安静"], random.Random(0))
    assert "安静" in made.text and made.names == []
