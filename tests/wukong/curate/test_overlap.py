"""Looking up training pairs among test pictures, compared with doing it one by one."""

import io

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from wukong.config.decontaminate import Decontaminate
from wukong.curate import alignment, hash_files, overlap, picture_vectors

ASKED = Decontaminate(sets=("all",), min_cosine=None)
LEAST = overlap.LEAST_AGREEMENT


def turned_over(hashes, random, most):
    """Hashes with up to ``most`` bits turned over in each, and how many were."""
    bits = np.unpackbits(hashes, axis=1)
    counts = random.integers(most + 1, size=len(bits))
    for row, count in zip(bits, counts, strict=True):
        row[random.permutation(256)[:count]] ^= 1
    return np.packbits(bits, axis=1), counts


def pairs_of(hashes, quality):
    rows = np.column_stack([hashes, quality])
    return pl.DataFrame(
        {
            "key": [f"{n:020x}" for n in range(len(hashes))],
            "pdq": [row.tobytes() for row in rows],
        }
    )


@pytest.mark.parametrize("tests", [300, 3_000])
def test_hashes_within_the_distance_are_found_as_by_comparing_each_with_each(tests):
    random = np.random.default_rng(tests)
    forms = random.integers(256, size=(tests, 8, 32), dtype=np.uint8)
    quality = random.integers(40, 101, size=tests).astype(np.uint8)
    trained, _ = turned_over(forms[random.integers(tests, size=400), random.integers(3, size=400)], random, 40)
    trained_quality = random.integers(40, 101, size=400).astype(np.uint8)
    known = overlap.Tests("set", [f"t{n}" for n in range(tests)], forms, quality)
    found = overlap.Search(known, ASKED).found(pairs_of(trained, trained_quality))

    expected = {}
    for row, hashed in enumerate(trained):
        for test in range(tests):
            if trained_quality[row] < 50 or quality[test] < 50:
                continue
            bits = min((int.from_bytes(hashed) ^ int.from_bytes(forms[test, form])).bit_count() for form in (0, 1))
            if bits <= 31:
                expected[f"{row:020x}", f"t{test}"] = bits
    assert {(row["key"], row["picture"]): row["distance"] for row in found.to_dicts()} == expected
    assert len(expected) > 50 and set(found["level"]) == {"hash"} and set(found["set"]) == {"set"}


def shapes(seed):
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(256, size=(7, 7, 3), dtype=np.uint8))
    return small.resize((240, 240), Image.Resampling.BICUBIC)


