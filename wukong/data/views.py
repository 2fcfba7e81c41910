"""Views of image files, as loader processes of torch make them."""

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import Dataset

from wukong.config import ImageEncoder
from wukong.data import images
from wukong.errors import DataError

Encoded = tuple[bytes, str, int, str]
"""An image file, its key, the number of its view, and its name for messages."""


class Views(Dataset["Tensor | str"]):
    """A data set whose index is an image file; the text of the error stands in the place of a broken image.

    Args:
        tower: settings of the image encoder; ``image_size`` and ``view`` are used.
        augmentations: of all views but view 0, which is the evaluation view; none for only evaluation views.
        skip_broken: whether a broken image gives a text; else it is an error.
    """

    def __init__(self, tower: ImageEncoder, augmentations: Sequence[str], *, skip_broken: bool = False) -> None:
        self._tower, self._augmentations, self._skip_broken = tower, augmentations, skip_broken

    def __getitem__(self, encoded: Encoded) -> "Tensor | str":
        """Return one view of an image, uint8 [3, size, size].

        Raises:
            DataError: the image cannot be decoded.
        """
        data, key, view, name = encoded
        try:
            picture = images.decode(data, name)
        except DataError as error:
            if not self._skip_broken:
                raise
            return str(error)
        side = self._tower.image_size
        if view and self._augmentations:
            shown = images.augmented_view(picture, side, images.view_seed(key, view), self._augmentations)
        else:
            shown = images.evaluation_view(picture, side, self._tower.view)
        return images.to_tensor([shown])[0]
