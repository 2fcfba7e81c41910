"""Take the picture alone out of an image file: without metadata, and without what follows the picture.

Metadata may hold the place where a photograph was taken, or any number of bytes of anything else, and its readers fail
more often than those of pixels. Nothing here decodes pixels, so none is changed. A colour profile is metadata too:
nothing here or in the training converts colours by it.
"""

import re
import struct
from collections.abc import Iterator

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""A JPEG marker that begins a segment or ends the image. It also ends the data of a scan: there, 0xFF is followed by
0x00, by a restart marker or by fill bytes."""

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NEEDED = _FRAMES | {0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD}
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})
_JFIF_MARKER, _ADOBE_MARKER, _SCAN_MARKER, _END_MARKER = 0xE0, 0xEE, 0xDA, 0xD9
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"

MAX_SEGMENTS = 5_000
"""Most segments of a JPEG that are looked at. A file of 32 MB with the usual 64 KB a segment has 500."""

_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{3}.{4}|\x03.{3}.{6}))Exif", re.DOTALL)
_GIF_CONTROL = b"\x21\xf9"


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Iterate over the segments of a JPEG as libjpeg reads them, up to the end of the image.

    Yields:
        The marker's second byte; where the segment begins, in bytes after the marker; and where it ends. A scan's
        segment ends after its data.
    """
    position = 2
    while (match := _MARKER.search(data, position)) is not None:
        marker, start = data[match.end() - 1], match.end()
        if marker == _END_MARKER:
            yield marker, start, start
            return
        position = start + max(2, int.from_bytes(data[start : start + 2], "big"))
        if marker == _SCAN_MARKER:
            after = _MARKER.search(data, position)
            position = len(data) if after is None else after.start()
        yield marker, start, position


def jpeg_alone(data: bytes) -> bytes | None:
    """Return a JPEG with only the segments that its pixels are decoded from, or the same object if it has no others.

    Of JFIF and Adobe segments, which tell how colours are coded, only that is kept. Embedded thumbnails, fill bytes and
    bytes between segments go too.

    Returns:
        None if the file is cut short, or has more than ``MAX_SEGMENTS`` segments or an unknown one.
    """
    head: dict[int, bytes] = {}
    pieces: list[bytes] = []
    scans = 0
    for number, (marker, start, end) in enumerate(segments(data)):
        if number > MAX_SEGMENTS or end > len(data):
            return None
        if marker == _END_MARKER:
            alone = b"".join((b"\xff\xd8", *(head[each] for each in sorted(head)), *pieces, b"\xff\xd9"))
            return data if alone == data else alone
        if marker in _NEEDED:
            segment = data[start:end]
            if marker == _SCAN_MARKER:
                scans += 1
                segment = segment.rstrip(b"\xff")  # fill bytes; the data of a scan never ends with 0xFF
            pieces.append(b"\xff%c%b" % (marker, segment))
        elif marker not in _METADATA:
            return None
        elif not scans and marker == _JFIF_MARKER and data[start + 2 : start + 7] == b"JFIF\0" and end - start >= 16:
            head[marker] = _JFIF
        elif not scans and marker == _ADOBE_MARKER and data[start + 2 : start + 7] == b"Adobe" and end - start >= 14:
            head[marker] = _ADOBE + data[start + 13 : start + 14]
    return None


def png_alone(data: bytes) -> tuple[bytes, bytes]:
    """Return a PNG with only the chunks that its pixels are decoded from, and the content of its EXIF chunk or nothing.

    Of an animation the picture that stands for it is left, which is its first frame or what viewers without animations
    show instead.
    """
    kept, exif, position = [data[:8]], b"", 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind in _PNG_NEEDED or end > len(data):
            kept.append(data[position:end])
        elif kind == b"eXIf" and not exif:
            exif = data[position + 8 : end - 4]
        position = end
        if kind == b"IEND":
            break
    return b"".join(kept), exif


def gif_alone(data: bytes) -> bytes:
    """Return a GIF without the extensions before its first frame, except those that tell which pixels are clear."""
    if len(data) < 13:
        return data
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    kept = [data[:position]]
    while data[position : position + 1] == b"\x21":
        end = position + 2
        while end < len(data) and data[end]:
            end += 1 + data[end]
        end += 1
        if data[position : position + 2] == _GIF_CONTROL:
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]])


def avif_alone(data: bytes) -> bytes:
    """Return an AVIF whose EXIF item has another type, so that nobody reads it.

    An AVIF gives its orientation in the container, and readers must not follow that of the EXIF data.
    """
    return _AVIF_EXIF.sub(rb"\1none", data)
