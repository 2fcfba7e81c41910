"""The views of an image, compared with torchvision's transforms."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from wukong.data import images

SIDES = st.integers(1, 120)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8))


@given(SIDES, SIDES, st.integers(1, 64))
@example(100, 75, 32)
@example(75, 100, 33)
@example(7, 140, 32)
def test_the_crop_equals_clips_pixel_by_pixel(width: int, height: int, size: int) -> None:
    if max(width, height) > 20 * min(width, height):
        return
    picture = noise(width, height)
    clip = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])
    assert np.array_equal(np.asarray(images.evaluation_view(picture, size, "crop")), np.asarray(clip(picture)))


@pytest.mark.parametrize("size", [(2, 60_000), (60_000, 2), (3, 61)])
def test_a_long_image_takes_limited_memory(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, to: tuple[int, int], *more: object) -> Image.Image:
        made.append(to)
        return resize(image, to, *more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    picture = Image.new("RGB", size, "red")
    picture.paste("blue", (size[0] // 2 - 1, size[1] // 2 - 1, size[0] // 2 + 1, size[1] // 2 + 1))
    shown = images.evaluation_view(picture, 32, "crop")
    assert shown.size == (32, 32) and max(made[0]) <= 20 * 32
    assert shown.getpixel((16, 16))[2] > 100  # its middle


def test_the_default_view_is_the_whole_image() -> None:
    shown = images.evaluation_view(Image.new("RGB", (60, 30), "red"), 32)
    assert shown.getpixel((16, 2)) == (255, 255, 255) and shown.getpixel((16, 16)) == (255, 0, 0)
    assert images.evaluation_view(Image.new("RGB", (60, 30), "red"), 32, "crop").getpixel((16, 2)) == (255, 0, 0)
