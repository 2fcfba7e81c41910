"""A picture's header from its first bytes, and its stored form: decoded, upright, resized, a JPEG.

Only the header is needed to apply the size rule, so a picture that fails it is not downloaded any further. But a header
is what a stranger claims: the size that the decoder finds is checked again, before it takes memory for it.
"""

import io
import math
import re
import struct
import warnings
import zlib
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from wukong.config import Crawl
from wukong.crawl.status import FetchError, Status

cv2.setNumThreads(1)  # parts run side by side; a picture is too small to be worth more than one thread

Pixels = npt.NDArray[np.uint8]
"""Height x width x 3, RGB, 0 to 255."""

_SNIFF = 16
_PLAIN_COLOURS = frozenset({"YCbCr", "Gray", "RGB"})
_HEADROOM = 1.25
"""How much larger than the result a picture is decoded at least: the scaled DCT is sharper than an average over pixels,
and resizing from a little more evens that out, for a little more time."""

_LINEAR_UP_TO = 2 * _HEADROOM
"""Shrinking by less than this, averaging looks hardly better than a linear filter and takes far longer."""

_SUBSAMPLING = "422"
"""Between full colour, which is larger, and 4:2:0, which alone would take the mean SSIM below 0.97."""

_WHITE = (255, 255, 255)
_EXIF_ORIENTATION = 0x0112
_EXIF_INTEGERS = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q"}
"""TIFF's types of whole numbers, as ``struct`` calls them."""

_EXIF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of a value of each of TIFF's types."""

_EXIF_INLINE = 4
_EXIF_MAGIC = {b"II*\x00": "<", b"MM\x00*": ">", b"MM*\x00": ">", b"II\x00*": "<"}
_TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that exchange width and height."""

_JPEG_STANDALONE = frozenset([0x01, *range(0xD0, 0xD9)])
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})
_JPEG_SEQUENTIAL = frozenset({0xC0, 0xC1})
_MAX_SEGMENTS = 100
_SCAN = b"\xff\xda"
_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The marker that ends a scan's data, in which 0xFF is followed by 0x00 or a restart marker."""

MAX_SCANS = 500
"""Of one JPEG, each of which costs a pass over all pixels. Encoders write one, or about ten in progressive ones."""

LIGHT_PIXELS = 2_000_000
LIGHT_BYTES = 2_000_000
LIGHT_WORK = 12_000_000
"""Pixels times scans. Within these three limits a JPEG takes tens of milliseconds at most, whatever is in it."""

_AVIF_BRANDS = (b"avif", b"avis")

_CORRUPT = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    struct.error,
    zlib.error,
)
"""What Pillow raises for a file that is not what it should be."""

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
    """What a picture says of itself before its pixels.

    Attributes:
        kind: ``jpeg``, ``png``, ``gif``, ``webp``, ``bmp`` or ``avif``.
        width: pixels, as encoded, that is before the EXIF orientation is applied.
        height: likewise.
        orientation: EXIF orientation, 1 to 8; None where the header does not say.
        frame: of a JPEG the marker of its frame, which names the coding; else None.
    """

    kind: str
    width: int
    height: int
    orientation: int | None = None
    frame: int | None = None


@dataclass(frozen=True)
class Stored:
    """The JPEG that goes into a shard, with its size in pixels, and the original's header as the decoder found it."""

    data: bytes
    width: int
    height: int
    header: Header


