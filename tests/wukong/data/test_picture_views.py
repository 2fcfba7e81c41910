"""The views of an image, compared with torchvision's transforms."""

import io

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomResizedCrop, Resize

from wukong.config.model import ImageEncoder
from wukong.data import images
from wukong.data.views import Views

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


def views_of(picture: Image.Image, steps: tuple[str, ...], count: int, size: int = 32) -> np.ndarray:
    """Training views of a tower that sees the middle of pictures, [count, size, size, 3]."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    views = Views(ImageEncoder(image_size=size, view="crop"), steps)
    shown = [views[stream.getvalue(), "key", number, "x"] for number in range(1, count + 1)]
    return np.stack([view.permute(1, 2, 0).numpy() for view in shown if isinstance(view, torch.Tensor)])


SHAPES = [(160, 120), (160, 90), (90, 160), (300, 100), (100, 100)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [("crop", "flip", "autoaugment"), ("flip",), ("autoaugment",)])
def test_training_views_of_a_crop_have_no_bars(shape: tuple[int, int], steps: tuple[str, ...]) -> None:
    """Every step leaves an even grey as it is, up to the 1 of an inversion, unless something else is moved in."""
    found = views_of(Image.new("RGB", shape, (128, 128, 128)), steps, 60).astype(int)
    assert np.abs(found - 128).max() <= 1


def test_without_the_crop_a_training_view_is_the_evaluation_view_or_its_mirror() -> None:
    picture = noise(160, 90)
    middle = np.asarray(images.evaluation_view(picture, 32, "crop"))
    assert {view.tobytes() for view in views_of(picture, ("flip",), 20)} == {
        middle.tobytes(),
        middle[:, ::-1].tobytes(),
    }


@pytest.mark.parametrize(("width", "height"), SHAPES[:3])
def test_areas_and_ratios_of_crops_are_torchvisions(width: int, height: int) -> None:
    """The picture's red and green tell where a pixel of a view comes from."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    pixels = np.zeros((height, width, 3))
    pixels[..., 0], pixels[..., 1] = across[None, :], down[:, None]
    picture, count = Image.fromarray(pixels.round().astype(np.uint8)), 800

    def boxes(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = found.shape[1]
        middle = found[:, size // 2, size // 2]
        first, last = found[:, 1, 1].astype(float), found[:, -2, -2].astype(float)
        sides = (last - first)[:, :2] / 255 * np.array([width - 1, height - 1]) * size / (size - 3)
        assert (middle[:, 2] == 0).all()
        return sides.prod(1) / (width * height), sides[:, 0] / sides[:, 1]

    torch.manual_seed(1)
    oracle = RandomResizedCrop(32, (0.5, 1.0), (0.8, 1.25), InterpolationMode.BICUBIC)
    expected = np.stack([np.asarray(oracle(picture)) for _ in range(count)])
    for ours, theirs in zip(boxes(views_of(picture, ("crop",), count)), boxes(expected), strict=True):
        assert ks_2samp(ours, theirs).pvalue > 0.001
