"""PDQ, a perceptual hash of 256 bits that others compute too: those of pictures that look alike differ in few bits.

Written from Facebook's description ("The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm",
https://github.com/facebook/ThreatExchange/blob/main/hashing/hashing.pdf). A picture is made gray, smoothed twice by
box filters along each side, and reduced to 64 x 64 points; of their cosine transform the 16 x 16 lowest frequencies
without the mean give one bit each, set above their median. Hashes are written as others write them: the highest
frequencies first, in 32 bytes or 64 hexadecimal digits.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

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
_FEW = 128 * 128
"""Pixels of a picture whose gray is not rounded to whole numbers: where so few make a point, bits would differ."""

_QUALITY_SUM = 90  # of gradients in hundredths of the range of gray; the description's scale


def hashes(images: Sequence[Image.Image]) -> tuple[Hashes, npt.NDArray[np.uint8]]:
    """Hash pictures.

    Args:
        images: any mode that Pillow makes gray; transparent pixels have been made white
            (``wukong.data.decoding.decode``).

    Returns:
        The hashes, and the quality of each, from 0 for a picture of one colour to 100. A picture with a side of fewer
        than 5 pixels has quality 0 and no bit set.
    """
    low, quality = _frequencies(images)
    return _bits(low), quality


def dihedral(images: Sequence[Image.Image]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """As ``hashes``, with ``FORMS`` hashes a picture, ``(n, 8, 32)``: itself first, then mirrored left to right.

    They are the hashes of the mirrored and turned pictures, from the frequencies of the picture: each second one of
    them is negated in a mirrored picture.
    """
    low, quality = _frequencies(images)
    flipped = low[:, None] * _SIGNS
    return _bits(np.concatenate([flipped, flipped.swapaxes(2, 3)], axis=1)), quality


def forms(of: Hashes) -> npt.NDArray[np.uint8]:
    """What ``dihedral`` gives, nearly, where only the hashes of pictures are known.

    The median of the frequencies is nearly zero, so that the bit of a negated one is the other one. Those between the
    median and zero are mistaken.
    """
    bits = np.unpackbits(of, axis=1)[:, ::-1].reshape(-1, 1, _LOW, _LOW)
    flipped = bits ^ (_SIGNS < 0)
    turned = np.concatenate([flipped, flipped.swapaxes(2, 3)], axis=1)
    return np.packbits(turned.reshape(-1, FORMS, BITS)[..., ::-1], axis=-1)


def _frequencies(images: Sequence[Image.Image]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    small = np.zeros((len(images), _SIDE, _SIDE), dtype=np.float32)
    for number, image in enumerate(images):
        if min(image.size) >= _MIN_SIDE:
            small[number] = _reduced(image)
    return _COSINES @ small @ _COSINES.T, _quality(small)


def _bits(low: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """One bit for each of the frequencies in the last two axes: whether it is above their (lower) median."""
    values = low.reshape(*low.shape[:-2], BITS)
    median = np.partition(values, BITS // 2 - 1, axis=-1)[..., BITS // 2 - 1, None]
    return np.packbits((values > median)[..., ::-1], axis=-1)


def _reduced(image: Image.Image) -> npt.NDArray[np.float32]:
    if image.width * image.height <= _FEW:
        gray = np.asarray(image.convert("RGB"), dtype=np.float32) @ _LUMA
    else:
        gray = np.asarray(image.convert("L"))
    rows, weights = _filter(gray.shape[0])
    columns, across = _filter(gray.shape[1])
    shorter = (weights[:, None, :] @ gray[rows].astype(np.float32))[:, 0]
    reduced: npt.NDArray[np.float32] = np.einsum("ijk,jk->ij", shorter[:, columns], across)
    return reduced


@lru_cache(1024)
def _filter(length: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The points of a side that each of the 64 points is made of, and the weight of each of them.

    Two box filters, and then the point in the middle of each 64th of the side. Near the ends a box holds only the
    points that are there. All in one, because the points between the 64 need not be computed.
    """
    if length == _SIDE:
        return np.arange(_SIDE)[:, None], np.ones((_SIDE, 1), dtype=np.float32)
    window = -(-length // (2 * _SIDE))
    offsets = np.arange(length) - np.arange(length)[:, None]
    box = (offsets >= -((window - 1) // 2)) & (offsets <= window // 2)
    smooth = box / box.sum(axis=1, keepdims=True)
    twice = smooth[((np.arange(_SIDE) + 0.5) * length / _SIDE).astype(int)] @ smooth
    reach = int((twice > 0).sum(axis=1).max())
    points = np.minimum((twice > 0).argmax(axis=1), length - reach)[:, None] + np.arange(reach)
    return points, np.take_along_axis(twice, points, axis=1).astype(np.float32)


def _quality(small: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """How much there is to see: the steps of at least a hundredth between neighbouring points, summed and scaled."""
    steps = [np.trunc(np.diff(small, axis=axis) * np.float32(100) / np.float32(255)) for axis in (1, 2)]
    total = sum(np.abs(step).sum(axis=(1, 2)) for step in steps)
    return np.asarray(np.minimum(total // _QUALITY_SUM, 100), dtype=np.uint8)


_COSINES = (
    np.sqrt(2 / _SIDE) * np.cos(np.pi / _SIDE * np.outer(np.arange(1, _LOW + 1), np.arange(_SIDE) + 0.5))
).astype(np.float32)
"""Rows 1 to 16 of the discrete cosine transform (type II)."""

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

_ALTERNATING = np.where(np.arange(_LOW) % 2, np.float32(1), np.float32(-1))  # the first frequency is odd
_SIGNS = np.stack(
    [
        np.outer(rows, columns)
        for rows in (np.ones(_LOW, np.float32), _ALTERNATING)
        for columns in (np.ones(_LOW, np.float32), _ALTERNATING)
    ]
)
"""Of each frequency in a picture as it is, mirrored left to right, top to bottom, and both."""