def sniff(data: bytes | bytearray) -> str | None:
    """Name the format that the first 16 bytes belong to; None where it is no picture this crawler decodes."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:6] in (b"GIF87a", b"GIF89a"):  # no set: a bytearray has no hash
        return "gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:2] == b"BM":
        return "bmp"
    if data[4:8] == b"ftyp" and data[8:12] in _AVIF_BRANDS:
        return "avif"
    return None


def read_header(data: bytes | bytearray, *, complete: bool) -> Header | None:
    """Read the header from the bytes at hand; None while they are too few to tell. See ``HeaderReader.read``."""
    return HeaderReader().read(data, complete=complete)


def read_complete_header(data: bytes) -> Header:
    """Read the header of a whole file; see ``HeaderReader.read`` for what is raised."""
    header = read_header(data, complete=True)
    if header is None:
        raise FetchError(Status.CORRUPT, "the header is cut short")
    return header


class HeaderReader:
    """Reads one picture's header while its bytes arrive: what was looked at is not looked at again."""

    def __init__(self) -> None:
        self._position = 2  # of the next marker of a JPEG
        self._orientation: int | None = None

    def read(self, data: bytes | bytearray, *, complete: bool) -> Header | None:
        """Read the header from the bytes at hand; None while they are too few to tell.

        Args:
            data: the beginning of the file; each time it has grown at its end.
            complete: whether it is the whole file, so that nothing more will come.

        Raises:
            FetchError: (``not_image``) it is none of the formats; (``corrupt``) the header makes no sense or is cut
                short; (``too_costly``) it cannot be read within the memory allowed.
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
        if header.width < 1 or header.height < 1:
            raise FetchError(Status.CORRUPT, "the header gives no size")
        return header

    def _read_jpeg(self, data: bytes | bytearray) -> Header | None:
        end = len(data)
        while self._position + 4 <= end:
            position = self._position
            if data[position] != 0xFF:
                raise FetchError(Status.CORRUPT, "a JPEG marker is missing")
            marker = data[position + 1]
            if marker == 0xFF:
                self._position += 1
                continue
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
    """Apply the size rule, as soon as the header is known.

    Raises:
        FetchError: ``too_small``, ``bad_ratio`` or ``too_many_pixels``.
    """
    short, long = sorted((header.width, header.height))
    if short < config.min_side:
        raise FetchError(Status.TOO_SMALL, f"a side is shorter than {config.min_side} pixels")
    if long > config.max_aspect_ratio * short:
        raise FetchError(Status.BAD_RATIO, f"the sides' ratio is over {config.max_aspect_ratio:g}")
    if header.width * header.height > config.max_pixels:
        raise FetchError(Status.TOO_MANY_PIXELS, f"more than {config.max_pixels} pixels")


def exif_orientation(segment: bytes) -> int | None:
    """Read the orientation, 1 to 8, from a JPEG's EXIF segment; None where it does not say, or is broken.

    EXIF is often broken, and the picture is fine without it. Only the first directory is read, in one pass over its
    entries: a general reader can be made to copy the segment once for each of thousands of them.
    """
    prefix = b"Exif\x00\x00"
    if not segment.startswith(prefix):
        return None
    while segment.startswith(prefix):
        segment = segment[len(prefix) :]
    order = _EXIF_MAGIC.get(segment[:4])
    if order is None or len(segment) < 10:
        return None
    (start,) = struct.unpack_from(f"{order}L", segment, 4)
    if start + 2 > len(segment):
        return None
    (entries,) = struct.unpack_from(f"{order}H", segment, start)
    value = None
    for place in range(start + 2, min(start + 2 + 12 * entries, len(segment) - 11), 12):
        tag, kind, count, offset = struct.unpack_from(f"{order}HHLL", segment, place)
        size = count * _EXIF_BYTES.get(kind, 0)
        where = place + 8 if size <= _EXIF_INLINE else offset
        if tag == _EXIF_ORIENTATION and size and where + size <= len(segment):
            value = None  # the last one counts
            if kind in _EXIF_INTEGERS:
                (value,) = struct.unpack_from(order + _EXIF_INTEGERS[kind], segment, where)
    return value if value is not None and 1 <= value <= 8 else None


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
        with Image.open(io.BytesIO(data), formats=["AVIF"]) as image:
            return Header("avif", image.width, image.height)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise FetchError(Status.TOO_MANY_PIXELS, f"more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except MemoryError as error:
        raise FetchError(Status.TOO_COSTLY, "reading its header takes more memory than allowed") from error
    except _CORRUPT:
        return None


def is_light(data: bytes, header: Header) -> bool:
    """Tell whether storing a picture takes little time whatever is in it, so that an event loop may do it itself."""
    pixels = header.width * header.height
    return (
        header.frame in _JPEG_HUFFMAN
        and pixels <= LIGHT_PIXELS
        and len(data) <= LIGHT_BYTES
        and (_has_one_scan(data) or pixels * data.count(_SCAN) <= LIGHT_WORK)  # no fewer than there are scans
    )


def _has_one_scan(data: bytes) -> bool:
    """Tell whether a JPEG's first scan holds all of a sequential picture, so that decoders refuse another one.

    It is what nearly all JPEGs are, and told from the few segments before that scan.
    """
    position, components = 2, 0
    for _ in range(_MAX_SEGMENTS):
        if position + 10 > len(data) or data[position] != 0xFF:
            return False
        marker = data[position + 1]
        if marker == _SCAN[1]:
            return components == data[position + 4]
        if marker in _JPEG_SEQUENTIAL:
            components = data[position + 9]
        elif marker in _JPEG_FRAMES or marker == 0xFF or marker in _JPEG_STANDALONE:
            return False
        position += 2 + ((data[position + 2] << 8) | data[position + 3])
    return False


def count_scans(data: bytes) -> int:
    """Count a JPEG's scans as a decoder meets them, up to the end of the picture; one pass over the bytes."""
    position, scans = 2, 0
    while (found := data.find(b"\xff", position)) >= 0 and found + 1 < len(data):
        marker = data[found + 1]
        if marker == 0xD9:
            break
        if marker in {0x00, 0xFF} or marker in _JPEG_STANDALONE:
            position = found + (1 if marker == 0xFF else 2)
            continue
        length = int.from_bytes(data[found + 2 : found + 4], "big")
        position = found + 2 + max(2, length)
        if marker == _SCAN[1]:
            scans += 1
            ends = _IN_SCAN.search(data, position)
            if ends is None:
                break
            position = ends.start()
    return scans


