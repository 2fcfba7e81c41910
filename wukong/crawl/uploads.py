"""Pictures that people send: read up to a limit, and decoded in a child process with limits on memory and time."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType

from wukong.config.crawl import Crawl
from wukong.crawl import image_header
from wukong.crawl.clock import Clock
from wukong.crawl.decoder import Decoder
from wukong.crawl.status import FetchError, Status
from wukong.crawl.unexpected import UnexpectedInDecoderError
from wukong.runtime.language import _

TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/avif")
_KINDS = _("JPEG, PNG, WebP, GIF, BMP or AVIF")
_DIGITS = 20
"""Python refuses to read a number of thousands of digits."""

_TOO_LARGE = frozenset({Status.TOO_MANY_PIXELS, Status.TOO_COSTLY})


@dataclass(frozen=True)
class Limits:
    """What a request may hold.

    Attributes:
        upload_bytes: the most bytes of a picture.
        upload_seconds: until all of it has arrived.
        pixels: the most pixels of a picture, before it is made smaller.
        characters: the most characters of a text.
        labels: the most labels of a classification.
        inputs: the most texts of a request for vectors.
        results: the most results of an answer.
        ranks: the last rank that the pages of a search reach.
        waiting: requests that wait for the model at a time.
        uploads: requests whose pictures are received and decoded at a time, and the most pictures of one.
    """

    upload_bytes: int = 10 * 2**20
    upload_seconds: float = 30.0
    pixels: int = 50_000_000
    characters: int = 200
    labels: int = 32
    inputs: int = 2_048
    results: int = 100
    ranks: int = 1_000
    waiting: int = 256
    uploads: int = 16


class RefusedError(Exception):
    """A request that is wrong or too much: the HTTP status, and what is wrong and how to mend it, for a page too."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


async def read(chunks: AsyncIterator[bytes], declared: str | None, limits: Limits) -> bytes:
    """Read a picture that is sent; stop as soon as it is too large.

    Args:
        chunks: the body.
        declared: the header ``Content-Length``.
        limits: the limits.

    Raises:
        RefusedError: (413) it is too large; (408) it arrives too slowly; (400) it is empty.
    """
    most, seconds = limits.upload_bytes, limits.upload_seconds
    too_large = RefusedError(
        413, _("the picture has more than {most:g} MiB: send a smaller one").format(most=most / 2**20)
    )
    too_slow = RefusedError(
        408, _("the picture did not arrive within {seconds:g} seconds: send a smaller one").format(seconds=seconds)
    )
    body = await _read(chunks, declared, most, seconds, too_large, too_slow)
    if not body:
        raise RefusedError(
            400,
            _("there is no picture in the request: send the bytes of a {kinds} file as its body").format(kinds=_KINDS),
        )
    return body


async def read_json(chunks: AsyncIterator[bytes], declared: str | None, limits: Limits) -> bytes:
    """Read a request whose pictures are in JSON, where they take a third more; arguments as of ``read``.

    Raises:
        RefusedError: (413) it is too large; (408) it arrives too slowly.
    """
    most, seconds = limits.upload_bytes * 3 // 2, limits.upload_seconds
    too_large = RefusedError(
        413, _("the request has more than {most:g} MiB: send less at a time").format(most=most / 2**20)
    )
    too_slow = RefusedError(
        408, _("the request did not arrive within {seconds:g} seconds: send less at a time").format(seconds=seconds)
    )
    return await _read(chunks, declared, most, seconds, too_large, too_slow)


def is_above(declared: str | None, size: int) -> bool:
    """Whether the header ``Content-Length``, which may be wrong, says that a body has more than ``size`` bytes."""
    return declared is not None and declared.isdecimal() and (len(declared) > _DIGITS or int(declared) > size)


async def _read(
    chunks: AsyncIterator[bytes],
    declared: str | None,
    most: int,
    seconds: float,
    too_large: RefusedError,
    too_slow: RefusedError,
) -> bytes:
    if is_above(declared, most):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in chunks:
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError as error:
        raise too_slow from error
    return bytes(body)


class UploadDecoder:
    """Decodes pictures as the crawl does, with its child process; use it as a context manager.

    The picture is upright, RGB and small afterwards. Of an animation the first frame is taken, and transparent pixels
    become white. The child has limits on memory and processor time, so a decompression bomb ends it and nothing else.

    Args:
        limits: the limits.
    """

    def __init__(self, limits: Limits) -> None:
        self._config = Crawl(
            endpoint="", min_side=2, max_aspect_ratio=1000.0, max_pixels=limits.pixels, max_decode_seconds=5.0
        )
        self._decoder = Decoder(self._config)

    async def decode(self, data: bytes) -> bytes:
        """Return the picture as a JPEG with a shorter side of at most 256 pixels.

        Raises:
            RefusedError: (415) it is of no known type; (413) it has too many pixels or costs too much to decode; (422)
                it is damaged or has a side below two pixels.
        """
        try:
            if image_header.sniff(data[:16]) == "avif":  # its header is read by a decoder
                header = await self._decoder.read_header(data, Clock())
            else:
                header = image_header.read_complete_header(data)
            image_header.check_size(header, self._config)
            return (await self._decoder.store(data, header, Clock())).data
        except UnexpectedInDecoderError as error:
            raise RefusedError(422, _("the picture cannot be decoded: send another one")) from error
        except FetchError as error:
            if error.status is Status.NOT_IMAGE:
                raise RefusedError(
                    415, _("this is no picture of a known type: send {kinds}").format(kinds=_KINDS)
                ) from error
            if error.status in _TOO_LARGE:
                raise RefusedError(
                    413, _("the picture costs too much to decode ({error}): send a smaller one").format(error=error)
                ) from error
            raise RefusedError(
                422, _("the picture cannot be used ({error}): send another one").format(error=error)
            ) from error

    def __enter__(self) -> "UploadDecoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._decoder.__exit__(kind, value, tb)


def data_url(jpeg: bytes) -> str:
    """Return a JPEG as the address of an image in a page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
