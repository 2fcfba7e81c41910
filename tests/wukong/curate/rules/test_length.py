"""The number of Chinese units in a caption at its limits."""

import pytest
from rule_samples import judge


@pytest.mark.parametrize(("count", "expected"), [(31, None), (32, "length"), (1, None)])
def test_at_least_one_and_fewer_than_32_chinese_characters(count, expected):
    assert judge(["猫" * count + " with any number of English words " * 5]) == [expected]


def test_the_unit_is_the_setting():
    caption = "北京大学的图书馆 library 2024"  # 8 characters, and 3 words by jieba: 北京大学 / 的 / 图书馆
    assert judge([caption], max_length=7) == ["length"]
    assert judge([caption], max_length=3, length_unit="word") == [None]
    assert judge([caption], max_length=2, length_unit="word") == ["length"]


def test_characters_of_any_kind_are_limited_too():
    assert judge(["猫" + "a" * 999, "猫" + "a" * 1_000, "猫" + "a" * 200_000]) == [None, "length", "length"]
    assert judge(["猫 abc"], max_characters=4) == ["length"]
    assert judge(["猫" + " a" * 100_000], length_unit="word") == ["length"]
