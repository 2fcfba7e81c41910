"""Download the images of one part and write its tar and its Parquet file."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from wukong.config.crawl import Crawl
from wukong.crawl import image_header, part_writer, stored_image, usage
from wukong.crawl.clock import Clock
from wukong.crawl.decoder import Decoder
from wukong.crawl.fetch import Fetcher, RequestOptions
from wukong.crawl.found import MAX_CAPTION
from wukong.crawl.optout import DIGEST_LISTED, LISTED, OptOut
from wukong.crawl.robots import product_token
from wukong.crawl.status import FetchError, Status, is_transient
from wukong.crawl.transport import Response, Watcher
from wukong.crawl.unexpected import unexpected
from wukong.data.schema import CRAWLED
from wukong.errors import WukongError

_NOAI = "X-Robots-Tag keeps it from training"
_SHOWN = 100
"""Characters that are stored of a caption that is too long."""

_HASHED_IN_LOOP = 1 << 20
"""The digest of an image with more bytes than this is computed in a thread."""

_QUICK_DECODE = 2.0
"""If decoding an image takes longer than this, in seconds, the rest is charged to the image's host."""

AT_ONCE = 2
"""New parts that a task downloads at the same time: while one waits or is written, another is fetched."""

Outcome = tuple[str, Mapping[str, Any], bytes | None]
"""The result of a URL in an earlier crawl: its key, the columns that a download fills, and the stored image or None."""


async def download_part(
    uri: str,
    planned: Sequence[Mapping[str, Any]],
    fetcher: Fetcher,
    config: Crawl,
    known: Iterable[Outcome] = (),
    decoder: Decoder | None = None,
    *,
    to_the_end: bool = True,
) -> dict[str, Any]:
    """Download the images of one part and write the part, or what there is of it when it waits for slow hosts.

    Args:
        uri: URI of the part without a suffix.
        planned: one row for each URL, with the columns ``key``, ``url``, ``caption``, ``queries``, ``engine`` and
            ``page_url``; also ``captions`` in a crawl in which a URL has several.
        fetcher: sends all requests.
        config: the crawl's settings.
        known: results of an earlier crawl, for URLs that are not requested again.
        decoder: decodes images that are expensive to decode; None to start one for this part.
        to_the_end: false to write an incomplete part when it waits for slow hosts. With what was written as ``known``
            it goes on, and ends with the same bytes.

    Returns:
        The part's record: ``urls``, their number; ``left``, how many more are not done; ``requested``, how many of them
        were requested; ``bytes_read``, bytes of the answers with a 2xx code; ``statuses``, the number of URLs for each
        status; ``transient``, how many failed for a temporary reason; ``examples``, a URL and its error for each status
        that is a failure.

    Raises:
        WukongError: an error that concerns more than one URL, such as a full disk.
    """
    with ExitStack() as stack:
        spool = stack.enter_context(part_writer.Spool())
        decoder = decoder or stack.enter_context(Decoder(config))
        urls = {row["key"]: row["url"] for row in planned}
        reused = await asyncio.to_thread(_take_over, known, urls, fetcher.opt_out, config, spool)
        part = _Part(fetcher, config, spool, decoder)
        async with asyncio.TaskGroup() as group:
            tasks = {row["key"]: group.create_task(part.download(row)) for row in planned if row["key"] not in reused}
            if not to_the_end:
                await _give_up_waiting(tasks.values(), fetcher, config)
        done = {key: task.result() for key, task in tasks.items() if not task.cancelled()}
        done |= {row["key"]: {**row, **reused[row["key"]]} for row in planned if row["key"] in reused}
        rows = [done[row["key"]] for row in planned if row["key"] in done]
        # In a thread, so that other parts continue meanwhile.
        rows = await asyncio.to_thread(part_writer.write_part, uri, rows, spool)
    statuses = Counter(row["status"] for row in rows)
    examples = {row["status"]: [row["url"], row["error"]] for row in reversed(rows) if row.get("error")}
    return {
        "urls": len(rows),
        "left": len(planned) - len(rows),
        "requested": sum(not task.cancelled() for task in tasks.values()),
        "bytes_read": part.bytes_read,
        "statuses": dict(sorted(statuses.items())),
        "transient": sum(is_transient(row["status"], row.get("http_status")) for row in rows),
        "examples": dict(sorted(examples.items())),
    }