def test_of_pictures_near_by_vectors_those_that_agree_are_found_and_no_others(monkeypatch):
    random = np.random.default_rng(0)
    tests = [shapes(seed) for seed in range(6)]
    vectors = random.normal(size=(6, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known = overlap.Tests(
        "set", [str(n) for n in range(6)], np.zeros((6, 8, 32), np.uint8), np.zeros(6, np.uint8),
        vectors.astype(np.float16), [alignment.thumbnail(image) for image in tests],
    )  # fmt: skip
    wide = Image.new("RGB", (480, 240))
    wide.paste(shapes(50), (0, 0))
    wide.paste(tests[3], (240, 0))
    # What is shown, and the vectors of the whole and of its halves: near test 0, near test 1, a half near test 3.
    trained = [(tests[0].crop((10, 20, 220, 230)), vectors[0]), (shapes(60), vectors[1]), (wide, -vectors[3])]
    halves = np.full((3, 32), np.nan, np.float16)
    halves[2] = np.concatenate([-vectors[3], vectors[3]])
    pairs = pl.DataFrame(
        {
            "key": ["cut", "other", "wide"],
            "pdq": [bytes(33)] * 3,
            "vector": picture_vectors.column(np.stack([vector for _, vector in trained]).astype(np.float16)),
            "halves": picture_vectors.column(halves),
            "thumbnail": [alignment.thumbnail(image) for image, _ in trained],
        }
    )
    found = overlap.Search(known, Decontaminate(sets=("all",))).found(pairs)
    assert found.select("key", "picture", "level").rows() == [("cut", "0", "vector"), ("wide", "3", "vector")]
    assert ((found["distance"] >= 0) & (found["distance"] <= 0.2)).all()
    monkeypatch.setattr(overlap, "LEAST_AGREEMENT", 0.9999)
    assert overlap.Search(known, Decontaminate(sets=("all",))).found(pairs)["key"].to_list() == ["wide"], (
        "its half is an equal picture"
    )


def test_vectors_that_are_no_numbers_are_compared_with_nothing():
    rows = np.array([[1, 0], [np.nan, np.nan]], np.float16)
    series = picture_vectors.column(rows)
    assert series.null_count() == 0 and series.dtype == pl.Array(pl.Float16, 2)
    stream = io.BytesIO()
    pq.write_table(pl.DataFrame({"vector": series}).to_arrow(), stream)
    stored = pl.DataFrame(pq.read_table(stream))["vector"]
    assert np.array_equal(stored.to_numpy(), rows, equal_nan=True)
    small = alignment.thumbnail(shapes(0))
    known = overlap.Tests("set", ["a", "b"], np.zeros((2, 8, 32), np.uint8), np.zeros(2, np.uint8), rows, [small] * 2)
    pairs = pl.DataFrame({"key": ["k"], "pdq": [bytes(33)]})
    pairs = pairs.with_columns(
        vector=picture_vectors.column(rows[1:]),
        halves=picture_vectors.column(rows[1:].repeat(2, 1)),
        thumbnail=pl.Series([small]),
    )
    assert overlap.Search(known, Decontaminate(sets=("all",))).found(pairs).is_empty()


def test_a_caption_is_found_in_its_normal_form():
    captions = hash_files.caption_hashes(pl.Series(["一只猫 在睡觉", "狗"]))
    known = overlap.Tests("set", [], np.empty((0, 8, 32), np.uint8), np.empty(0, np.uint8), captions=captions)
    given = pl.DataFrame({"key": ["a", "b", "b"], "caption_original": ["狗", "一只猫  在睡觉", "一只猫"]})
    found = overlap.Search(known, ASKED).found_captions(given)
    assert found.rows() == [("set", "a", "狗"), ("set", "b", "一只猫  在睡觉")]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: image.crop((0, 0, 216, 216)),
        lambda image: image.crop((30, 20, 238, 228)),
        lambda image: image.resize((96, 96)),
        lambda image: image.rotate(3),
        lambda image: image.point(lambda value: int(value * 0.8)),
    ],
    ids=["mirrored", "cut", "cut inside", "small", "turned", "darker"],
)
def test_a_changed_picture_agrees_with_itself_and_with_no_other(change):
    small = [alignment.pixels(alignment.thumbnail(shapes(seed))) for seed in range(8)]
    changed = alignment.pixels(alignment.thumbnail(change(shapes(0))))
    agreement = [alignment.agreement(changed, each) for each in small]
    assert agreement[0] >= 0.8 > max(agreement[1:])


@pytest.mark.parametrize("cut", [(0, 30, 240, 165), (0, 105, 240, 240), (30, 0, 210, 240), (60, 0, 240, 240)])
def test_a_picture_cut_along_one_side_agrees_with_the_whole_and_with_no_other(cut):
    """To 16:9, and by a quarter, at several places."""
    small = [alignment.pixels(alignment.thumbnail(shapes(seed))) for seed in range(6)]
    changed = alignment.pixels(alignment.thumbnail(shapes(0).crop(cut)))
    agreement = [alignment.agreement(changed, each) for each in small]
    assert agreement[0] >= LEAST > max(agreement[1:])


