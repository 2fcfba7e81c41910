"""The opt-out list as people save it."""

import pytest

from wukong.crawl.optout import OptOut


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_of_every_encoding_and_line_end(encoding: str, end: str) -> None:
    listed = OptOut.parse(end.join(["# 不要", "example.com", "http://a.test/猫.jpg"]).encode(encoding), "list")
    assert listed.domains == {"example.com"}
    assert listed.covers_any_spelling("http://a.test/猫.jpg")
