"""Finding pairs whose picture another pair with an earlier key has already.

Each picture has a 64-bit value: the first bits of its digest, to find equal pictures, or its perceptual hash, to find
similar ones. Two values that differ in at most ``d`` bits agree in at least one of ``d + 1`` bands of bits, so only
pictures that agree in a band are compared. Each range of the values of each band is searched by itself, in the memory
that one range needs. A pair is a repeat when the search of any range finds it.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from wukong.curate.caption_counts import Hashes
from wukong.curate.phash import BITS

Pictures = tuple[Hashes, Hashes]
"""Values of pictures, and the keys of their pairs as numbers; the same length."""

_BLOCK = 1024


def numbers(hexadecimal: pl.Series) -> Hashes:
    """The first 64 bits of hexadecimal digests or keys, whose order the numbers keep."""
    return hexadecimal.str.head(16).str.to_integer(base=16, dtype=pl.UInt64).to_numpy()


def bands(pictures: Pictures, distance: int, ranges: int) -> list[Pictures]:
    """For each band of bits, divide the pictures into ranges of the band's values: ``(distance + 1) * ranges`` lists.

    Args:
        pictures: any.
        distance: the number of bits in which similar pictures may differ.
        ranges: a power of two.
    """
    values, keys = pictures
    width = BITS // (distance + 1)
    result = []
    for band in range(distance + 1):
        # The highest bits of the band, taken as a band of its own: a shift by all 64 bits would do nothing.
        shares = _band(values, band, distance) // np.uint64(2**width // ranges) if ranges > 1 else np.zeros_like(values)
        result += [(values[shares == share], keys[shares == share]) for share in range(ranges)]
    return result


def repeats(pictures: Pictures, distance: int, band: int) -> Hashes:
    """Find the pairs whose picture differs in at most ``distance`` bits from one with an earlier key.

    Only pictures that agree in the band are compared.

    Args:
        pictures: the pictures of one range of the band.
        distance: 0 for pictures that are equal.
        band: number of the band, 0 to ``distance``.
    """
    values, keys = pictures
    order = np.lexsort((keys, values))
    values, keys = values[order], keys[order]
    equal = np.concatenate([[False], values[1:] == values[:-1]]) if len(values) else np.empty(0, bool)
    equal_keys = [keys[equal]]
    if distance:
        values, keys = values[~equal], keys[~equal]
        places = _band(values, band, distance)
        order = np.lexsort((keys, places))
        values, keys, places = values[order], keys[order], places[order]
        edges = [0, *(np.flatnonzero(places[1:] != places[:-1]) + 1), len(places)]
        for low, high in pairwise(edges):
            if high - low > 1:
                equal_keys.append(keys[low:high][_near_an_earlier(values[low:high], distance)])
    return np.unique(np.concatenate(equal_keys))


def _near_an_earlier(values: Hashes, distance: int) -> npt.NDArray[np.bool_]:
    """For each value, in the order of the keys, whether one before it differs in at most ``distance`` bits."""
    near = np.zeros(len(values), dtype=bool)
    for low in range(0, len(values), _BLOCK):
        some = values[low : low + _BLOCK]
        for start in range(0, low + len(some), _BLOCK):
            before = values[start : min(start + _BLOCK, low + len(some))]
            close = np.bitwise_count(some[:, None] ^ before[None, :]) <= distance
            earlier = np.arange(start, start + len(before))[None, :] < np.arange(low, low + len(some))[:, None]
            near[low : low + len(some)] |= (close & earlier).any(axis=1)
    return near


def _band(values: Hashes, band: int, distance: int) -> Hashes:
    width = BITS // (distance + 1)
    return values >> np.uint64(BITS - width * (band + 1)) & np.uint64(2**width - 1)
