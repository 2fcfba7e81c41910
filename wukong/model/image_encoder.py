"""Image encoders from timm with one interface: pooled feature, patch tokens, and locking (sections 4.2 and 4.4)."""

import importlib
import logging
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wukong.config.model import ImageEncoder as Settings
from wukong.errors import ConfigError, DataError
from wukong.model import weights
from wukong.store import contents

log = logging.getLogger(__name__)


class ImageFeatures(NamedTuple):
    """The output of an image encoder.

    Attributes:
        pooled: [images, pooled width], one vector for each image.
        tokens: [images, tokens, token width], one vector for each patch, row by row, without [CLS] and register
            tokens.
    """

    pooled: Tensor
    tokens: Tensor


class ImageEncoder(nn.Module):
    """A timm model as the image tower of a dual encoder.

    The pooled feature is the input of the model's last projection, to classes or to CLIP's embedding space. The dual
    encoder's head replaces that projection (section 4.2). It is [CLS] for a ViT, the mean of the patches for Swin and
    EfficientNet, and the attention pool for CLIP's ResNets. If the setting ``block`` is given, it is the mean of that
    block's tokens.

    Args:
        settings: the model's timm name, the resolution, and the source of the weights.
        with_weights: load the weights. If False, they are random until a state is loaded.

    Raises:
        ConfigError: timm does not have the model, or the weights cannot be found.
        DataError: the weights belong to another model.

    Attributes:
        pooled_width: width of the pooled feature.
        token_width: width of a token.
        token_count: number of tokens of an image.
        groups: names of the layer groups, in the order of the forward pass: the stem, the blocks or stages, and for
            some models a head.
    """

    def __init__(self, settings: Settings, with_weights: bool = True) -> None:
        super().__init__()
        self.settings = settings
        self.backbone: Any = _create(settings, with_weights)
        statistics: dict[str, Any] = self.backbone.pretrained_cfg
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(statistics[name]).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        grouped = group_parameters(self.backbone, self.backbone.group_matcher(coarse=True))
        self._group_of = {name: number for number, names in grouped.items() for name in names}
        self.groups = tuple(
            "stem" if number == 0 else _GROUP_NAME.match(names[0])[0]  # type: ignore[index]
            for number, names in sorted(grouped.items())
        )
        self._locked_groups = 0
        self._checkpoint_activations = False
        self._precision: torch.dtype | None = None
        self._pointwise: list[_Pointwise] = []
        with torch.inference_mode():
            sample = torch.zeros(1, 3, settings.image_size, settings.image_size, dtype=torch.uint8)
            pooled, tokens = self.eval()(sample)
        self.pooled_width, self.token_width, self.token_count = pooled.shape[1], tokens.shape[2], tokens.shape[1]

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode images.

        Args:
            pixels: uint8 [images, 3, size, size], RGB.

        Raises:
            DataError: the images have another type, number of channels or size.
        """
        size = self.settings.image_size
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, size, size):
            raise DataError(
                f"pictures as {str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}: "
                f"{self.settings.name} reads uint8 [pictures, 3, {size}, {size}], RGB"
            )
        scaled = (pixels.to(self.mean.dtype) / 255 - self.mean) / self.std
        return self.from_normalised(scaled if self._precision is None else scaled.to(self._precision))

    def from_normalised(self, scaled: Tensor) -> ImageFeatures:
        """Encode images whose values are floats, normalised by ``mean`` and ``std``, [images, 3, size, size]."""
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
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            tokens = features.flatten(1, 2)
        else:
            tokens = features.flatten(2).transpose(1, 2)
        return ImageFeatures(pooled, tokens)

    def in_pieces(self, pixels: Tensor) -> ImageFeatures:
        """Encode images after ``for_inference``, with the bits of ``forward``, but on a processor sooner.

        Of a tower that is all convolutions, what lies between two layers of a few images fits into the processor's
        cache. Other towers get all images at once: products of matrices round otherwise with other numbers of rows.
        """
        is_exact = pixels.device.type == "cpu" and self.mean.dtype == torch.float32
        if not self._pointwise or not is_exact or torch.is_autocast_enabled("cpu") or len(pixels) < _ONEDNN_FROM:
            features: ImageFeatures = self(pixels)
            return features
        for layer in self._pointwise:
            layer.in_onednn = True
        try:
            parts = [self(piece) for piece in pixels.split(_PIECE)]
        finally:
            for layer in self._pointwise:
                layer.in_onednn = False
        return ImageFeatures(*(torch.cat(part) for part in zip(*parts, strict=True)))

    @property
    def is_locked(self) -> bool:
        """Whether all layer groups are locked, so that the features can be computed once and stored."""
        return self._locked_groups == len(self.groups)

    def lock(self, groups: int | Literal["all", "none"] = "all") -> None:
        """Lock the first layer groups (LiT): they get no gradients and stay in evaluation mode. Unlock all others.

        In evaluation mode the statistics of batch norm do not change and dropout is off.

        Args:
            groups: the number of ``groups`` to lock, or ``all`` or ``none``.

        Raises:
            ConfigError: the model has fewer groups.
        """
        total = len(self.groups)
        count = {"all": total, "none": 0}[groups] if isinstance(groups, str) else groups
        if not 0 <= count <= total:
            raise ConfigError(
                f"lock: {self.settings.name} has {total} layer groups, not {count}: {self._numbered_groups()}"
            )
        self._locked_groups = count
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(self._group_of[name] >= count)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Set training mode (or evaluation mode) for the layers that are not locked."""
        super().train(mode and not self.is_locked)
        if mode and self._locked_groups:
            _set_evaluation_mode(
                self.backbone, {name for name, group in self._group_of.items() if group < self._locked_groups}
            )
        self._refuse_batch_norm_with_checkpoints()
        return self

    @property
    def checkpoint_activations(self) -> bool:
        """Whether the backward pass computes activations a second time instead of storing them.

        This takes less memory and more time.

        Raises:
            ConfigError: a batch norm is trained. The second forward pass would update its running statistics a second
                time. Raised when this is set, or later when training mode is set.
        """
        return self._checkpoint_activations

    @checkpoint_activations.setter
    def checkpoint_activations(self, enable: bool) -> None:
        self._checkpoint_activations = enable
        self.backbone.set_grad_checkpointing(enable)
        self._refuse_batch_norm_with_checkpoints()

    def _refuse_batch_norm_with_checkpoints(self) -> None:
        if self._checkpoint_activations:
            for name, module in self.backbone.named_modules():
                if isinstance(module, _BatchNorm) and module.training:
                    raise ConfigError(
                        f"checkpoint_activations: {self.settings.name} trains the batch norm {name}, whose running "
                        "statistics a second forward pass would update again; lock more layer groups "
                        f"({self._numbered_groups()}), or leave it off"
                    )

    def synchronise_batch_norm(self) -> None:
        """Compute the statistics of trained batch norms over the images of all workers, on GPUs, in place.

        On processors torch cannot do so: a warning says that each worker uses the statistics of its own images. The
        names of the weights do not change. Without a trained batch norm nothing is done.
        """
        trained = [
            name
            for name, module in self.backbone.named_modules()
            if isinstance(module, _BatchNorm) and any(weight.requires_grad for weight in module.parameters())
        ]
        if trained and self.mean.device.type == "cpu":
            log.warning(
                "%s trains the batch norm %s%s: each worker computes its statistics from its own images, because torch "
                "synchronises them only on GPUs; with workers: 1 they are those of the whole batch",
                self.settings.name,
                trained[0],
                f" and {len(trained) - 1} others" if trained[1:] else "",
            )
        elif trained:
            self.backbone = convert_sync_batchnorm(self.backbone)

    def _numbered_groups(self) -> str:
        return ", ".join(f"{number} {name}" for number, name in enumerate(self.groups))

    def for_inference(self, precision: torch.dtype | None = None) -> "ImageEncoder":
        """Make the forward pass faster, in place: fold batch norms into convolutions, use the channels-last layout.

        The outputs stay equal up to rounding. Afterwards the encoder cannot be trained or saved.

        Args:
            precision: type of the weights and of what is computed; None to leave it.
        """
        self.lock()
        _fold_batch_norm(self.backbone)
        self._precision = precision
        self.backbone.to(dtype=precision, memory_format=torch.channels_last)
        if not any(isinstance(module, nn.Linear) for module in self.backbone.modules()):
            self._pointwise = _replace_pointwise(self.backbone)
        return self


