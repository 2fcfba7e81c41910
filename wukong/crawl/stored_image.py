"""Convert a downloaded image to its stored form: decode, turn upright, resize, encode as JPEG."""

import io
import math
import warnings
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from wukong.config.crawl import Crawl
from wukong.crawl.image_header import MAX_SCANS, Header, check_size, has_too_many_scans
from wukong.crawl.metadata import avif_alone, gif_alone, jpeg_alone, png_alone
from wukong.crawl.status import FetchError, Status
from wukong.data import decoding
from wukong.errors import DataError

cv2.setNumThreads(1)  # several parts are downloaded at a time; an image is too small for more than one thread

Pixels = npt.NDArray[np.uint8]
"""RGB image, [height, width, 3], 0 to 255."""

_PLAIN_COLOURS = frozenset({"YCbCr", "Gray", "RGB"})
_HEADROOM = 1.25
"""Minimum factor between the decoded size and the final size. The scaled DCT is sharper than an average over pixels;
resizing from a slightly larger image corrects this and costs little time."""

_LINEAR_UP_TO = 2 * _HEADROOM
"""Up to this factor images are shrunk with a linear filter: area averaging would be much slower and hardly better."""

_TABLE_BYTES = 16 * 1024
_MOST_BYTES_PER_PIXEL = 5
"""A JPEG with more bytes than this is encoded anew: noise in the best quality has five bytes a pixel, so the rest is no
picture."""

_SUBSAMPLING = "422"
"""Full colour resolution makes larger files; 4:2:0 alone would take the mean SSIM below 0.97."""

_WHITE = (255, 255, 255)
_TURNED = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""


@dataclass(frozen=True)
class Stored:
    """The JPEG for a shard, its width and height in pixels, and the header of the original as the decoder read it."""

    data: bytes
    width: int
    height: int
    header: Header


def store(data: bytes, header: Header, config: Crawl) -> Stored:
    """Convert a downloaded image to the JPEG that is stored in a shard (section 3.1 of the paper does not define it).

    Of an animation the first frame is used. Transparent pixels become white, the EXIF orientation is applied, and 16
    bits are reduced to 8. No metadata is stored. Except for a JPEG that ``is_cheap``, the time and memory are not
    bounded: see ``decoder``.

    Raises:
        FetchError: (``corrupt``) the image cannot be decoded to its end; (``too_small``, ``bad_ratio``,
            ``too_many_pixels``) its real size differs from its header and breaks the size rule; (``too_costly``) there
            is not enough memory.
    """
    if header.kind == "jpeg":
        stored = store_jpeg(data, header, config)
        if stored is not None:
            return stored
    pixels, header = _decode_by_pillow(data, header, config)
    return _resize_and_encode(pixels, header, config)


def store_jpeg(data: bytes, header: Header, config: Crawl) -> Stored | None:
    """``store`` for a JPEG.

    Returns:
        None if only Pillow can decode it: CMYK, YCCK, and files with unexpected but harmless bytes between markers.

    Raises:
        FetchError: see ``store``.
    """
    if has_too_many_scans(data):
        raise FetchError(Status.TOO_COSTLY, f"the JPEG has more than {MAX_SCANS} scans")
    if _needs_no_change(header, config) and (kept := keep_jpeg(data, header)) is not None:
        return Stored(kept, header.width, header.height, header)
    pixels = _decode_jpeg(data, header, _needed_side(header, config))
    return None if pixels is None else _resize_and_encode(pixels, header, config)


def _resize_and_encode(pixels: Pixels, header: Header, config: Crawl) -> Stored:
    original = (header.width, header.height)
    if header.orientation in _TURNED:
        original = original[::-1]
    pixels = resize(_upright(pixels, header.orientation), original, config)
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=config.jpeg_quality, colorspace="RGB", colorsubsampling=_SUBSAMPLING
    )
    return Stored(encoded, pixels.shape[1], pixels.shape[0], header)


def _needs_no_change(header: Header, config: Crawl) -> bool:
    """Return whether a JPEG's pixels are stored as they were sent: it is upright and small."""
    if not config.keep_small_jpegs or (header.orientation or 1) != 1:
        return False
    if config.resize == "keep_ratio":
        return min(header.width, header.height) <= config.image_size
    return config.resize == "no"


