"""What a Wukong model's image tower sees of a picture, for ``AutoImageProcessor`` of transformers; it needs pillow."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import make_flat_list_of_images

_WHITE = (255, 255, 255)
_LONGEST = 20
"""A picture that is this many times as long as wide, or more, is first cut, to limit the memory."""


class WukongImageProcessor(BaseImageProcessor):
    """Makes a square of a picture of any shape.

    Args:
        image_size: pixels of a side of the square.
        view: ``whole`` for the whole picture on a white square, or ``crop`` for the square in its middle, after its
            shorter side is resized to ``image_size``.
        image_mean: what is subtracted from each channel, whose values are from 0 to 1.
        image_std: by what each channel is then divided.
        tokens: number of a picture's vectors, for a mask of them; None for no mask.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - as in every image processor of transformers

    def __init__(
        self,
        image_size: int = 224,
        view: str = "whole",
        image_mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        image_std: tuple[float, ...] = (0.5, 0.5, 0.5),
        tokens: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size
        self.view = view
        self.image_mean = image_mean
        self.image_std = image_std
        self.tokens = tokens

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """Return ``pixel_values`` of pictures: PIL pictures, arrays, tensors, paths or addresses, one or a list."""
        pictures: Any = make_flat_list_of_images(self.fetch_images(images))
        squares = [self._square(picture) for picture in pictures]
        scaled = np.stack([np.asarray(square) for square in squares]).astype(np.float32) / np.float32(255)
        mean, std = (np.asarray(value, np.float32) for value in (self.image_mean, self.image_std))
        pixels = (scaled - mean) / std
        data: dict[str, Any] = {"pixel_values": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}
        if self.tokens is not None:
            data["attention_mask"] = np.ones((len(squares), self.tokens), np.int64)
        return BatchFeature(data, tensor_type=return_tensors)

    def _square(self, picture: Any) -> Image.Image:
        image = _to_rgb(picture if isinstance(picture, Image.Image) else to_pil_image(picture))
        size = self.image_size
        if self.view == "whole":
            return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=_WHITE)
        longest = _LONGEST * min(image.size)
        if max(image.size) > longest:
            image = _middle(image, min(image.width, longest), min(image.height, longest))
        width, height = (int(size * side / min(image.size)) for side in image.size)
        return _middle(image.resize((width, height), Image.Resampling.BICUBIC), size, size)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture to RGB; transparent pixels become white."""
    if image.mode != "RGB" and image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*_WHITE, 255)), layer).convert("RGB")
    return image.convert("RGB")