def store(data: bytes, header: Header, config: Crawl) -> Stored:
    """Turn a downloaded picture into what goes into a shard (section 3.1 leaves the form open).

    An animation gives its first frame, transparency is laid on white, EXIF orientation is applied, 16 bits become 8.
    What this takes is not bounded, but for a JPEG that ``is_light``: see ``decoder``.

    Raises:
        FetchError: (``corrupt``) it cannot be decoded to the end; (``too_small``, ``bad_ratio``, ``too_many_pixels``)
            its size is not what its header says; (``too_costly``) it takes more memory than there is.
    """
    if header.kind == "jpeg":
        stored = store_jpeg(data, header, config)
        if stored is not None:
            return stored
    pixels, header = _decode_by_pillow(data, header, config)
    return _stored(pixels, header, config)


def store_jpeg(data: bytes, header: Header, config: Crawl) -> Stored | None:
    """``store`` for a JPEG; None where it needs Pillow: CMYK, YCCK, and harmless oddities between markers.

    Raises:
        FetchError: as ``store`` does.
    """
    if not _has_one_scan(data) and data.count(_SCAN) > MAX_SCANS and count_scans(data) > MAX_SCANS:
        raise FetchError(Status.TOO_COSTLY, f"the JPEG has more than {MAX_SCANS} scans")
    if _passes_through(data, header, config):
        return Stored(data, header.width, header.height, header)
    pixels = _decode_jpeg(data, header, _needed_side(header, config))
    return None if pixels is None else _stored(pixels, header, config)


def _stored(pixels: Pixels, header: Header, config: Crawl) -> Stored:
    original = (header.width, header.height)
    if header.orientation in _TURNED:
        original = original[::-1]
    pixels = resize(_upright(pixels, header.orientation), original, config)
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=config.jpeg_quality, colorspace="RGB", colorsubsampling=_SUBSAMPLING
    )
    return Stored(encoded, pixels.shape[1], pixels.shape[0], header)


def _passes_through(data: bytes, header: Header, config: Crawl) -> bool:
    """Tell whether a JPEG is stored untouched: upright, whole, small, in plain colours."""
    if not config.keep_small_jpegs or (header.orientation or 1) != 1:
        return False
    if config.resize == "keep_ratio":
        fits = min(header.width, header.height) <= config.image_size
    else:
        fits = config.resize == "no"
    # Reading the data to its end is what finds a truncated file; the inverse DCT at an eighth of the size costs little.
    return fits and _decode_jpeg(data, header, 1) is not None


def _needed_side(header: Header, config: Crawl) -> int:
    """The shorter side, in pixels, that decoding must give at least: 0 for the full size."""
    if config.resize == "no":
        return 0
    short, long = sorted((header.width, header.height))
    side = config.image_size * short / long if config.resize == "border" else config.image_size
    return math.ceil(side * _HEADROOM)