class _Pointwise(nn.Module):
    """A convolution of 1 x 1, which torch on one thread leaves to oneDNN only for 16 images and more.

    Attributes:
        in_onednn: whether it is left to oneDNN for any number of images; otherwise torch chooses.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.in_onednn = False

    def forward(self, images: Tensor) -> Tensor:
        own = self.convolution
        if not self.in_onednn:
            chosen: Tensor = own(images)
            return chosen
        return torch.mkldnn_convolution(images, own.weight, own.bias, (0, 0), own.stride, (1, 1), 1)


_ONEDNN_FROM = 16
"""Images from which on torch leaves a convolution of 1 x 1 to oneDNN."""
_PIECE = 4
"""Images of a piece: of 1, 2, 4, 8 and 16 the number with which EfficientNet-Lite0 is the fastest."""

_GROUP_NAME = re.compile(r"\w+(\.\d+)?")


def _create(settings: Settings, with_weights: bool) -> Any:
    name = settings.name
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8]) or "none with a similar name"
        raise ConfigError(f"model.image.name: timm has no model {name!r}; it has {near}, …")
    try:
        pretrained = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ConfigError(f"model.image.name: {error}") from error
    options: dict[str, Any] = {"num_classes": 0}
    if pretrained.fixed_input_size:
        # The size of position embeddings and attention windows depends on it; convolutions take any image size.
        options["img_size"] = settings.image_size
    if pretrained.notes and "QuickGELU" in pretrained.notes[0] and "quickgelu" not in name:
        log.warning("%s uses GELU, but its weights were trained with QuickGELU: use its _quickgelu variant", name)
    if with_weights and settings.weights == "hub":
        model = _from_hub(name, options)
    elif with_weights and settings.weights == "random":
        log.warning("the image encoder %s has random weights, as model.image.weights asks", name)
        # The same ones in every process: those that store features and those that train have to agree.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(name, pretrained=False, **options)
    else:
        model = timm.create_model(name, pretrained=False, **options)
        if with_weights:
            _load(model, settings)
    if settings.block is not None:
        try:
            model.prune_intermediate_layers([settings.block], prune_norm=True, prune_head=True)
        except AssertionError as error:
            raise ConfigError(f"model.image.block: {name} has no block {settings.block} ({error})") from error
    return model


def _from_hub(name: str, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"the weights of {name} cannot be downloaded from the hub ({' '.join(str(error).split())}); "
            "without a network set model.image.weights to the URI of a safetensors file"
        ) from error


def _load(model: nn.Module, settings: Settings) -> None:
    if settings.weights == "package":
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1,))[0]
        state = weights.packaged(settings.name, settings.image_size // patch)
        source = f"the package of {settings.name}"
    else:
        state, source = weights.read(settings.weights), settings.weights
        contents.check(source, settings.weights_sha256)
    _fill(model, state, source, settings)


def check_file(settings: Settings) -> None:
    """Check by names and sizes that the file that ``weights`` names is of this tower, without reading its weights.

    Raises:
        StorageError: there is nothing to read.
        DataError: the file is damaged, or of another tower; the message names the weights.
    """
    with torch.device("meta"):
        model = _create(settings.model_copy(update={"block": None}), with_weights=False)  # a file has all blocks
    _fill(model, weights.read_shapes(settings.weights), settings.weights, settings)


def _fill(model: nn.Module, state: dict[str, Tensor], source: str, settings: Settings) -> None:
    """Load weights in the naming of any of the accepted projects."""
    own = model.state_dict()
    state = weights.below_prefix(own, state)
    # timm translates the names of other projects (OpenAI and open_clip among them) and resizes to other resolutions.
    translate: Callable[..., dict[str, Tensor]] | None = getattr(
        importlib.import_module(type(model).__module__), "checkpoint_filter_fn", None
    )
    if translate is not None:
        try:
            state = translate(state, model)
        except Exception as error:
            # It does not check names and sizes, so its exception does not name the weight that is wrong.
            problems = (
                weights.misfits(model.state_dict(), state)
                or f"timm cannot translate it ({type(error).__name__}: {error})"
            )
            raise DataError(f"{source} does not fit {settings.name}: {problems}; {_ACCEPTED}") from error
    configuration: Any = model.pretrained_cfg  # for torch's types every attribute of a module is a tensor or a module
    classifier = str(configuration["classifier"])
    state = {key: value for key, value in state.items() if key in own or not key.startswith(f"{classifier}.")}
    weights.fill(model, state, source, _ACCEPTED)


_ACCEPTED = "accepted are the names of timm, OpenAI and open_clip; timm's also below a prefix like visual.trunk."


def _set_evaluation_mode(module: nn.Module, locked: set[str], prefix: str = "") -> None:
    """Set evaluation mode for each submodule of which all parameters are locked."""
    for name, child in module.named_children():
        inside = [f"{prefix}{name}.{parameter}" for parameter, _ in child.named_parameters()]
        if inside and locked.issuperset(inside):
            child.eval()
        else:
            _set_evaluation_mode(child, locked, f"{prefix}{name}.")


def _fold_batch_norm(model: nn.Module) -> None:
    """Fold each batch norm into the convolution directly before it; the activation after it stays."""
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))


def _replace_pointwise(model: nn.Module) -> list[_Pointwise]:
    """Replace the convolutions of 1 x 1 that a processor may leave to oneDNN; return what stands in their places."""
    layers = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # Subclasses pad by themselves.
            if isinstance(child, nn.Conv2d) and type(child) is nn.Conv2d and _is_pointwise(child):
                layers.append(_Pointwise(child))
                setattr(parent, name, layers[-1])
    return layers


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.padding == (0, 0) and layer.groups == 1