def keep_jpeg(data: bytes, header: Header) -> bytes | None:
    """Return a JPEG without metadata and without bytes after its end; its pixels stay as they are.

    Returns:
        None if it must be encoded anew: it is damaged, not in plain colours, or has many more bytes than its pixels
        need; or it cannot be opened by the decoder that every later reader uses.

    Raises:
        FetchError: (``corrupt``) it ends too early.
    """
    alone = jpeg_alone(data)
    if alone is None or len(alone) > _TABLE_BYTES + _MOST_BYTES_PER_PIXEL * header.width * header.height:
        return None
    # This decoder tells, unlike the readers', of bytes without a meaning after the data of the pixels. Decoding at an
    # eighth of the size costs little.
    if _decode_jpeg(alone, header, 1) is None:
        return None
    try:
        read = decoding.decode(alone)
    except DataError:
        return None
    return alone if read.size == (header.width, header.height) else None


def _needed_side(header: Header, config: Crawl) -> int:
    """Return the minimum length, in pixels, of the shorter side after decoding; 0 for the full size."""
    if config.resize == "no":
        return 0
    short, long = sorted((header.width, header.height))
    side = config.image_size * short / long if config.resize == "border" else config.image_size
    return math.ceil(side * _HEADROOM)


def _decode_by_pillow(data: bytes, header: Header, config: Crawl) -> tuple[Pixels, Header]:
    """Decode to RGB at full size; return also the header with the real size."""
    Image.MAX_IMAGE_PIXELS = config.max_pixels  # Pillow has one limit for the whole process
    try:
        alone, orientation = _alone(data, header)
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(io.BytesIO(alone), formats=[header.kind.upper()]) as image,
        ):
            if (image.width, image.height) != (header.width, header.height):
                header = replace(header, width=image.width, height=image.height)
                check_size(header, config)
            image.load()
            pixels = _rgb(image)
            if header.kind != "jpeg":
                header = replace(header, orientation=orientation or decoding.orientation_of(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise FetchError(Status.TOO_MANY_PIXELS, f"more than {config.max_pixels} pixels") from error
    except MemoryError as error:
        raise FetchError(Status.TOO_COSTLY, "decoding takes more memory than allowed") from error
    except decoding.DECODER_ERRORS as error:
        raise FetchError(Status.CORRUPT, "the picture cannot be decoded") from error
    if pixels.shape != (header.height, header.width, 3):
        raise FetchError(Status.CORRUPT, "the picture has another size than its header")
    return pixels, header


def _alone(data: bytes, header: Header) -> tuple[bytes, int | None]:
    """Return the file without the metadata that Pillow would parse, and the orientation of a PNG, which was in it."""
    match header.kind:
        case "jpeg":
            return jpeg_alone(data) or data, None
        case "png":
            alone, exif = png_alone(data)
            return alone, decoding.exif_orientation(b"Exif\0\0" + exif)
        case "gif":
            return gif_alone(data), None
        case "avif":
            return avif_alone(data), None
    return data, None


def _decode_jpeg(data: bytes, header: Header, shorter: int) -> Pixels | None:
    """Decode a JPEG with DCT scaling, so that its shorter side has at least ``shorter`` pixels, 0 for the full size.

    Returns:
        None if only Pillow can decode it: CMYK, YCCK, and files with unexpected but harmless bytes between markers.
    """
    divisor = 1
    if shorter:
        # libjpeg-turbo has SIMD code for a half, a quarter and an eighth. Other ratios cost more than decoding at full
        # size, and the rounding of their size shifts the image.
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
        if "remature end" in str(error):  # premature end of the file, or of a segment of it
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
    """Turn an image upright, given its EXIF orientation (1 to 8)."""
    if orientation in _TURNED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    return pixels


def resize(pixels: Pixels, original: tuple[int, int], config: Crawl) -> Pixels:
    """Resize an image as the configuration says.

    ``keep_ratio`` makes the shorter side ``image_size`` pixels long and never enlarges. ``center_crop`` and ``border``
    make a square of ``image_size``, cropped or padded with white. ``no`` does not resize.

    Args:
        pixels: the upright image, perhaps decoded at a reduced size.
        original: width and height of the upright image at full size. They give the exact aspect ratio; that of a
            reduced size is rounded.
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