def _decode_by_pillow(data: bytes, header: Header, config: Crawl) -> tuple[Pixels, Header]:
    """Decode to RGB at full size; give the header with the size that the decoder found."""
    Image.MAX_IMAGE_PIXELS = config.max_pixels  # Pillow's guard has one limit for the process
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(io.BytesIO(data), formats=[header.kind.upper()]) as image,
        ):
            if (image.width, image.height) != (header.width, header.height):
                header = replace(header, width=image.width, height=image.height)
                check_size(header, config)
            image.load()
            pixels = _rgb(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise FetchError(Status.TOO_MANY_PIXELS, f"more than {config.max_pixels} pixels") from error
    except MemoryError as error:
        raise FetchError(Status.TOO_COSTLY, "decoding takes more memory than allowed") from error
    except _CORRUPT as error:
        raise FetchError(Status.CORRUPT, "the picture cannot be decoded") from error
    if pixels.shape != (header.height, header.width, 3):
        raise FetchError(Status.CORRUPT, "the picture has another size than its header")
    return pixels, header


def _decode_jpeg(data: bytes, header: Header, shorter: int) -> Pixels | None:
    """Decode a JPEG with DCT scaling, so that its shorter side is no less than ``shorter``, 0 for the full size.

    Returns:
        None where it needs Pillow: CMYK, YCCK, and harmless oddities between markers.
    """
    divisor = 1
    if shorter:
        # A half, a quarter and an eighth are what libjpeg-turbo does in SIMD. Its other ratios cost more than decoding
        # at full size, and the rounding of their size shifts the picture.
        while divisor < 8 and min(header.height, header.width) >= 2 * divisor * shorter:
            divisor *= 2
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != (header.width, header.height):
            raise FetchError(Status.CORRUPT, "the JPEG has another size than its header")
        if colours not in _PLAIN_COLOURS:
            return None
        pixels: Pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=-(-header.height // divisor), min_width=-(-header.width // divisor)
        )
    except ValueError as error:
        if "remature end" in str(error):  # of the file, or of a segment of it
            raise FetchError(Status.CORRUPT, "the JPEG ends too early") from error
        return None
    return pixels


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.uint32)
        eight = np.minimum(grey >> 8, 255).astype(np.uint8)
        return np.repeat(eight[:, :, None], 3, axis=2)
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*_WHITE, 255))
        canvas.alpha_composite(layer)
        image = canvas
    return np.asarray(image.convert("RGB"))


def _upright(pixels: Pixels, orientation: int | None) -> Pixels:
    """Undo an EXIF orientation (1 to 8), so that the first row is the top."""
    if orientation in _TURNED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return pixels


def resize(pixels: Pixels, original: tuple[int, int], config: Crawl) -> Pixels:
    """Bring a picture to the configured size.

    ``keep_ratio`` makes the shorter side ``image_size`` pixels and never enlarges; ``center_crop`` and ``border`` give
    a square of ``image_size``, cut or padded with white; ``no`` leaves it.

    Args:
        pixels: upright; perhaps decoded at a reduced size.
        original: width and height at full size, upright: the ratio to keep, which a reduced size has only nearly.
        config: the crawl's settings.
    """
    if config.resize == "no":
        return pixels
    size = config.image_size
    scale = size / (max(original) if config.resize == "border" else min(original))
    if config.resize == "keep_ratio":
        scale = min(scale, 1.0)
    width, height = (max(1, round(side * scale)) for side in original)
    shrink = min(pixels.shape[1] / width, pixels.shape[0] / height)
    if pixels.shape[:2] != (height, width):
        method = cv2.INTER_AREA if shrink > _LINEAR_UP_TO else cv2.INTER_LINEAR if shrink > 1 else cv2.INTER_CUBIC
        resized = cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=method)
        pixels = np.asarray(resized, dtype=np.uint8)
    if config.resize == "center_crop":
        top, left = (height - size) // 2, (width - size) // 2
        return pixels[top : top + size, left : left + size]
    if config.resize == "border":
        square = np.full((size, size, 3), 255, dtype=np.uint8)
        top, left = (size - height) // 2, (size - width) // 2
        square[top : top + height, left : left + width] = pixels
        return square
    return pixels
