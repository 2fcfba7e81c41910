"""Amounts as people read them."""

import pytest

from wukong.runtime import amounts


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1_000, "1.0 KB"), (338_700, "338.7 KB"), (2.5e6, "2.5 MB"), (3e9, "3.0 GB")],
)
def test_sizes(count: float, shown: str) -> None:
    assert amounts.size(count) == shown
    assert amounts.size(12_345e12) == "12,345.0 TB"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.25, "0.2 s"), (59, "59.0 s"), (60, "1.0 min"), (3_600, "1.0 h"), (172_799, "48.0 h"), (172_800, "2.0 days")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert str(amounts.duration(seconds)) == shown