def smooth(seed):
    """A photograph of nothing but slow waves of colour, and grain."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:240, 0:240] / 240
    waves = [
        np.cos(2 * np.pi * (across * x + down * y + random.random()))[..., None] * random.normal(0, 6, 3)
        for across, down in random.normal(0, 1.5, (12, 2))
    ]
    pixels = random.uniform(60, 190, 3) + sum(waves) + random.normal(0, 2, (240, 240, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_an_unchanged_smooth_picture_agrees_with_itself_and_with_no_other():
    pictures = [smooth(seed) for seed in range(12)]
    small = [alignment.pixels(alignment.thumbnail(each)) for each in pictures]
    for number, picture in enumerate(pictures):
        assert alignment.agreement(small[number], small[number]) == pytest.approx(1, abs=1e-4)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        copied = alignment.pixels(alignment.thumbnail(Image.open(stream).convert("RGB")))
        agreement = [alignment.agreement(copied, each) for each in small]
        assert agreement.pop(number) >= LEAST > max(agreement)


def horizon(seed):
    """Two areas of slowly changing colour, one above the other, and grain."""
    random = np.random.default_rng(seed)
    edge, pixels = int(random.uniform(72, 168)), np.empty((240, 240, 3))
    for rows in (slice(0, edge), slice(edge, 240)):
        ends, share = random.uniform(30, 225, (2, 3)), np.linspace(0, 1, rows.stop - rows.start)[:, None]
        pixels[rows] = ((1 - share) * ends[0] + share * ends[1])[:, None]
    return Image.fromarray((pixels + random.normal(0, 2, (240, 240, 1))).clip(0, 255).astype(np.uint8))


def encoded_at_30(image):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=30)
    return alignment.thumbnail(Image.open(stream).convert("RGB"))


def test_two_horizons_do_not_agree_though_each_agrees_with_its_copy():
    pictures = [horizon(seed) for seed in (6, 9, 18, 21, 22, 23)]  # of alike heights
    small = [alignment.pixels(alignment.thumbnail(each)) for each in pictures]
    for number, picture in enumerate(pictures):
        copied = alignment.pixels(encoded_at_30(picture))
        agreement = [alignment.agreement(copied, each) for each in small]
        assert agreement.pop(number) >= LEAST > max(agreement)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_smooth_picture_is_found_though_encoding_moved_its_vector_away(mirrored):
    tests, random = [smooth(seed) for seed in range(12)], np.random.default_rng(0)
    vectors = np.linalg.qr(random.normal(size=(24, 24)))[0].astype(np.float16)  # each at a right angle to all others
    known = overlap.Tests(
        "set", [str(n) for n in range(12)], np.zeros((12, 8, 32), np.uint8), np.zeros(12, np.uint8),
        vectors[:12], [alignment.thumbnail(image) for image in tests],
    )  # fmt: skip
    copies = [each.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else each for each in tests]
    pairs = pl.DataFrame(
        {
            "key": [str(n) for n in range(12)],
            "pdq": [bytes(33)] * 12,
            "vector": picture_vectors.column(vectors[12:]),
            "halves": picture_vectors.column(np.full((12, 48), np.nan, np.float16)),
            "thumbnail": [encoded_at_30(image) for image in copies],
        }
    )
    found = overlap.Search(known, Decontaminate(sets=("all",))).found(pairs)
    assert found.select("key", "picture").rows() == [(str(n), str(n)) for n in range(12)]


@pytest.mark.parametrize("size", [(31, 115), (32, 32), (60, 24)])
def test_half_of_a_picture_that_is_small_already_agrees_with_it(size):
    given = Image.new("RGB", size, "white")
    drawn = ImageDraw.Draw(given)
    drawn.ellipse((3, 3, size[0] // 2, size[1] // 2), fill="navy")
    drawn.line((2, size[1] - 3, size[0] - 4, size[1] // 3), fill="red", width=3)
    half = given.resize((size[0] // 2, size[1] // 2), Image.Resampling.LANCZOS)
    one, other = (alignment.pixels(alignment.thumbnail(each)) for each in (given, half))
    assert alignment.agreement(one, other) >= 0.8


def test_pictures_of_one_colour_agree_with_nothing():
    plain = alignment.pixels(alignment.thumbnail(Image.new("RGB", (100, 80), "gray")))
    assert alignment.agreement(plain, plain) < 0.8
    assert alignment.agreement(plain, alignment.pixels(alignment.thumbnail(shapes(1)))) < 0.8


def test_a_small_picture_keeps_its_shape_up_to_four_times_as_wide():
    sizes = {}
    for given in ((480, 240), (240, 480), (2000, 100), (30, 30), (1, 90)):
        with Image.open(io.BytesIO(alignment.thumbnail(Image.new("RGB", given)))) as image:
            sizes[given] = image.size
    assert sizes == {
        (480, 240): (96, 48),
        (240, 480): (48, 96),
        (2000, 100): (192, 48),
        (30, 30): (48, 48),
        (1, 90): (48, 192),
    }
