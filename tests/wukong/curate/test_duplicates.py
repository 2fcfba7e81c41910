"""Duplicates by comparing every pair with every other, and a hash that survives what happens to pictures."""

import io
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from wukong.curate import duplicates, exchange
from wukong.curate.phash import perceptual_hash
from wukong.errors import DataError

VALUE = st.integers(0, 2**64 - 1) | st.builds(
    lambda bits: sum(1 << bit for bit in bits), st.sets(st.integers(0, 63), max_size=5)
)


def found(pictures, distance, ranges):
    rows = duplicates.bands(pictures, distance)
    assert len(rows) == (distance + 1) * len(pictures[0])
    edges = np.array(exchange.edges(2**64, ranges), np.uint64)
    numbers = np.searchsorted(edges, rows["band"].to_numpy(), side="right")
    pieces = [rows.filter(pl.Series(numbers == number)) for number in range(ranges)]
    return set(pl.concat([duplicates.repeats(piece, distance) for piece in pieces])["key"])


@given(st.lists(VALUE, max_size=40), st.integers(0, 3), st.sampled_from([1, 3, 17]), st.randoms())
@settings(deadline=None, max_examples=200)
def test_a_pair_goes_when_an_earlier_key_has_nearly_its_picture(values, distance, ranges, random):
    keys = random.sample(range(1000), len(values))
    expected = {
        key
        for value, key in zip(values, keys, strict=True)
        if any(
            (value ^ other).bit_count() <= distance and before < key for other, before in zip(values, keys, strict=True)
        )
    }
    pictures = np.array(values, np.uint64), np.array(keys, np.uint64)
    assert found(pictures, distance, ranges) == expected


def test_many_of_one_picture_take_no_square_of_memory():
    values = np.zeros(300_000, np.uint64)
    values[::3] = 7
    gone = found((values, np.arange(300_000, dtype=np.uint64)), 3, 1)
    assert len(gone) == 299_999


def drawing(seed, size=(400, 300)):
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(generator.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = generator.random(4)
        box = (x * size[0], y * size[1], (x + w / 2) * size[0], (y + h / 2) * size[1])
        draw.ellipse(box, fill=tuple(generator.integers(0, 256, 3)))
    return image


def encoded(image, quality=95):
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality)
    return target.getvalue()


def test_a_picture_scaled_and_compressed_again_keeps_its_hash_and_others_have_another():
    hashes = [perceptual_hash(encoded(drawing(seed))) for seed in range(30)]
    again = [perceptual_hash(encoded(drawing(seed).resize((256, 192)), 60)) for seed in range(30)]
    apart = sorted((one ^ other).bit_count() for one, other in zip(hashes, again, strict=True))
    assert apart[-3] <= 3
    assert apart[-1] <= 6
    assert min((a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]) > 6


def test_the_hash_is_that_of_the_cosine_transform():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    low = [
        sum(
            float(pixels[y, x]) * math.cos(math.pi * v * (y + 0.5) / 32) * math.cos(math.pi * u * (x + 0.5) / 32)
            for y in range(32)
            for x in range(32)
        )
        for v in range(1, 9)
        for u in range(1, 9)
    ]
    middle = sorted(low)[31:33]
    bits = "".join("1" if value > sum(middle) / 2 else "0" for value in low)
    assert f"{perceptual_hash(target.getvalue()):064b}" == bits


def test_a_picture_of_one_colour_has_the_empty_hash_and_bytes_that_are_none_an_error():
    assert perceptual_hash(encoded(Image.new("RGB", (300, 300), "#3355aa"))) == 0
    with pytest.raises(DataError, match=r"b\.jpg cannot be decoded"):
        perceptual_hash(b"no picture", "b.jpg")
