"""Whether two small pictures show the same, though one is cut, framed, mirrored or beside another picture.

A vector of a model says that two pictures are alike, and alike are also the drawings of one thing in two styles. So
each pair of pictures whose vectors are near is laid over each other: one is moved over the other in several sizes, as
it is and mirrored, and where it fits best, the colours and the details are compared (OpenCV).
"""

import io
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.float32]
"""Of a small picture, height x width x RGB."""

SIDE = 48
"""Pixels of the shorter side of a small picture; so a picture keeps its size beside another one."""

_MOST = 4 * SIDE
_QUALITY = 90
_SIZES = (1, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.78, 0.74, 0.70, 0.66, 0.62, 0.58, 0.55)
"""Of a square that is cut to 16:9 along one side the small picture must become 0.56 of its size."""
_HALF = (0.5, 0.53)
"""Two tall pictures side by side are as wide as one is high."""

COARSE = 6 * 6 * 3
"""Numbers of a picture's coarse points."""

_MIDDLE = 0.88
_LEAST = 16
_WINDOW = 9
_OUTLINE = 12.0
_NOISE = 4.0
_FULL = 1 - 1e-6
_OF_DETAILS = 1 / 4
_PARTS = 20
"""Of so many distinct parts is a usual photograph; where there are fewer, a picture must agree better."""
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def thumbnail(image: Image.Image) -> bytes:
    """A small JPEG of an RGB picture; what is more than four times as long as wide is squeezed."""
    scale = SIDE / min(image.size)
    size = [min(_MOST, max(1, round(side * scale))) for side in image.size]
    # Where a picture is enlarged, a box filter would make squares of its pixels, which are details of their own.
    how = Image.Resampling.BILINEAR if scale > 1 else Image.Resampling.BOX
    stream = io.BytesIO()
    image.resize((size[0], size[1]), how).save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    return stream.getvalue()


def pixels(small: bytes) -> Pixels:
    """Decode what ``thumbnail`` made."""
    with Image.open(io.BytesIO(small), formats=["JPEG"]) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32)


def agreement(one: Pixels, other: Pixels) -> float:
    """How well two small pictures agree where one lies best over the other: 1 where they are equal.

    Two correlations are averaged: of their colours, and of their details in small windows. The fewer distinct parts
    two pictures have (two areas, a shape on white), the better they agree by chance. So the correlation is taken by
    Fisher's transformation, whose error falls with the number of parts, and weighed by a root of that number.
    """
    best, pair = -1.0, None
    for fixed, moved in _placements(one, other):
        found = cv2.matchTemplate(fixed, moved, cv2.TM_CCOEFF_NORMED)
        _, score, _, (left, upper) = cv2.minMaxLoc(found)
        if score > best and np.isfinite(score):
            height, width = moved.shape[:2]
            best, pair = score, (fixed[upper : upper + height, left : left + width], moved)
    if pair is None:
        return -1.0
    correlation = (1 - _OF_DETAILS) * best + _OF_DETAILS * _details(*pair)
    parts = min(_parts(each) for each in pair)
    return float(np.tanh(np.arctanh(np.clip(correlation, -1, _FULL)) * (parts / _PARTS) ** 0.25))


def coarse(small: Pixels) -> Pixels:
    """A vector of length 1: a few points of a small picture, whose colours have mean 0. Encoding hardly moves it."""
    points = cv2.resize(small, (6, 6), interpolation=cv2.INTER_AREA)
    points = (points - points.mean((0, 1))).ravel()
    return np.asarray(points / max(float(np.linalg.norm(points)), 1e-6), np.float32)


def _parts(image: Pixels) -> float:
    """The number of independent parts of which a picture with these frequencies could be made: 1 is a single wave."""
    power = (np.abs(np.fft.fft2(image - image.mean((0, 1)), axes=(0, 1))) ** 2).sum(2)
    return float(power.sum() ** 2 / max((power**2).sum(), 1e-6))


def _placements(one: Pixels, other: Pixels) -> Iterator[tuple[Pixels, Pixels]]:
    """Pairs of a picture and of another one, in some size and perhaps mirrored, that is not larger."""
    for mirrored in (other, np.ascontiguousarray(other[:, ::-1])):
        yield from _smaller(one, mirrored, (*_SIZES, *_HALF))
        yield from _smaller(mirrored, one, _SIZES[1:])
        yield from _smaller(one, _middle(mirrored), (1,))


def _smaller(fixed: Pixels, moved: Pixels, sizes: Sequence[float]) -> Iterator[tuple[Pixels, Pixels]]:
    height, width = fixed.shape[:2]
    for size in sizes:
        rows, columns = round(moved.shape[0] * size), round(moved.shape[1] * size)
        if rows <= height and columns <= width and min(rows, columns) >= _LEAST:
            yield fixed, cv2.resize(moved, (columns, rows), interpolation=cv2.INTER_AREA)


def _middle(image: Pixels) -> Pixels:
    """Without the corners, which are empty where a picture was turned a little."""
    height, width = (round(side * _MIDDLE) for side in image.shape[:2])
    upper, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[upper : upper + height, left : left + width])


def _details(one: Pixels, other: Pixels) -> float:
    """The mean correlation of small windows. A faint texture counts nearly as much as an outline.

    Noise is taken to be in each window. So the correlation of equal windows is less than 1, much less in a smooth
    picture, and the mean is divided by what equal windows as strong as the stronger ones would give.
    """
    a, b = one @ _LUMA, other @ _LUMA
    mean_a, mean_b = _mean(a), _mean(b)
    deviation_a = np.sqrt(np.maximum(_mean(a * a) - mean_a * mean_a, 0))
    deviation_b = np.sqrt(np.maximum(_mean(b * b) - mean_b * mean_b, 0))
    stronger = np.maximum(deviation_a, deviation_b)
    weight = np.minimum(stronger, _OUTLINE)
    correlation = (_mean(a * b) - mean_a * mean_b) / (deviation_a * deviation_b + _NOISE)
    of_equal = stronger**2 / (stronger**2 + _NOISE)
    return float((weight * correlation).sum() / max((weight * of_equal).sum(), 1e-6))


def _mean(values: Pixels) -> Pixels:
    return np.asarray(cv2.blur(values, (_WINDOW, _WINDOW), borderType=cv2.BORDER_REFLECT_101), np.float32)
