"""The ratio of a picture's sides at its limit."""

import pytest
from rule_samples import judge


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(603, 201, None), (604, 201, "aspect_ratio"), (201, 603, None), (201, 604, "aspect_ratio")],
)
def test_the_ratio_at_its_limit(width, height, expected):
    assert judge(["一只猫"], width, height) == [expected]


def test_without_a_side_the_ratio_is_over_every_limit():
    assert judge(["一只猫"], 0, 300, min_side=0, max_aspect_ratio=1e9) == ["aspect_ratio"]
    assert judge(["一只猫"], None, 300, min_side=0, max_aspect_ratio=1e9) == ["aspect_ratio"]