async def _give_up_waiting(tasks: Collection[asyncio.Task[Any]], fetcher: Fetcher, config: Crawl) -> None:
    """Cancel the downloads that wait when the part waits for slow hosts.

    It does if in ``max_seconds``, the longest time of one picture on the wire, fewer end than may be in flight for it.
    """
    left = {*tasks}
    while left:
        ended, left = await asyncio.wait(left, timeout=config.max_seconds)
        if left and len(ended) < max(1, config.concurrency // AT_ONCE):
            await fetcher.cancel_waiting(left)
            return


def _refusal(url: str, known: Mapping[str, Any], opt_out: OptOut, config: Crawl) -> dict[str, Any] | None:
    """Return the columns of a URL that was reused, had its owner asked to leave it out before; None if it is kept."""
    if opt_out.covers_any_spelling(url):
        return {"status": Status.OPTED_OUT.value, "error": LISTED}
    if known.get("sha256") in opt_out.digests:
        status, why = Status.OPTED_OUT, DIGEST_LISTED
    elif config.politeness.respect_noai and usage.forbids_training(usage.from_text(known.get("usage"))):
        status, why = Status.NOAI, _NOAI
    else:
        return None
    return {**known, "status": status.value, "error": why, "stored_width": None, "stored_height": None}


class _Part:
    def __init__(self, fetcher: Fetcher, config: Crawl, spool: part_writer.Spool, decoder: Decoder) -> None:
        self._fetcher = fetcher
        self._config = config
        self._spool = spool
        self._decoder = decoder
        self.bytes_read = 0

    async def download(self, planned: Mapping[str, Any]) -> dict[str, Any]:
        """Download one image, put its stored form into the spool, and return its row."""
        row: dict[str, Any] = {**dict.fromkeys(CRAWLED.names), **planned}
        arrival = _Arrival(self._config)
        try:
            stored = await self._fetch(row, arrival)
            row |= {"stored_width": stored.width, "stored_height": stored.height}
            row["status"] = Status.SUCCESS.value
        except FetchError as error:
            row["status"], row["error"] = error.status.value, str(error)
            row["http_status"] = error.http_status or row["http_status"]
        if arrival.header is not None:
            header = arrival.header
            row |= {"width": header.width, "height": header.height, "exif_orientation": header.orientation}
            row["mime"] = image_header.MIME_TYPES[header.kind]
        self.bytes_read += arrival.bytes_read
        return row

    async def _fetch(self, row: dict[str, Any], arrival: "_Arrival") -> stored_image.Stored:
        if len(row["caption"]) > MAX_CAPTION:
            row["caption"] = row["caption"][:_SHOWN]
            raise FetchError(Status.CAPTION_TOO_LONG, f"the caption has more than {MAX_CAPTION} characters")
        try:
            async with self._fetcher.get(row["url"], RequestOptions(watch=arrival.start_attempt)) as response:
                row |= {"http_status": response.status, "usage": usage.as_text(response.said)}
                stored = await self._store(row, response, arrival)
                self._spool.add(row["key"], stored.data)
                return stored
        except (FetchError, WukongError):
            raise
        except Exception as error:  # it concerns one URL, and becomes its status; it is logged
            raise unexpected(row["url"], error) from error

    async def _store(self, row: dict[str, Any], response: Response, arrival: "_Arrival") -> stored_image.Stored:
        data, response.body = bytes(response.body), bytearray()  # it is in memory once
        digest = _digest(data) if len(data) <= _HASHED_IN_LOOP else await asyncio.to_thread(_digest, data)
        row |= {"bytes": len(data), "sha256": digest}
        if self._config.politeness.respect_noai and usage.forbids_training(response.said):
            raise FetchError(Status.NOAI, _NOAI)  # an answer that redirected to this one says it
        if digest in self._fetcher.opt_out.digests:
            raise FetchError(Status.OPTED_OUT, DIGEST_LISTED)
        clock = Clock()
        try:
            if arrival.header is None and image_header.sniff(data) == "avif":
                arrival.set_header(await self._decoder.read_header(data, clock))
            elif arrival.header is None:
                arrival.read_header(data, complete=True)
            header = arrival.header
            if header is None:
                raise FetchError(Status.NOT_IMAGE, "empty")
            stored = (
                stored_image.store_jpeg(data, header, self._config) if image_header.is_cheap(data, header) else None
            )
            if stored is None:
                stored = await self._decoder.store(data, header, clock)
        finally:
            self._fetcher.charge(response.url, clock.spent - _QUICK_DECODE)
        arrival.header = stored.header
        return stored


def _take_over(
    known: Iterable[Outcome], urls: Mapping[str, str], opt_out: OptOut, config: Crawl, spool: part_writer.Spool
) -> dict[str, Mapping[str, Any]]:
    """Put the images of an earlier crawl into the spool; return the columns of the results that can be used, by key.

    An image whose owner has asked since to leave it out is left out.
    """
    reused: dict[str, Mapping[str, Any]] = {}
    for key, columns, picture in known:
        if (refusal := _refusal(urls[key], columns, opt_out, config)) is not None:
            reused[key] = refusal
            continue
        if picture is not None:
            spool.add(key, picture)
        reused[key] = columns
    return reused


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Arrival:
    """Checks an image while it arrives: the owner's wishes in the HTTP headers, the size rule in the first bytes."""

    def __init__(self, config: Crawl) -> None:
        self._config = config
        self._product = product_token(config.politeness.user_agent)
        self._reader = image_header.HeaderReader()
        self.header: image_header.Header | None = None
        self._earlier_bytes = 0
        self._bytes = 0

    @property
    def bytes_read(self) -> int:
        """Bytes of the bodies received in all attempts."""
        return self._earlier_bytes + self._bytes

    def start_attempt(self) -> Watcher:
        """Forget the attempt before, and return the watcher for a new one."""
        self._earlier_bytes, self._bytes = self.bytes_read, 0
        self._reader, self.header = image_header.HeaderReader(), None
        return self._check

    def _check(self, response: Response) -> None:
        self._bytes = len(response.body)
        if not response.body:
            said = usage.said_in(response.headers, self._product)
            if self._config.politeness.respect_noai and usage.forbids_training(said):
                raise FetchError(Status.NOAI, _NOAI, http_status=response.status)
        elif self.header is None:
            try:
                self.read_header(response.body, complete=False)
            except FetchError as error:
                error.http_status = response.status
                raise

    def read_header(self, data: bytes | bytearray, *, complete: bool) -> None:
        """Read the image's header if it has arrived, and apply the size rule."""
        header = self._reader.read(data, complete=complete)
        if header is not None:
            self.set_header(header)

    def set_header(self, header: image_header.Header) -> None:
        """Store the image's header and apply the size rule."""
        self.header = header
        image_header.check_size(header, self._config)
