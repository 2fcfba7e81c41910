"""PDQ, a perceptual hash of 256 bits that others compute too: those of pictures that look alike differ in few bits.

Written from Facebook's description ("The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm",
https://github.com/facebook/ThreatExchange/blob/main/hashing/hashing.pdf). A picture is made gray, smoothed twice by
box filters along each side, and reduced to 64 x 64 points; of their cosine transform the 16 x 16 lowest frequencies
without the mean give one bit each, set above their median. Hashes are written as others write them: the highest
frequencies first, in 32 bytes or 64 hexadecimal digits.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

cv2.setNumThreads(1)  # tasks hash side by side

BYTES = 32
"""Length of a hash."""

BITS = 8 * BYTES

FORMS = 8
"""A picture turned by quarters, and each mirrored."""

DISTANCE = 31
"""The customary distance: pictures whose hashes differ in at most so many bits are taken to be the same."""

MIN_QUALITY = 50
"""The customary quality below which a picture has too little in it for its hash to mean anything."""

Hashes = npt.NDArray[np.uint8]
"""One row of ``BYTES`` a picture."""

_SIDE = 64
_LOW = 16
_MIN_SIDE = 5
_FEW = 128 * 128  # pixels
_MOST_AT_ONCE = 1 << 23  # numbers; of a usual picture all are computed at once
_MOST_KEPT = 4096  # pixels of a side whose filter is kept
_AT_ONCE = 8  # what is computed of more pictures at a time leaves the processor's caches
_QUALITY_SUM = 90  # of gradients in hundredths of the range of gray; the description's scale


def hashes(images: Sequence[Image.Image]) -> tuple[Hashes, npt.NDArray[np.uint8]]:
    """Hash pictures.

    Args:
        images: in RGB, as ``wukong.data.decoding.decode`` gives them.

    Returns:
        The hashes, and the quality of each, from 0 for a picture of one colour to 100. A picture with a side of fewer
        than 5 pixels has quality 0 and no bit set.
    """
    low, quality = _frequencies(images, mirrored=False)
    return _packed(_above_median(low[:, 0])), quality


def dihedral(images: Sequence[Image.Image]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """As ``hashes``, with ``FORMS`` hashes a picture, ``(n, 8, 32)``: itself first, then mirrored left to right.

    They are what ``hashes`` gives of the picture mirrored and turned. Others negate frequencies of the picture instead,
    which takes less time; but the box filters are not symmetric, so that at 256 pixels those hashes are 30 bits away
    from what they stand for.
    """
    low, quality = _frequencies(images, mirrored=True)
    bits = _above_median(low)
    return _packed(np.concatenate([bits, bits.swapaxes(2, 3)], axis=1)), quality


def _frequencies(
    images: Sequence[Image.Image], *, mirrored: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """The 16 x 16 lowest frequencies of each picture, and of each mirrored in three ways, and the quality of each.

    Gray is rounded to whole numbers, which is fast. Where a point is made of few pixels, or where all are nearly the
    same, that would turn bits over, so there it is not.
    """
    small = np.zeros((len(images), 4 if mirrored else 1, _SIDE, _SIDE), dtype=np.float32)
    for number, image in enumerate(images):
        if min(image.size) >= _MIN_SIDE:
            _reduce(image, small[number], rounded=image.width * image.height > _FEW)
    quality = _quality(small[:, 0])
    for number in np.flatnonzero(quality < MIN_QUALITY).tolist():
        if min(images[number].size) >= _MIN_SIDE:
            _reduce(images[number], small[number], rounded=False)
            quality[number] = _quality(small[number, :1])[0]
    return _COSINES @ small @ _COSINES.T, quality


def _above_median(low: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether each frequency in the last two axes is above their (lower) median."""
    values = low.reshape(*low.shape[:-2], BITS)
    median = np.partition(values, BITS // 2 - 1, axis=-1)[..., BITS // 2 - 1, None, None]
    return low > median


def _packed(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    return np.packbits(bits.reshape(*bits.shape[:-2], BITS), axis=-1, bitorder="little")[..., ::-1]


def _reduce(image: Image.Image, into: npt.NDArray[np.float32], *, rounded: bool) -> None:
    """Write a picture as 64 x 64 gray points; where there is room for four, also mirrored in three ways."""
    gray = _gray(image) if rounded else _exact_gray(image)
    mirrored = len(into) > 1
    halves = [cv2.transpose(_shortened(rows)) for rows in ((gray, gray[::-1]) if mirrored else (gray,))]
    for place, rows in enumerate(rows for half in halves for rows in ((half, half[::-1]) if mirrored else (half,))):
        into[place] = _shortened(rows).T


def _shortened(points: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Any number of rows as 64."""
    rows, weights = (_filter if len(points) <= _MOST_KEPT else _filter.__wrapped__)(len(points))
    shortened = np.empty((_SIDE, points.shape[1]), dtype=np.float32)
    for some in _pieces(_SIDE, rows.shape[1] * points.shape[1]):
        shortened[some] = (weights[some, None] @ points[rows[some]].astype(np.float32, copy=False))[:, 0]
    return shortened


def _pieces(count: int, each: int) -> Iterator[slice]:
    """Slices of a count, of which none has many more numbers than ``_MOST_AT_ONCE`` if each one has ``each``."""
    step = max(1, _MOST_AT_ONCE // each)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _exact_gray(image: Image.Image) -> npt.NDArray[np.float32]:
    gray = np.empty((image.height, image.width), dtype=np.float32)
    for rows in _pieces(image.height, 3 * image.width):
        some = image.crop((0, rows.start, image.width, rows.stop))
        gray[rows] = np.asarray(some, dtype=np.float32) @ _LUMA
    return gray


def _gray(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Gray from Pillow's own pixels, of four bytes each, where it can hand them on without a copy."""
    try:
        pixels = pa.array(image).values.to_numpy().reshape(image.height, image.width, 4)
    except (TypeError, ValueError):  # a Pillow before 11.2, or a picture in several blocks of memory
        return np.asarray(image.convert("L"))
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGBA2GRAY), dtype=np.uint8)


@lru_cache(1024)
def _filter(length: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The points of a side that each of the 64 points is made of, and the weight of each of them.

    Two box filters, and then the point in the middle of each 64th of the side. Near the ends a box holds only the
    points that are there. All in one, because the points between the 64 need not be computed.
    """
    if length == _SIDE:
        return np.arange(_SIDE)[:, None], np.ones((_SIDE, 1), dtype=np.float32)
    window = -(-length // (2 * _SIDE))
    first = np.maximum(np.arange(length) - (window - 1) // 2, 0)
    last = np.minimum(np.arange(length) + window // 2, length - 1)
    share = 1 / (last - first + 1)
    middles = ((np.arange(_SIDE) + 0.5) * length / _SIDE).astype(int)
    starts, ends = first[first[middles]], last[last[middles]] + 1
    reach = int((ends - starts).max())
    points = np.minimum(starts, length - reach)[:, None] + np.arange(reach)
    weights = np.empty(points.shape, dtype=np.float32)
    for row, middle in enumerate(middles.tolist()):
        box = np.arange(first[middle], last[middle] + 1)[:, None]
        inside = (first[box] <= points[row]) & (points[row] <= last[box])
        weights[row] = share[middle] * np.ones(len(box)) @ (inside * share[box])
    return points, weights


def _quality(small: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """How much there is to see: the steps of at least a hundredth between neighbouring points, summed and scaled."""
    total = np.zeros(len(small), dtype=np.int32)
    for start in range(0, len(small), _AT_ONCE):
        some = small[start : start + _AT_ONCE]
        total[start : start + _AT_ONCE] = sum(_steps(some, axis).sum(axis=(1, 2), dtype=np.int32) for axis in (1, 2))
    return np.minimum(total // _QUALITY_SUM, 100).astype(np.uint8)


def _steps(small: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.uint8]:
    steps = np.diff(small, axis=axis)
    np.abs(steps, out=steps)
    steps *= np.float32(100 / 255)  # rounded up, so that whole steps stay whole
    return steps.astype(np.uint8)


_COSINES = (
    np.sqrt(2 / _SIDE) * np.cos(np.pi / _SIDE * np.outer(np.arange(1, _LOW + 1), np.arange(_SIDE) + 0.5))
).astype(np.float32)
"""Rows 1 to 16 of the discrete cosine transform (type II)."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
