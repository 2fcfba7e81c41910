"""The form of a query, written in many ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.serve.query import search_forms

ALIKE = st.one_of(st.sampled_from("红紅花馬马國国 ，ａＡa1　\u200b<&é\u0301"), st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ("紅色的蘋果", "红色的苹果"),
        ("红色的苹果", "红色的苹果"),
        ("ＡＰＰＬＥ　手機", "apple 手机"),
        ("紅色\u200b的苹果 ", "红色的苹果"),
        ("乾隆皇帝", "乾隆皇帝"),  # by phrase: 乾 alone is 干
    ],
)
def test_every_way_to_write_a_query_is_one(written: str, form: str) -> None:
    assert search_forms([written]) == [form]


@given(st.lists(ALIKE, max_size=12).map("".join))
def test_one_text_has_the_form_that_it_has_among_many(text: str) -> None:
    assert search_forms([text]) == search_forms([text] * 100)[:1]
