"""What an opt-out list covers, against the crawler's own rule; files of a release, against Python's csv."""

import csv
import io

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wukong.crawl.optout import OptOut
from wukong.crawl.status import FetchError
from wukong.crawl.url import normalise
from wukong.errors import DataError
from wukong.publish import release
from wukong.store import storage

LIST = """
example.com
图片.cn
2001-db8.org
http://other.net/a%20b?q=1
https://images.other.net/猫.jpg
http://[::1]/x
"""
HOSTS = [
    "example.com", "www.EXAMPLE.com", "notexample.com", "example.com.cn", "图片.cn", "a.xn--7uq871k.cn", "other.net",
    "images.other.net:443", "user:pass@example.com", "a@b@example.com", "[::1]", "[::1", "", "exa mple.com",
]  # fmt: skip
PATHS = [
    "", "/", "/a b?q=1", "/a%20b?q=1#top", "/猫.jpg", "/%E7%8C%AB.jpg", "/x", "/x\\@example.com", "?u=http://example.com/",
]  # fmt: skip
URL = st.builds(
    "{}{}{}".format,
    st.sampled_from(["http://", "https://", "HTTP://", "ftp://", "//", "", " http://", "ht\ttp://"]),
    st.sampled_from(HOSTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(PATHS),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text('",\r\n\x00 猫', max_size=10)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "list.txt"
    path.write_text(LIST + "ab" * 32 + "\n", encoding="utf-8")
    return OptOut.load(storage.from_path(path))


@given(st.lists(URL, max_size=12))
@settings(deadline=None, max_examples=300)
def test_a_list_covers_what_the_crawler_would_leave_out(listed, urls):
    def expected(url):
        try:
            return listed.covers(normalise(url))
        except FetchError:
            return False

    found = listed.covers_pairs(pl.DataFrame({"url": urls}, schema={"url": pl.String}))
    assert found.to_list() == [expected(url) for url in urls]


def test_pictures_are_found_by_their_digest(listed):
    pairs = pl.DataFrame({"url": ["http://a.b/"] * 3, "sha256": ["ab" * 32, None, "cd" * 32]})
    assert listed.covers_pairs(pairs).to_list() == [True, False, False]


@given(st.lists(st.tuples(TEXT, TEXT), max_size=8))
@settings(deadline=None)
def test_a_file_is_the_csv_that_others_read(tmp_path_factory, rows):
    uri = storage.from_path(tmp_path_factory.getbasetemp() / "some.csv")
    release.write_csv(uri, pl.DataFrame(rows, schema={"url": pl.String, "caption": pl.String}, orient="row"))
    data = storage.read_bytes(uri)
    assert list(csv.reader(io.StringIO(data.decode(), newline=""))) == [["url", "caption"], *map(list, rows)]
    again = release.read_csv(uri)
    assert again.rows() == rows
    release.write_csv(uri, again)
    assert storage.read_bytes(uri) == data


def test_what_is_no_file_of_a_release_is_an_error(tmp_path):
    path = tmp_path / "x.csv"
    for content in (b"", b"a,b\n1,2\n", b'url,caption\n"\xff\xfe"\n'):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.csv is not a file of a release"):
            release.read_csv(storage.from_path(path))
