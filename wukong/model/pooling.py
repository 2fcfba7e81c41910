"""Pooling of an image's tokens to fewer, for the token-wise similarity: means of areas, or learned attention maps.

The paper compares all patches (section 4.3). Of the authors' released models some pool them to 12 or 24 tokens, by
maps that the patches themselves give.
"""

from functools import cache
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong.errors import ConfigError

_GROUPS = 8
_NORM_EPSILON = 1e-5


def square_side(count: int) -> int | None:
    """Return the side of a square of so many patches; None if they are no square."""
    side = isqrt(count)
    return side if side * side == count else None


class AreaMeans(nn.Module):
    """Pools tokens to the means of square areas of the image; it has no weights.

    Where the areas do not divide the patches, neighbouring areas share a row or a column of them, as in torch's
    ``adaptive_avg_pool2d``.

    Args:
        count: number of areas, a square number.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens.

        Args:
            tokens: [images, patches, d], the patches of a square by rows.

        Returns:
            [images, areas, d], the areas by rows.

        Raises:
            ConfigError: the patches are no square, or fewer than the areas.
        """
        return _shares_on(tokens.device, tokens.shape[1], self.count).to(tokens.dtype) @ tokens


@cache
def shares(patches: int, areas: int) -> Tensor:
    """Return the share of each patch in the mean of each area, float32 [areas, patches].

    Raises:
        ConfigError: the patches are no square, or fewer than the areas.
    """
    side, wanted = square_side(patches), square_side(areas)
    if side is None or wanted is None or wanted > side:
        raise ConfigError(
            f"model.image.tokens: the image encoder gives {patches} patches, of which {areas} square areas cannot be "
            "taken; name a smaller square number, or model.image.pooling=attention"
        )
    with torch.inference_mode(mode=False):  # it is kept for trainings too
        each = torch.eye(patches, device="cpu").view(patches, side, side)
        return F.adaptive_avg_pool2d(each, wanted).flatten(1).T.contiguous()


@cache
def _shares_on(device: torch.device, patches: int, areas: int) -> Tensor:
    """Return ``shares`` on a device; it is kept there, because a GPU waits for a copy."""
    with torch.inference_mode(mode=False):
        return shares(patches, areas).to(device)


class AttentionMaps(nn.Module):
    """Pools tokens by attention maps that the tokens themselves give, as the authors' released models do.

    Args:
        width: width of a token, a multiple of 8.
        count: number of tokens that are left, that of the maps.

    Raises:
        ConfigError: the width is no multiple of 8.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        if width % _GROUPS:
            raise ConfigError(f"model.embedding: {width}: pooling by attention needs a multiple of {_GROUPS}")
        self.norm = nn.LayerNorm(width, eps=_NORM_EPSILON)
        self.attention_maps = nn.Sequential(
            nn.Conv2d(width, width, 1, groups=_GROUPS, bias=False), nn.Conv2d(width, count, 1, bias=False)
        )
        self.feat_conv = nn.Conv2d(width, width, 1, groups=_GROUPS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens [images, patches, width] to [images, count, width]."""
        # A convolution of 1 x 1 does not see the grid, so the patches may stand in one column.
        maps = self.attention_maps(_column(self.norm(tokens))).squeeze(3).softmax(2)
        pooled: Tensor = maps @ self.values(tokens)
        return pooled

    def values(self, tokens: Tensor) -> Tensor:
        """Return what is pooled of each token, [images, patches, width], not pooled: in it patches can be aligned."""
        values: Tensor = self.feat_conv(_column(tokens)).squeeze(3).transpose(1, 2)
        return values


def _column(tokens: Tensor) -> Tensor:
    """Return tokens [images, tokens, d] as an image [images, d, tokens, 1]."""
    return tokens.transpose(1, 2)[..., None]
