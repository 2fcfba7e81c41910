"""How many pairs go as near duplicates at each threshold, for the dataset card: known before any goes.

The card's template draws a ``Curve``.
"""

from __future__ import annotations

from dataclasses import dataclass

from wukong.curate.near_duplicates import COUNTED, THRESHOLDS
from wukong.store.manifest import Manifest


@dataclass(frozen=True)
class Share:
    """What goes at a threshold.

    Attributes:
        cosine: the threshold.
        pairs: how many go.
        percent: of the pairs that were compared.
        left, height: of its bar, in a box of 100 x 100 units.
        chosen: whether it is the highest of them that is not above ``filter.near_duplicates.min_cosine``.
    """

    cosine: float
    pairs: int
    percent: float
    left: float
    height: float
    chosen: bool


@dataclass(frozen=True)
class Curve:
    """The shares at all thresholds.

    Attributes:
        compared: how many pairs were compared.
        min_cosine: the threshold at which pairs were dropped; None where none was.
        keep: which of near pairs is kept.
        shares: from the lowest threshold to the highest.
        width: of a bar.
    """

    compared: int
    min_cosine: float | None
    keep: str
    shares: tuple[Share, ...]
    width: float


def curve(filtered: Manifest) -> Curve | None:
    """What the filter counted; None where it did not compare vectors.

    Args:
        filtered: manifest of the filter stage.
    """
    compared = filtered.counts.get(COUNTED)
    asked = filtered.config.get("near_duplicates")
    if compared is None or asked is None:
        return None
    lowest = asked["min_cosine"]
    gone = [filtered.counts[f"{COUNTED}/{cosine:.2f}"] for cosine in THRESHOLDS]
    chosen = max((cosine for cosine in THRESHOLDS if lowest is not None and cosine <= lowest), default=None)
    width, most = 100 / len(THRESHOLDS), max(1, *gone)
    shares = tuple(
        Share(cosine, pairs, 100 * pairs / max(1, compared), width * number, 100 * pairs / most, cosine == chosen)
        for number, (cosine, pairs) in enumerate(zip(THRESHOLDS, gone, strict=True))
    )
    return Curve(compared, lowest, asked["keep"], shares, width)
