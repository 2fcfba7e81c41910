"""Read the header of an image file from its first bytes, and apply the size rule.

The size rule needs only the header, so the download of an image that breaks it stops early. The header of an image from
the web is not trusted: the decoder checks the real size again before it uses memory for it.
"""

import io
import re
import struct
from dataclasses import dataclass

from PIL import Image

from wukong.config.crawl import Crawl
from wukong.crawl.metadata import MAX_SEGMENTS, avif_alone, segments
from wukong.crawl.status import FetchError, Status
from wukong.data.decoding import DECODER_ERRORS, exif_orientation

_SNIFF = 16
_JPEG_STANDALONE = frozenset([0x01, *range(0xD0, 0xD9)])
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})
_JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1})
_FILL = re.compile(rb"\xff*")
_MOST_BEFORE_SCAN = 100
_SCAN = b"\xff\xda"

MAX_SIDE = 2**31 - 1
"""Most pixels of a side. No format allows more: a larger number is that of a damaged header."""

MAX_SCANS = 500
"""Most scans of a JPEG. Each scan costs a pass over all pixels. Encoders write one scan, or about ten in progressive
files."""

CHEAP_PIXELS = 2_000_000
CHEAP_BYTES = 2_000_000
CHEAP_WORK = 12_000_000
"""Limit on pixels times scans. A JPEG within these three limits is decoded in tens of milliseconds, whatever its
content."""

_AVIF_BRANDS = (b"avif", b"avis")

MIME_TYPES = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "avif": "image/avif",
}


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    Attributes:
        kind: ``jpeg``, ``png``, ``gif``, ``webp``, ``bmp`` or ``avif``.
        width: width in pixels as encoded, before the EXIF orientation is applied.
        height: height in pixels as encoded, before the EXIF orientation is applied.
        orientation: EXIF orientation, 1 to 8; None if the header has none.
        frame: marker of a JPEG's frame, which tells the coding; None for others.
    """

    kind: str
    width: int
    height: int
    orientation: int | None = None
    frame: int | None = None


def sniff(data: bytes | bytearray) -> str | None:
    """Return the file format from the first 16 bytes; None for formats that the crawler does not decode."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:6] in (b"GIF87a", b"GIF89a"):  # not a set, because a bytearray has no hash
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:2] == b"BM":
        return "bmp"
    if data[4:8] == b"ftyp" and data[8:12] in _AVIF_BRANDS:
        return "avif"
    return None


def read_header(data: bytes | bytearray, *, complete: bool) -> Header | None:
    """Read the header from the bytes so far; None if they are not enough. See ``HeaderReader.read``."""
    return HeaderReader().read(data, complete=complete)


def read_complete_header(data: bytes) -> Header:
    """Read the header of a whole file.

    Raises:
        FetchError: see ``HeaderReader.read``.
    """
    header = read_header(data, complete=True)
    if header is None:
        raise FetchError(Status.CORRUPT, "the header is cut short")
    return header


class HeaderReader:
    """Reads the header of one image while its bytes arrive; no byte is read twice."""

    def __init__(self) -> None:
        self._position = 2  # offset of a JPEG's next marker
        self._markers = 0
        self._orientation: int | None = None

    def read(self, data: bytes | bytearray, *, complete: bool) -> Header | None:
        """Read the header from the bytes so far.

        Args:
            data: the beginning of the file; it may grow from call to call.
            complete: whether ``data`` is the whole file.

        Returns:
            The header; None if more bytes are needed.

        Raises:
            FetchError: (``not_image``) the file has none of the formats; (``corrupt``) the header is invalid or cut
                short; (``too_costly``) it cannot be read within the memory limit.
        """
        if len(data) < _SNIFF and not complete:
            return None
        kind = sniff(data)
        if kind is None:
            raise FetchError(Status.NOT_IMAGE, "neither JPEG, PNG, GIF, WebP, BMP nor AVIF")
        if kind == "jpeg":
            header = self._read_jpeg(data)
        elif kind == "avif":
            header = _avif_header(data) if complete else None
        else:
            size = _SIZES[kind](data)
            header = None if size is None else Header(kind, *size)
        if header is None:
            if complete:
                raise FetchError(Status.CORRUPT, "the header is cut short")
            return None
        if min(header.width, header.height) < 1 or max(header.width, header.height) > MAX_SIDE:
            raise FetchError(Status.CORRUPT, "the header gives no size that a picture can have")
        return header

    def _read_jpeg(self, data: bytes | bytearray) -> Header | None:
        end = len(data)
        while self._position + 4 <= end:
            position = self._position
            # Decoders look for the next marker behind 0xFF00, so a segment of this name would hide others from them.
            if data[position] != 0xFF or data[position + 1] == 0x00:
                raise FetchError(Status.CORRUPT, "a JPEG marker is missing")
            marker = data[position + 1]
            if marker == 0xFF:  # fill bytes: the last of them begins the marker
                filled = _FILL.match(data, position)
                assert filled is not None  # noqa: S101 - it matches any bytes
                self._position = filled.end() - 1
                continue
            self._markers += 1
            if self._markers > MAX_SEGMENTS:
                raise FetchError(Status.CORRUPT, f"more than {MAX_SEGMENTS} markers before the JPEG's frame")
            if marker in _JPEG_STANDALONE:
                self._position += 2
                continue
            length = (data[position + 2] << 8) | data[position + 3]
            body = position + 4
            if marker in _JPEG_FRAMES:
                if body + 5 > end:
                    return None
                height, width = struct.unpack_from(">HH", data, body + 1)
                return Header("jpeg", width, height, self._orientation, marker)
            if marker in {0xD9, 0xDA} or length < 2:
                raise FetchError(Status.CORRUPT, "the JPEG has no frame header")
            if marker == 0xE1 and self._orientation is None:
                if body + length - 2 > end:
                    return None
                self._orientation = exif_orientation(bytes(data[body : body + length - 2]))
            self._position += 2 + length
        return None


