"""A perceptual hash: the hashes of similar pictures differ in few bits."""

import io

import numpy as np
from PIL import Image

from wukong.data.decoding import DECODER_ERRORS, FORMATS, UNNAMED
from wukong.errors import DataError

BITS = 64
_SIDE = 32
_LOW = 8


def perceptual_hash(picture: bytes, name: str = UNNAMED) -> int:
    """Compute the 64-bit pHash: one bit for each of the 8 x 8 lowest frequencies, set above their median.

    The mean is not among the frequencies.

    Args:
        picture: encoded.
        name: what an error message calls it.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(picture), formats=FORMATS) as image:
            image.draft("L", (2 * _SIDE, 2 * _SIDE))
            gray = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    except DECODER_ERRORS as error:
        raise DataError(f"{name} cannot be decoded ({error}); leave it out or fetch it again") from error
    low = _COSINES @ np.asarray(gray, dtype=np.float64) @ _COSINES.T
    # Rounding errors must not set a bit: in a picture of one colour every frequency is 0, and so is every bit.
    bits = np.round(low, 6) > np.median(np.round(low, 6))
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


# Rows 1 to 8 of the discrete cosine transform (type II).
_COSINES = np.cos(np.pi / _SIDE * np.outer(np.arange(1, _LOW + 1), np.arange(_SIDE) + 0.5))
