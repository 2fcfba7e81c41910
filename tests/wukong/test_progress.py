import logging

import pytest

from wukong import progress


def test_what_is_logged_can_be_read_back(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), progress.track("downloading", total=12_000, unit="pictures") as advance:
        advance(3_000)
        advance(9_000)
    assert progress.parse(f"12:00:00 | INFO | {caplog.messages[-1]}") == ("downloading", 12_000, 12_000, "pictures")


@pytest.mark.parametrize("line", ["", "crawl finished in 3.1 s: s3://x", "12 of 13 apples", "a: 1 of 2 b"])
def test_other_lines_are_left_alone(line: str) -> None:
    assert progress.parse(line) is None
