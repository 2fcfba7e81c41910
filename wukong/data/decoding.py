"""Decode an image as every later reader does: the crawl stores nothing that this module cannot open."""

import base64
import io
import struct
import zlib

from PIL import Image

from wukong.errors import DataError

DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""Exceptions that Pillow raises for a damaged file, or for one with far too many pixels."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Pillow's names of the formats that are opened, whatever a file is called. Of the formats that Pillow knows besides,
one (EPS) starts a program."""

UNNAMED = "the picture"
"""What messages call an image without a name."""

_WHITE = (255, 255, 255)
_EXIF_PREFIX = b"Exif\x00\x00"
_EXIF_ORIENTATION = 0x0112
_EXIF_INTEGERS = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q"}
"""TIFF's integer types with their format characters of ``struct``."""

_EXIF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Size in bytes of a value of each TIFF type."""

_EXIF_INLINE = 4
_EXIF_MAGIC = {b"II*\x00": "<", b"MM\x00*": ">", b"MM*\x00": ">", b"II\x00*": "<"}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image is turned upright, by its EXIF orientation; 1 is upright."""


def decode(data: bytes, name: str = UNNAMED) -> Image.Image:
    """Decode an image to RGB and turn it upright; transparent pixels become white.

    Metadata never fails an image: one whose EXIF data is damaged is taken to be upright.

    Args:
        data: the bytes of an image file.
        name: name of the image in error messages.

    Raises:
        DataError: the bytes are not an image, or are truncated.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            opened.load()
            turn = _TURNS.get(orientation_of(opened) or 1)
            return to_rgb(opened.copy() if turn is None else opened.transpose(turn))
    except DECODER_ERRORS as error:
        raise DataError(f"{name} cannot be decoded ({error}); leave it out or download it again") from error


def data_uri(image: Image.Image, side: int = 144) -> str:
    """Return an RGB image as a data URI, with sides of at most so many pixels; the image itself is made small too."""
    image.thumbnail((side, side))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL image to RGB; transparent pixels become white."""
    if image.mode == "RGB":
        return image
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*_WHITE, 255)), layer).convert("RGB")
    return image.convert("RGB")


def orientation_of(image: Image.Image) -> int | None:
    """Return the EXIF orientation, 1 to 8, of an image that is loaded; None if it has none, or damaged EXIF data.

    Of an AVIF it is the rotation and mirroring that the container gives, which Pillow writes into the EXIF data.
    """
    exif = image.info.get("exif")
    return exif_orientation(_EXIF_PREFIX + exif) if isinstance(exif, bytes) else None


def exif_orientation(segment: bytes) -> int | None:
    """Read the orientation, 1 to 8, from a JPEG's EXIF segment; None if there is none, or the segment is damaged.

    EXIF is often damaged, and the image is usable without it. Only the first directory is read, in one pass over its
    entries. A malicious file can make a general EXIF reader copy the segment once for each of thousands of entries.
    """
    if not segment.startswith(_EXIF_PREFIX):
        return None
    while segment.startswith(_EXIF_PREFIX):
        segment = segment[len(_EXIF_PREFIX) :]
    order = _EXIF_MAGIC.get(segment[:4])
    if order is None or len(segment) < 10:
        return None
    (start,) = struct.unpack_from(f"{order}L", segment, 4)
    if start + 2 > len(segment):
        return None
    (entries,) = struct.unpack_from(f"{order}H", segment, start)
    value = None
    for entry in range(start + 2, min(start + 2 + 12 * entries, len(segment) - 11), 12):
        tag, kind, count, offset = struct.unpack_from(f"{order}HHLL", segment, entry)
        size = count * _EXIF_BYTES.get(kind, 0)
        where = entry + 8 if size <= _EXIF_INLINE else offset
        if tag == _EXIF_ORIENTATION and size and where + size <= len(segment):
            value = None  # the last entry counts
            if kind in _EXIF_INTEGERS:
                (value,) = struct.unpack_from(order + _EXIF_INTEGERS[kind], segment, where)
    return value if value is not None and 1 <= value <= 8 else None
