"""The types of a source, from which a crawl's pairs come. Each is one file in ``wukong/crawl/engines``.

The experiment's types (``wukong.config.crawl``) read the sources, where no large library is needed. So this module and
the sources' files import such libraries inside functions only, and know the section by ``CrawlSettings``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol
from urllib.parse import urlsplit

from wukong.runtime.language import _

if TYPE_CHECKING:
    import pyarrow as pa

    from wukong.crawl.engine import Engine


class CrawlSettings(Protocol):
    """The settings that sources read, of the section ``crawl`` of an experiment."""

    @property
    def engine(self) -> str: ...  # noqa: D102 - like the others, as in wukong.config.crawl
    @property
    def endpoint(self) -> str: ...  # noqa: D102
    @property
    def queries(self) -> str: ...  # noqa: D102
    @property
    def url_column(self) -> str: ...  # noqa: D102
    @property
    def caption_column(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class Picture:
    """One image of one's own with one of its captions.

    Attributes:
        url: ``file://``, ``s3://`` or ``http(s)://``. For the second caption of an image it ends in ``#caption-2``. For
            a row that cannot be used it is the list's URI with ``#row N: REASON``.
        caption: the caption on one line, or empty.
        stamp: size and modification time of the file, or empty.
    """

    url: str
    caption: str
    stamp: str = ""


@dataclass(frozen=True)
class Wording:
    """The words that pages use for a crawl's input.

    Attributes:
        heading: the heading over the funnel.
        results: title of the funnel's first step.
        counted: returns the beginning of a sentence with the number of its rows.
        origin: what the run was made from.
    """

    heading: str
    results: str
    counted: Callable[[int], str]
    origin: str


SEARCHED = Wording(
    _("From query to pair"),
    _("search results"),
    lambda rows: _("The queries gave {rows:,} search results").format(rows=rows),
    _("a list of Chinese words"),
)
"""The words for a search, and for a source that this version does not know."""


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A search engine, which is asked for the words of ``crawl.queries``.

    Attributes:
        name: value of ``crawl.engine``, and name of the source's file.
        engine: class of the engine, made with ``crawl.endpoint``, the address that it answers at.
    """

    name: str
    engine: type[Engine]

    searched: ClassVar = True
    reads_files: ClassVar = False
    pictures: ClassVar = None
    wording: ClassVar = SEARCHED
    not_in_key: ClassVar[frozenset[str]] = frozenset()

    @staticmethod
    def nothing(config: CrawlSettings, queries: int) -> str:
        """Return the end of the message for a crawl that found no URL."""
        return (
            f"{queries:,} searches gave no result. Check that crawl.endpoint = {config.endpoint!r} is the search "
            f"address of {config.engine!r}, and that crawl.queries = {config.queries!r} holds words that it knows."
        )

    def problems(self, config: CrawlSettings) -> Iterator[str]:
        """Yield what is wrong with the keys that a search reads."""
        if not config.queries:
            yield (
                f"crawl.queries: missing; crawl.engine {self.name!r} is searched by words: name the URI of a list "
                "('urls' and 'files' need none)"
            )
        try:
            parts = urlsplit(config.endpoint)
            host, _port = parts.hostname, parts.port
        except ValueError as error:
            yield f"crawl.endpoint: {config.endpoint!r} is no URL ({error}); write https://HOST/PATH"
            return
        if parts.scheme not in ("http", "https") or not host:
            yield (
                f"crawl.endpoint: {config.endpoint!r} is not the address of a {self.name} search: write it with its "
                "scheme, https://HOST/PATH (a list of URLs has crawl.engine: urls)"
            )


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What is read instead of searched, at the URI ``crawl.endpoint``: lists of URLs, or pictures of one's own.

    Attributes:
        name: value of ``crawl.engine``, and name of the source's file.
        wording: words that pages use for what comes from it.
        nothing: end of the message for a crawl that found no URL, from its settings and the number of its queries.
        check: returns why a URI cannot be ``crawl.endpoint``, in words that name it, or an empty text; it opens no
            file.
        lists: returns what is read, each by one task. Raises ``DataError`` where there is nothing.
        read: iterates over tables of schema ``found.FOUND``, each sorted by key, of one of ``lists`` and its position
            among them. A row that cannot be used becomes a URL that is none, with the reason in it.
        count: about how many pictures come in; reads no more than ``content``.
        content: texts that say what the lists hold, for the crawl's key; None for the SHA-256 of each of ``lists``.
        bytes_read: how many bytes are read for ``content``, of the sizes of the files at ``crawl.endpoint``.
        not_in_key: settings that change nothing about the crawl's output.
        reads_files: whether its URLs may name files of this machine and of the object store, not only of the web.
        pictures: iterates over pictures of one's own with their captions, and opens none; None for those of the web.
        problems: what is wrong with its settings, each beginning with the key, as far as can be said without a look at
            files.
    """

    name: str
    wording: Wording
    nothing: Callable[[CrawlSettings, int], str]
    check: Callable[[str], str]
    lists: Callable[[CrawlSettings], list[str]]
    read: Callable[[str, int, CrawlSettings], Iterator[pa.Table]]
    count: Callable[[CrawlSettings], int]
    content: Callable[[CrawlSettings], Sequence[str]] | None = None
    bytes_read: Callable[[Mapping[str, int]], int] = lambda sizes: sum(sizes.values())
    not_in_key: frozenset[str] = frozenset()
    reads_files: bool = False
    pictures: Callable[[CrawlSettings], Iterator[Picture]] | None = None
    problems: Callable[[CrawlSettings], Iterator[str]] = lambda _: iter(())

    searched: ClassVar = False


Source = Searched | Listed
