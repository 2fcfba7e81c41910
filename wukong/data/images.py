"""Decode images (``decoding``) and make the views that an image encoder reads: the evaluation view, augmented views."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, RandomResizedCrop

from wukong.data.decoding import UNNAMED, decode, to_rgb
from wukong.errors import DataError

__all__ = [
    "UNNAMED",
    "augmented_view",
    "decode",
    "evaluation_view",
    "from_array",
    "to_rgb",
    "to_tensor",
    "view_seed",
]

View = Literal["whole", "crop"]
_WHITE, _GREY = (255, 255, 255), (128, 128, 128)
_BICUBIC = Image.Resampling.BICUBIC
_MAX_ASPECT_RATIO = 20


def from_array(array: npt.NDArray[np.uint8], name: str = UNNAMED) -> Image.Image:
    """Convert a uint8 array of height x width, or height x width x 1, 3 or 4 channels, to an RGB image.

    Raises:
        DataError: the array has another type or shape.
    """
    pixels = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    known = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in {3, 4})
    if array.dtype != np.uint8 or not known or 0 in array.shape:
        raise DataError(
            f"{name} is an array of {array.dtype} {array.shape}: give uint8, height x width x 1, 3 or 4 channels"
        )
    return to_rgb(Image.fromarray(pixels))


def evaluation_view(image: Image.Image, size: int, view: View = "whole") -> Image.Image:
    """Make the evaluation view of an image: a square, without randomness.

    Args:
        image: an RGB image.
        size: length of a side in pixels.
        view: ``whole`` for the whole image on a white square. ``crop`` to resize the shorter side to ``size`` and take
            the square in the middle, pixel by pixel equal to CLIP's ``Resize`` and ``CenterCrop``. An image more than
            20 times as long as wide is first cropped to its middle, to limit the memory.
    """
    if view == "whole":
        return ImageOps.pad(image, (size, size), _BICUBIC, color=_WHITE)
    longest = _MAX_ASPECT_RATIO * min(image.size)
    if max(image.size) > longest:
        image = _crop_middle(image, min(image.width, longest), min(image.height, longest))
    shorter = min(image.size)
    # Like torchvision: the longer side is rounded down, and the border to the nearest number.
    width, height = (int(size * side / shorter) for side in image.size)
    return _crop_middle(image.resize((width, height), _BICUBIC), size, size)


def _crop_middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def augmented_view(
    image: Image.Image,
    size: int,
    seed: int,
    steps: Sequence[str] = ("crop", "flip", "autoaugment"),
    view: View = "whole",
) -> Image.Image:
    """Make a random view of an image: random resized crop, flip and AutoAugment (section 5.1).

    The same seed gives the same view. The crop keeps at least half of the area; a smaller crop may lose what the
    caption describes. Only an image more than 2.5 times as long as wide has no such crop: its middle is taken.

    Args:
        image: an RGB image.
        size: length of a side in pixels.
        seed: the seed, from ``view_seed``.
        steps: which of the three steps to apply; without the crop, the evaluation view is augmented.
        view: as of ``evaluation_view``. With ``whole``, the image is cropped as it stands on its white square. With
            ``crop`` nothing white is added: what AutoAugment moves in from outside is grey, as its authors have it.
    """
    if view == "whole":
        image = ImageOps.pad(image, (max(image.size),) * 2, color=_WHITE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if "crop" in steps:
            top, left, height, width = _CROP.get_params(image, [0.5, 1.0], [0.8, 1.25])
            shown = image.resize((size, size), _BICUBIC, box=(left, top, left + width, top + height))
        else:
            shown = evaluation_view(image, size, view)
        if "flip" in steps and torch.rand(()) < 0.5:
            shown = ImageOps.mirror(shown)
        augmented: Image.Image = _AUTO_AUGMENT[view](shown) if "autoaugment" in steps else shown
        return augmented


def view_seed(picture: str, view: int) -> int:
    """Return the seed of one augmented view of one image; it depends only on these two.

    Args:
        picture: the image's digest or key.
        view: number of the view, from 1; view 0 is the evaluation view, which needs no seed.
    """
    return int.from_bytes(hashlib.sha256(f"{picture}:{view}".encode()).digest()[:8], "big") >> 1


def to_tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    """Stack RGB images of one size to a uint8 tensor, [images, 3, height, width], with channels last in memory."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


_CROP = RandomResizedCrop(1)  # only its parameter sampling is used
_AUTO_AUGMENT: Mapping[View, AutoAugment] = {
    "whole": AutoAugment(AutoAugmentPolicy.IMAGENET, fill=list(_WHITE)),
    "crop": AutoAugment(AutoAugmentPolicy.IMAGENET, fill=list(_GREY)),
}
