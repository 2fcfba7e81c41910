"""Finding pairs whose picture another pair with an earlier key has already.

Each picture has a 64-bit value: the first bits of its digest, to find equal pictures, or its perceptual hash, to find
similar ones. Two values that differ in at most ``d`` bits agree in at least one of ``d + 1`` bands of bits, so only
pictures that agree in a band are compared. Each range of the values of the bands is searched by itself, in the memory
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


def bands(pictures: Pictures, distance: int) -> pl.DataFrame:
    """Each picture once for each band of bits: ``band``, ``value`` and ``key``.

    ``band`` is the number of the band together with the bits in it, spread over all numbers of 64 bits. Pictures are
    compared where it is equal.

    Args:
        pictures: any.
        distance: the number of bits in which similar pictures may differ.
    """
    values, keys = pictures
    width = BITS // (distance + 1)
    spread = np.uint64(2**64 // ((distance + 1) << width))
    numbers = [np.uint64(band << width) | _bits(values, band, width) for band in range(distance + 1)]
    return pl.concat([pl.DataFrame({"band": number * spread, "value": values, "key": keys}) for number in numbers])


def repeats(rows: pl.DataFrame, distance: int) -> pl.DataFrame:
    """Find the pairs whose picture differs in at most ``distance`` bits from one with an earlier key in the same band.

    Args:
        rows: ``bands`` of pictures, with any further columns; of each value of ``band`` all rows or none.
        distance: 0 for pictures that are equal.

    Returns:
        The rows of these pairs. A pair of several bands may be found in each.
    """
    rows = rows.sort("band", "value", "key")
    same = [(pl.col(name) == pl.col(name).shift()).fill_null(value=False) for name in ("band", "value")]
    equal = rows.select(equal=pl.all_horizontal(same)).to_series()
    again = [rows.filter(equal)]
    if distance:
        rows = rows.filter(~equal).sort("band", "key")
        places, values = rows["band"].to_numpy(), rows["value"].to_numpy()
        near = np.zeros(len(rows), dtype=bool)
        edges = [0, *(np.flatnonzero(places[1:] != places[:-1]) + 1), len(places)]
        for low, high in pairwise(edges):
            if high - low > 1:
                near[low:high] = _near_an_earlier(values[low:high], distance)
        again.append(rows.filter(pl.Series(near)))
    return pl.concat(again)


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


def _bits(values: Hashes, band: int, width: int) -> Hashes:
    return values >> np.uint64(BITS - width * (band + 1)) & np.uint64(2**width - 1)
