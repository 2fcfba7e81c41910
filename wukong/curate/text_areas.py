"""How much of a picture is text, from the map of a detector that says of each pixel how surely it is text.

Such maps are those of differentiable binarization (Liao et al., AAAI 2020, arXiv:1911.08947), as PaddleOCR's detectors
give them: a line of text is marked by a smaller area in its middle, which has to be grown by its area over its
perimeter, times a ratio.
"""

import cv2
import numpy as np
import numpy.typing as npt

# PaddleOCR's own: pixels above the first may be text, the mean of a line's rectangle is at least the second, and it is
# grown by the third.
_PIXEL, _LINE, _GROWN = 0.3, 0.5, 1.6
_LEAST_SIDE = 3
_JOINED = np.ones((2, 2), np.uint8)


def share(scores: npt.NDArray[np.float32]) -> float:
    """Return the share of a map that lines of text cover.

    Args:
        scores: of 0 to 1, [height, width].
    """
    marked = cv2.dilate((scores > _PIXEL).astype(np.uint8), _JOINED)
    contours, _ = cv2.findContours(marked, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    covered = np.zeros(scores.shape, np.uint8)
    for contour in contours:
        centre, (width, height), angle = cv2.minAreaRect(contour)
        if min(width, height) < _LEAST_SIDE or _mean(scores, cv2.boxPoints((centre, (width, height), angle))) < _LINE:
            continue
        more = 2 * _GROWN * width * height / (2 * (width + height))
        cv2.fillPoly(covered, [_whole(cv2.boxPoints((centre, (width + more, height + more), angle)))], (1,))
    return float(covered.mean())


def _mean(scores: npt.NDArray[np.float32], corners: npt.NDArray[np.float32]) -> float:
    """The mean score inside a rectangle."""
    left, top, width, height = cv2.boundingRect(_whole(corners))
    left, top, right, bottom = max(left, 0), max(top, 0), left + width, top + height
    part = scores[top:bottom, left:right]
    inside = np.zeros(part.shape, np.uint8)
    cv2.fillPoly(inside, [_whole(corners) - np.array([left, top], np.int32)], (1,))
    return float(part[inside > 0].mean())


def _whole(corners: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    return np.round(corners).astype(np.int32)
