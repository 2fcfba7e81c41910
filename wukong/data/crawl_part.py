"""A part of a crawl: a table of its URLs, and a tar of their pictures."""

from collections.abc import Iterator
from typing import NamedTuple

from wukong.store import storage
from wukong.store.manifest import Manifest


class CrawlPart(NamedTuple):
    """A part: its URI without suffix, and the digests of its table and its tar, empty where nothing says them."""

    uri: str
    table_sha256: str = ""
    tar_sha256: str = ""

    @property
    def table(self) -> str:
        """URI of its table."""
        return f"{self.uri}.parquet"

    @property
    def tar(self) -> str:
        """URI of its tar."""
        return f"{self.uri}.tar"

    @property
    def is_there(self) -> bool:
        """Whether both of its files are there."""
        return storage.exists(self.table) and storage.exists(self.tar)


def parts_of(crawl: Manifest) -> Iterator[CrawlPart]:
    """Return the parts of a crawl, in the order of their tables in its manifest."""
    tars = {part.path: part.sha256 for part in crawl.parts.below("parts/", ".tar")}
    for table in crawl.parts.below("parts/", ".parquet"):
        stem = table.path.removesuffix(".parquet")
        yield CrawlPart(storage.join(crawl.uri, stem), table.sha256, tars.get(f"{stem}.tar", ""))
