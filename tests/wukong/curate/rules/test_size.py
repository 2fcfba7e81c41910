"""The shorter side of a picture at its limit."""

import pytest
from rule_samples import judge


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(201, 201, None), (200, 201, "size"), (201, 200, "size"), (None, 300, "size"), (0, 0, "size")],
)
def test_the_shorter_side_at_its_limit(width, height, expected):
    assert judge(["一只猫"], width, height) == [expected]


def test_the_limit_is_the_setting():
    assert judge(["一只猫"], 150, 400, min_side=150) == [None]
    assert judge(["一只猫"], 149, 400, min_side=150) == ["size"]
