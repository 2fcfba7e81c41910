"""From the URLs of one part to its tar and Parquet file."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from wukong.config import Crawl
from wukong.crawl import image, shard
from wukong.crawl.clock import Clock
from wukong.crawl.decoder import Decoder
from wukong.crawl.fetch import Fetcher
from wukong.crawl.status import FetchError, Status, is_transient
from wukong.crawl.transport import Response, Watcher
from wukong.crawl.unexpected import unexpected
from wukong.data.schema import CRAWLED
from wukong.errors import WukongError

_NOAI = ("noai", "noimageai")

_HASHED_IN_PLACE = 1 << 20
"""Bytes: the digest of a larger picture is computed in a thread."""

_QUICK_DECODE = 2.0
"""Seconds: what a picture takes the decoder beyond this is charged to its host."""

Outcome = tuple[str, Mapping[str, Any], bytes | None]
"""What became of a URL before: its key, the columns that a download decides, the stored picture where there is one."""


async def download_part(
    uri: str,
    found: Sequence[Mapping[str, Any]],
    fetcher: Fetcher,
    config: Crawl,
    known: Iterable[Outcome] = (),
    decoder: Decoder | None = None,
) -> dict[str, Any]:
    """Download the pictures of one part and write it.

    Args:
        uri: the part's address without a suffix.
        found: one row a URL, with the columns ``key``, ``url``, ``caption``, ``queries``, ``engine`` and ``page_url``.
        fetcher: used for every request.
        config: the crawl's settings.
        known: URLs that need no request, because an earlier crawl has them.
        decoder: decodes what is not cheap; one for this part alone where None.

    Returns:
        the part's record: ``urls``; how many of them were ``requested``; ``bytes_read`` of answers with a 2xx code;
        ``statuses``, how many URLs ended with each; ``transient``, how many ended for a reason that passes; and
        ``examples``, a URL and its error for each status that is a failure.

    Raises:
        WukongError: what concerns more than one URL, such as a disk that is full.
    """
    with ExitStack() as stack:
        spool = stack.enter_context(shard.Spool())
        decoder = decoder or stack.enter_context(Decoder(config))
        taken_over = {}
        for key, columns, picture in known:
            taken_over[key] = columns
            if picture is not None:
                spool.add(key, picture)
        part = _Part(fetcher, config, spool, decoder)
        async with asyncio.TaskGroup() as group:
            tasks = {row["key"]: group.create_task(part.picture(row)) for row in found if row["key"] not in taken_over}
        rows = [
            tasks[row["key"]].result() if row["key"] in tasks else {**row, **taken_over[row["key"]]} for row in found
        ]
        # In a thread, so that other parts go on meanwhile.
        await asyncio.to_thread(shard.write_part, uri, rows, spool)
    statuses = Counter(row["status"] for row in rows)
    examples = {row["status"]: [row["url"], row["error"]] for row in reversed(rows) if row.get("error")}
    return {
        "urls": len(rows),
        "requested": len(tasks),
        "bytes_read": part.bytes_read,
        "statuses": dict(sorted(statuses.items())),
        "transient": sum(is_transient(row["status"], row.get("http_status")) for row in rows),
        "examples": dict(sorted(examples.items())),
    }


class _Part:
    def __init__(self, fetcher: Fetcher, config: Crawl, spool: shard.Spool, decoder: Decoder) -> None:
        self._fetcher = fetcher
        self._config = config
        self._spool = spool
        self._decoder = decoder
        self.bytes_read = 0

    async def picture(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Download one picture, keep its stored form and give its row."""
        row: dict[str, Any] = {name: found.get(name) for name in CRAWLED.names}
        seen = _Seen(self._config)
        try:
            stored = await self._fetch(row, seen)
            row |= {"stored_width": stored.width, "stored_height": stored.height}
            row["status"] = Status.SUCCESS.value
        except FetchError as error:
            row["status"], row["error"] = error.status.value, str(error)
            row["http_status"] = error.http_status or row["http_status"]
        if seen.header is not None:
            header = seen.header
            row |= {"width": header.width, "height": header.height, "exif_orientation": header.orientation}
            row["mime"] = image.MIME_TYPES[header.kind]
        self.bytes_read += seen.bytes_read
        return row

    async def _fetch(self, row: dict[str, Any], seen: "_Seen") -> image.Stored:
        try:
            async with self._fetcher.get(row["url"], watch=seen.watcher) as response:
                row["http_status"] = response.status
                stored = await self._store(row, response, seen)
                self._spool.add(row["key"], stored.data)
                return stored
        except (FetchError, WukongError):
            raise
        except Exception as error:  # of one URL, whose status it becomes; it is logged
            raise unexpected(row["url"], error) from error

    async def _store(self, row: dict[str, Any], response: Response, seen: "_Seen") -> image.Stored:
        data = bytes(response.body)
        digest = _digest(data) if len(data) <= _HASHED_IN_PLACE else await asyncio.to_thread(_digest, data)
        row |= {"bytes": len(data), "sha256": digest}
        if digest in self._fetcher.opt_out.digests:
            raise FetchError(Status.OPTED_OUT, "the opt-out list names this picture's digest")
        clock = Clock()
        try:
            if seen.header is None and image.sniff(data) == "avif":
                seen.judge(await self._decoder.read_header(data, clock))
            elif seen.header is None:
                seen.check(data, complete=True)
            if seen.header is None:
                raise FetchError(Status.NOT_IMAGE, "empty")
            stored = image.store_jpeg(data, seen.header, self._config) if image.is_light(data, seen.header) else None
            if stored is None:
                stored = await self._decoder.store(data, seen.header, clock)
        finally:
            self._fetcher.charge(response.url, clock.spent - _QUICK_DECODE)
        seen.header = stored.header
        return stored


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Seen:
    """Watches a picture arrive: its owner's wishes in the headers, the size rule in the first bytes."""

    def __init__(self, config: Crawl) -> None:
        self._config = config
        self._reader = image.HeaderReader()
        self.header: image.Header | None = None
        self._earlier_bytes = 0
        self._response: Response | None = None

    @property
    def bytes_read(self) -> int:
        """Bytes of the bodies seen, over all attempts."""
        return self._earlier_bytes + (len(self._response.body) if self._response else 0)

    def watcher(self) -> Watcher:
        """Begin anew, for another attempt."""
        self._earlier_bytes, self._response = self.bytes_read, None
        self._reader, self.header = image.HeaderReader(), None
        return self._watch

    def _watch(self, response: Response) -> None:
        self._response = response
        if not response.body:
            if self._config.politeness.respect_noai and forbids_training(response.headers.get("x-robots-tag", "")):
                raise FetchError(Status.NOAI, "X-Robots-Tag keeps it from training", http_status=response.status)
        elif self.header is None:
            try:
                self.check(response.body, complete=False)
            except FetchError as error:
                error.http_status = response.status
                raise

    def check(self, data: bytes | bytearray, *, complete: bool) -> None:
        """Read the header if it is there, and apply the size rule."""
        header = self._reader.read(data, complete=complete)
        if header is not None:
            self.judge(header)

    def judge(self, header: image.Header) -> None:
        """Keep the header and apply the size rule."""
        self.header = header
        image.check_size(header, self._config)


def forbids_training(value: str) -> bool:
    """Tell whether an ``X-Robots-Tag`` asks not to train on the answer (``noai``, ``noimageai``).

    A tag may begin with the name of the crawler it speaks to; such a wish is followed whoever it names.
    """
    directives = (piece.rpartition(":")[2].strip().lower() for piece in value.split(","))
    return any(directive in _NOAI for directive in directives)
