"""PDQ against the binding of its authors' code (``pdqhash``), on this project's pictures and on drawn ones."""

from pathlib import Path

import numpy as np
import pdqhash
import pytest
from PIL import Image, ImageDraw, ImageFilter

from wukong.curate import pdq
from wukong.data.decoding import decode

PICTURES = sorted(Path(__file__).parents[3].joinpath("docs", "images").glob("*.png"))
_BY = Image.Transpose
TURNS = [None, _BY.FLIP_LEFT_RIGHT, _BY.FLIP_TOP_BOTTOM, _BY.ROTATE_180]
TURNS += [_BY.TRANSPOSE, _BY.ROTATE_90, _BY.ROTATE_270, _BY.TRANSVERSE]  # these, with rows and columns changed over


def drawing(seed, size):
    """Blurred discs and noise, as a photograph has large shapes and grain."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(random.integers(0, 256, 3)))
    pen = ImageDraw.Draw(image)
    for _ in range(25):
        x, y, r = random.uniform(0, size[0]), random.uniform(0, size[1]), random.uniform(2, max(size) / 3)
        pen.ellipse([x - r, y - r, x + r, y + r], fill=tuple(random.integers(0, 256, 3)))
    grain = random.normal(0, 6, (size[1], size[0], 3))
    smooth = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), dtype=float)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def pictures():
    shots = [decode(path.read_bytes()) for path in PICTURES]
    random = np.random.default_rng(0)
    for shot in list(shots):
        for side in (90, 256, 700):
            x, y = (int(random.integers(0, max(1, full - side))) for full in shot.size)
            shots.append(shot.crop((x, y, min(x + side, shot.width), min(y + side, shot.height))))
        shots.append(shot.resize((301, 187)))
    sizes = [(256, 256), (256, 384), (640, 480), (64, 64), (65, 63), (800, 608), (130, 900)]
    return shots + [drawing(seed, size) for seed, size in enumerate(sizes * 4)]


def reference(image):
    forms, quality = pdqhash.compute_dihedral(np.asarray(image))
    return np.packbits(np.array(forms, dtype=np.uint8), axis=1), quality


def apart(some, others):
    return np.bitwise_count(some ^ others).sum(axis=-1)


def is_steady(image):
    """Whether one grey value more in one pixel leaves the bits of ``pdqhash`` as they are, nearly.

    Of a picture that is the same in each row most coefficients are zero but for rounding, which decides on their bits.
    """
    changed = np.array(image)
    changed[tuple(side // 3 for side in changed.shape[:2])] ^= 1
    return apart(reference(image)[0], reference(Image.fromarray(changed))[0]).max() <= 8


def test_bits_and_quality_are_those_of_pdqhash():
    images = [image for image in pictures() if is_steady(image)]
    assert len(images) > 70
    hashes, quality = pdq.hashes(images)
    expected = [reference(image) for image in images]
    differ = apart(hashes, np.stack([each[0] for each, _ in expected]))
    told = np.array([each for _, each in expected]) >= pdq.MIN_QUALITY
    assert told.sum() > 50
    assert differ[told].max() <= 8  # of 256, where 31 is the customary distance
    assert differ[told].mean() < 1
    assert np.abs(quality - np.array([each for _, each in expected])).max() <= 1


def test_a_hash_is_that_of_the_picture_as_it_is_and_has_64_digits():
    images = pictures()[:5]
    hashes, quality = pdq.hashes(images)
    forms, again = pdq.dihedral(images)
    assert np.array_equal(hashes, forms[:, 0]) and np.array_equal(quality, again)
    assert [len(row.tobytes().hex()) for row in hashes] == [64] * 5


def test_hexadecimal_digits_are_in_the_order_of_others():
    # The first digit is of the highest frequencies: a picture with nothing but the lowest frequency of both axes has
    # its only clear bit in the last digit.
    wave = np.cos(np.pi * (np.arange(256) + 0.5) / 256)
    image = Image.fromarray(np.repeat((127.5 + 120 * np.outer(wave, wave))[..., None], 3, axis=2).astype(np.uint8))
    hashes, _ = pdq.hashes([image])
    assert int(hashes[0].tobytes().hex(), 16) & 1
    assert np.array_equal(hashes[0] & 1, reference(image)[0][0] & 1)


@pytest.mark.parametrize("size", [(256, 256), (256, 320), (511, 384), (70, 90)])
def test_the_forms_are_the_hashes_of_the_turned_and_mirrored_picture(size):
    images = [drawing(seed, size) for seed in range(6)]
    forms, _ = pdq.dihedral(images)
    for image, of_image in zip(images, forms, strict=True):
        turned = [image if turn is None else image.transpose(turn) for turn in TURNS]
        assert apart(of_image, pdq.hashes(turned)[0]).max() <= 2
        assert apart(of_image, np.stack([reference(each)[0][0] for each in turned])).max() <= 8


def test_a_picture_that_was_changed_is_near_and_another_is_far():
    images = [drawing(seed, (400, 300)) for seed in range(20)]
    hashes, _ = pdq.hashes(images)
    smaller, _ = pdq.hashes([image.resize((200, 150)) for image in images])
    assert apart(hashes, smaller).max() <= pdq.DISTANCE
    others = apart(hashes[:, None], hashes[None])[~np.eye(20, dtype=bool)]
    assert others.min() > 2 * pdq.DISTANCE


@pytest.mark.parametrize("size", [(1, 1), (4, 300), (300, 4)])
def test_a_picture_with_nearly_no_pixels_has_no_bit_and_no_quality(size):
    hashes, quality = pdq.hashes([Image.new("RGB", size, "red"), drawing(1, (256, 256))])
    assert not hashes[0].any() and quality[0] == 0
    assert hashes[1].any() and quality[1] == 100


def test_one_colour_has_no_quality_and_little_contrast_has_the_bits_of_pdqhash():
    faint = Image.eval(drawing(3, (256, 256)), lambda value: 100 + value // 64)
    hashes, quality = pdq.hashes([Image.new("RGB", (256, 256), "#123456"), faint])
    expected, known = reference(faint)
    assert quality.tolist() == [0, known] and known < pdq.MIN_QUALITY
    assert apart(hashes[1], expected[0]) <= 2


def test_a_picture_in_several_blocks_of_memory_has_the_same_hash():
    large = drawing(5, (3000, 2500))  # more than Pillow keeps in one block, 16 MiB
    hashes, _ = pdq.hashes([large])
    assert apart(hashes[0], reference(large)[0][0]) <= 4


def test_no_picture_has_no_hash():
    forms, quality = pdq.dihedral([])
    assert forms.shape == (0, pdq.FORMS, pdq.BYTES) and quality.shape == (0,)


def dense(length):
    """The points and weights of the two box filters, as products of matrices whose size grows by the square."""
    window = -(-length // 128)
    offsets = np.arange(length) - np.arange(length)[:, None]
    box = (offsets >= -((window - 1) // 2)) & (offsets <= window // 2)
    smooth = box / box.sum(axis=1, keepdims=True)
    return (smooth[((np.arange(64) + 0.5) * length / 64).astype(int)] @ smooth).astype(np.float32)


@pytest.mark.parametrize("length", [5, 63, 65, 127, 128, 129, 200, 256, 341, 640, 1023, 2500])
def test_the_filter_of_a_side_is_that_of_two_boxes_bit_by_bit(length):
    points, weights = pdq._filter(length)
    spread = np.zeros((64, length), dtype=np.float32)
    np.put_along_axis(spread, points, weights, axis=1)
    assert np.array_equal(spread, dense(length))


def test_a_large_picture_is_hashed_in_pieces_to_the_same_bits(monkeypatch):
    images = [drawing(1, (900, 130)), drawing(2, (140, 1000)), Image.new("RGB", (400, 300), (9, 8, 7))]
    whole = pdq.dihedral(images)
    monkeypatch.setattr(pdq, "_MOST_AT_ONCE", 10_000)
    for mine, other in zip(pdq.dihedral(images), whole, strict=True):
        assert np.array_equal(mine, other)
