"""Where faces are in a picture, from what a detector gives."""

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float32]

_MOST_OVERLAP = 0.3


def of_centers(heat: Numbers, scale: Numbers, offset: Numbers, least: float) -> Numbers:
    """Decode the maps of CenterFace (Xu et al., arXiv:1911.03599), which have a fourth of the picture's sides.

    Args:
        heat: how surely a face has its middle there, [1, height, width].
        scale: logarithms of a face's height and width, in steps of the map, [2, height, width].
        offset: where in its step the middle lies, down and to the right, [2, height, width].
        least: faces with at most this score are left out.

    Returns:
        A row a face, by falling score: the left and the upper side, width and height as shares of the picture's sides,
        and the score. Of faces that overlap, the surest stays.
    """
    _, height, width = heat.shape
    rows, columns = np.nonzero(heat[0] > least)
    at = (slice(None), rows, columns)
    down, right = np.stack([rows, columns]) + offset[at] + 0.5
    tall, wide = np.exp(scale[at])
    boxes = np.stack([right - wide / 2, down - tall / 2, right + wide / 2, down + tall / 2], axis=1)
    boxes = np.clip(boxes / np.array([width, height] * 2), 0, 1)
    found = _apart(np.column_stack([boxes, heat[0, rows, columns]]).astype(np.float32))
    found[:, 2:4] -= found[:, :2]
    return found


def _apart(found: Numbers) -> Numbers:
    """Leave out each box that overlaps a surer one that stays: by 30 % of the area that both cover, or more."""
    found = found[np.argsort(-found[:, 4], kind="stable")]
    areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    stays = np.ones(len(found), dtype=bool)
    for row, (left, top, right, bottom, _) in enumerate(found):
        if stays[row]:
            width = np.minimum(found[:, 2], right) - np.maximum(found[:, 0], left)
            height = np.minimum(found[:, 3], bottom) - np.maximum(found[:, 1], top)
            shared = np.maximum(width, 0) * np.maximum(height, 0)
            overlaps = shared >= _MOST_OVERLAP * (areas + areas[row] - shared)
            overlaps[: row + 1] = False
            stays &= ~overlaps
    return found[stays]