def check_size(header: Header, config: Crawl) -> None:
    """Apply the size rule to a header.

    Raises:
        FetchError: (``too_small``, ``bad_ratio``, ``too_many_pixels``) the image breaks the rule.
    """
    short, long = sorted((header.width, header.height))
    if short < config.min_side:
        raise FetchError(Status.TOO_SMALL, f"a side is shorter than {config.min_side} pixels")
    if long > config.max_aspect_ratio * short:
        raise FetchError(Status.BAD_RATIO, f"the sides' ratio is over {config.max_aspect_ratio:g}")
    if header.width * header.height > config.max_pixels:
        raise FetchError(Status.TOO_MANY_PIXELS, f"more than {config.max_pixels} pixels")


def _png_size(data: bytes | bytearray) -> tuple[int, int] | None:
    return None if len(data) < 24 else struct.unpack_from(">II", data, 16)


def _gif_size(data: bytes | bytearray) -> tuple[int, int] | None:
    return None if len(data) < 10 else struct.unpack_from("<HH", data, 6)


def _bmp_size(data: bytes | bytearray) -> tuple[int, int] | None:
    if len(data) < 26:
        return None
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)


def _webp_size(data: bytes | bytearray) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    chunk = bytes(data[12:16])
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if chunk == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    raise FetchError(Status.CORRUPT, "the WebP has no picture")


_SIZES = {"png": _png_size, "gif": _gif_size, "bmp": _bmp_size, "webp": _webp_size}


def _avif_header(data: bytes | bytearray) -> Header | None:
    try:
        with Image.open(io.BytesIO(avif_alone(bytes(data))), formats=["AVIF"]) as image:
            return Header("avif", image.width, image.height)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise FetchError(Status.TOO_MANY_PIXELS, f"more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except MemoryError as error:
        raise FetchError(Status.TOO_COSTLY, "reading its header takes more memory than allowed") from error
    except DECODER_ERRORS:
        return None


def is_cheap(data: bytes, header: Header) -> bool:
    """Return whether an image is cheap to decode whatever its content, so that an event loop may decode it."""
    pixels = header.width * header.height
    return (
        header.frame in _JPEG_HUFFMAN
        and pixels <= CHEAP_PIXELS
        and len(data) <= CHEAP_BYTES
        and (_has_one_scan(data) or pixels * data.count(_SCAN) <= CHEAP_WORK)  # the count is not below that of scans
    )


def _has_one_scan(data: bytes) -> bool:
    """Return whether the first scan of a JPEG holds the whole image, so that decoders refuse a second scan.

    This is the case for nearly all JPEGs. Only the few segments before the first scan are read.
    """
    position, components = 2, 0
    for _ in range(_MOST_BEFORE_SCAN):
        if position + 10 > len(data) or data[position] != 0xFF:
            return False
        marker = data[position + 1]
        if marker == _SCAN[1]:
            return components == data[position + 4]
        if marker in _JPEG_SEQUENTIAL:
            components = data[position + 9]
        elif marker in _JPEG_FRAMES or marker in (0x00, 0xFF) or marker in _JPEG_STANDALONE:
            return False
        position += 2 + ((data[position + 2] << 8) | data[position + 3])
    return False


def has_too_many_scans(data: bytes) -> bool:
    """Return whether a JPEG has more than ``MAX_SCANS`` scans up to its end, in one pass over its bytes."""
    if _has_one_scan(data) or data.count(_SCAN) <= MAX_SCANS:  # the count is not below that of scans
        return False
    scans = 0
    for number, (marker, _, _) in enumerate(segments(data)):
        scans += marker == _SCAN[1]
        if scans > MAX_SCANS or number > MAX_SEGMENTS:
            return True
    return False
