"""The fourteen changes under which a test picture is planted among training pictures."""

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

Random = np.random.Generator
Change = Callable[[Image.Image, Random, Image.Image], Image.Image]
"""Makes a changed picture of a picture, random numbers and another picture that stands beside it."""


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    """The picture as JPEG."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _jpeg(image: Image.Image, _random: Random, _other: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, 30))).convert("RGB")


def _half(image: Image.Image, _random: Random, _other: Image.Image) -> Image.Image:
    return image.resize((max(image.width // 2, 1), max(image.height // 2, 1)), Image.Resampling.LANCZOS)


def _cut(share: float) -> Change:
    def cut(image: Image.Image, random: Random, _other: Image.Image) -> Image.Image:
        """Keep a window of the same form, anywhere in the picture."""
        side = (1 - share) ** 0.5
        width, height = round(image.width * side), round(image.height * side)
        left = int(random.integers(image.width - width + 1))
        upper = int(random.integers(image.height - height + 1))
        return image.crop((left, upper, left + width, upper + height))

    return cut


def _side(share: float) -> Change:
    def cut(image: Image.Image, random: Random, _other: Image.Image) -> Image.Image:
        """Cut a part off the longer side, some of it at each end."""
        along = round(max(image.size) * (1 - share))
        start = int(random.integers(max(image.size) - along + 1))
        wide = image.width >= image.height
        return image.crop((start, 0, start + along, image.height) if wide else (0, start, image.width, start + along))

    return cut


def _to_16_9(image: Image.Image, random: Random, _other: Image.Image) -> Image.Image:
    """Cut rows off, or columns where it is wider already."""
    width, height = min(image.width, round(image.height * 16 / 9)), min(image.height, round(image.width * 9 / 16))
    left, upper = (int(random.integers(room + 1)) for room in (image.width - width, image.height - height))
    return image.crop((left, upper, left + width, upper + height))


def _mirror(image: Image.Image, _random: Random, _other: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _border(image: Image.Image, random: Random, _other: Image.Image) -> Image.Image:
    width = round(max(image.size) * random.uniform(0.04, 0.1))
    colour = tuple(int(value) for value in random.integers(256, size=3))
    framed = Image.new("RGB", (image.width + 2 * width, image.height + 2 * width), colour)
    framed.paste(image, (width, width))
    return framed


def _caption_bar(image: Image.Image, random: Random, _other: Image.Image) -> Image.Image:
    height = round(image.height * random.uniform(0.12, 0.2))
    dark = bool(random.integers(2))
    barred = Image.new("RGB", (image.width, image.height + height), "black" if dark else "white")
    barred.paste(image, (0, 0))
    place = (image.width // 20, image.height + height // 5)
    _write(barred, random, place, max(height // 2, 1), "white" if dark else "black")
    return barred


def _colour(image: Image.Image, random: Random, _other: Image.Image) -> Image.Image:
    for kind in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        image = kind(image).enhance(float(random.uniform(0.6, 1.4)))
    return image


def _blur(image: Image.Image, random: Random, _other: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.008, 0.015)) * max(image.size)))


def _rotate(image: Image.Image, random: Random, _other: Image.Image) -> Image.Image:
    return image.rotate(3 if random.integers(2) else -3, Image.Resampling.BICUBIC)


def _side_by_side(image: Image.Image, random: Random, other: Image.Image) -> Image.Image:
    other = other.resize((max(1, round(other.width * image.height / other.height)), image.height))
    both = Image.new("RGB", (image.width + other.width, image.height))
    first, second = (image, other) if random.integers(2) else (other, image)
    both.paste(first, (0, 0))
    both.paste(second, (first.width, 0))
    return both


def _text(image: Image.Image, random: Random, _other: Image.Image) -> Image.Image:
    image = image.copy()
    size = max(image.height // 8, 8)
    place = (int(random.integers(image.width // 6 + 1)), int(random.integers(max(image.height - size, 1))))
    _write(image, random, place, size, "white", "black")
    return image


def _write(
    image: Image.Image, random: Random, place: tuple[int, int], size: int, colour: str, edge: str | None = None
) -> None:
    words = "".join(chr(int(code)) for code in random.integers(ord("A"), ord("Z") + 1, size=12))
    font = ImageFont.load_default(size)
    ImageDraw.Draw(image).text(place, words, colour, font, stroke_width=1 if edge else 0, stroke_fill=edge)


CHANGES: Mapping[str, Change] = {
    "JPEG quality 30": _jpeg,
    "half size": _half,
    "10 % cut away": _cut(0.1),
    "25 % cut away": _cut(0.25),
    "mirror": _mirror,
    "border": _border,
    "caption bar": _caption_bar,
    "colour": _colour,
    "blur": _blur,
    "rotation by 3°": _rotate,
    "two side by side": _side_by_side,
    "text over it": _text,
    "25 % off one side": _side(0.25),
    "to 16:9": _to_16_9,
}
