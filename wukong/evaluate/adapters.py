"""Models of open_clip and Chinese-CLIP behind the interface ``Model``.

Their packages are optional and imported when such a model is loaded. ``load`` takes what ``wukong evaluate --model``
takes.
"""

import hashlib
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wukong.data import images
from wukong.errors import ConfigError
from wukong.evaluate.model import Model, OwnModel, concatenate, refuse_not_finite, square
from wukong.evaluate.protocol import Protocol
from wukong.model import saved_model
from wukong.model.dual import Texts
from wukong.model.similarity import Scores, global_similarity

_TEXTS = 256
_CN_CLIP_CONTEXT = 52

Mean = tuple[float, float, float]
CLIP_MEAN: Mean = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Mean = (0.26862954, 0.26130258, 0.27577711)


def load(uri: str, device: str = "cpu") -> Model:
    """Load a model by what stands before the colon of its URI.

    ``open_clip:NAME/WEIGHTS`` or ``open_clip:hf-hub:OWNER/NAME``, ``cn_clip:NAME``; anything else is a model of this
    project: a folder, a URI, or ``models:/NAME@ALIAS``.

    Args:
        uri: the URI.
        device: where it computes.

    Raises:
        ConfigError: the model's package is not installed, or has no such model.
        DataError: the model is damaged.
        StorageError: it is not there.
    """
    kind, _, name = uri.partition(":")
    if kind == "open_clip":
        return _open_clip(name, uri, saved_model.device_of(device))
    if kind == "cn_clip":
        return _cn_clip(name, uri, saved_model.device_of(device))
    return OwnModel(saved_model.load(uri, device), uri)


class ClipModel:
    """A model with one vector for each image and text: open_clip's and Chinese-CLIP's share these methods.

    Args:
        module: has ``encode_image``, ``encode_text`` and ``logit_scale``.
        tokenize: makes token ids [texts, tokens] of texts and the protocol's context.
        name: how reports call it.
        size: length of a side of the images that it reads.
        mean: of each channel, for normalisation.
        std: of each channel.
    """

    token_wise = False

    def __init__(
        self,
        module: nn.Module,
        tokenize: Callable[[list[str], int | None], Tensor],
        name: str,
        size: int,
        mean: Mean = CLIP_MEAN,
        std: Mean = CLIP_STD,
    ) -> None:
        module.eval()
        self._module: Any = module
        self._tokenize = tokenize
        self._size = size
        self._mean, self._std = (torch.tensor(each).view(1, 3, 1, 1) for each in (mean, std))
        self.name = name
        scale: Any = self._module.logit_scale
        self.scale = float(scale.detach().exp())
        self.digest = digest_of(module)

    def encode_images(self, pictures: Sequence[Image.Image], protocol: Protocol) -> Tensor:
        """Encode RGB images; see ``Model``.

        Raises:
            DataError: a vector is not finite.
        """
        pixels = images.to_tensor([square(picture, self._size, protocol) for picture in pictures])
        with torch.inference_mode():
            normal = (pixels.float() / 255 - self._mean) / self._std
            found = self._module.encode_image(normal.to(self._device)).float().cpu()
        refuse_not_finite(found, "image")
        return F.normalize(found, dim=-1)

    def encode_texts(self, texts: Sequence[str], protocol: Protocol) -> Texts:
        """Encode texts; see ``Model``.

        Raises:
            DataError: a vector is not finite.
        """
        parts = []
        for start in range(0, len(texts), _TEXTS):
            ids = self._tokenize([protocol.written(text) for text in texts[start : start + _TEXTS]], protocol.context)
            with torch.inference_mode():
                found = self._module.encode_text(ids.to(self._device)).float().cpu()
            refuse_not_finite(found, "text")
            parts.append(Texts(F.normalize(found, dim=-1), ids != 0))
        return concatenate(parts)

    def similarity(self, image: Tensor, text: Texts) -> Scores:
        """Compute the similarities in both directions; see ``Model``."""
        return global_similarity(image, text.vectors)

    def image_to_text(self, image: Tensor, text: Texts) -> Tensor:
        """Compute s^I alone; see ``Model``."""
        return self.similarity(image, text).image_to_text

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._module.logit_scale.device
        return device


def digest_of(module: nn.Module) -> str:
    """SHA-256 over the names and values of a module's state."""
    found = hashlib.sha256(type(module).__qualname__.encode())
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _package(name: str, how: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is not installed ({error}): {how}") from error


def _open_clip(name: str, uri: str, device: torch.device) -> Model:
    package: Any = _package("open_clip", "pip install open_clip_torch")
    if name.startswith(("hf-hub:", "local-dir:")):
        architecture, weights = name, None
    else:
        architecture, _, weights = name.partition("/")
        if not weights:
            raise ConfigError(
                f"{uri!r} names no weights: open_clip would make random ones; write open_clip:NAME/WEIGHTS, for "
                "instance open_clip:xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k; WEIGHTS may be a file"
            )
    try:
        module = package.create_model(architecture, pretrained=weights, device=device)
        tokenizer = package.get_tokenizer(architecture)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"open_clip has no model {name!r} ({error})") from error
    return from_open_clip(module, tokenizer, uri)


def from_open_clip(module: nn.Module, tokenizer: Callable[..., Tensor], name: str) -> Model:
    """Wrap a model of open_clip with its tokenizer."""
    visual: Any = module.visual
    size = visual.image_size
    mean, std = (getattr(visual, each, None) for each in ("image_mean", "image_std"))

    def tokenize(texts: list[str], context: int | None) -> Tensor:
        longest = getattr(tokenizer, "context_length", None)
        ids = tokenizer(texts, context_length=min(context, longest) if context and longest else longest)
        # A model reads as many positions as it was built for; what was cut is padding.
        padding = getattr(tokenizer, "pad_token_id", 0) or 0
        return ids if longest is None else F.pad(ids, (0, longest - ids.shape[1]), value=padding)

    return ClipModel(
        module,
        tokenize,
        name,
        size[0] if isinstance(size, tuple | list) else size,
        tuple(mean) if mean is not None else CLIP_MEAN,
        tuple(std) if std is not None else CLIP_STD,
    )


def _cn_clip(name: str, uri: str, device: torch.device) -> Model:
    package: Any = _package("cn_clip.clip", "pip install cn_clip")
    if name not in (known := package.available_models()):
        raise ConfigError(f"cn_clip has no model {name!r}; there are: {', '.join(known)}")
    module, _ = package.load_from_name(name, device=str(device))
    return from_cn_clip(module.float(), package.tokenize, uri)


def from_cn_clip(module: nn.Module, tokenize: Callable[..., Tensor], name: str) -> Model:
    """Wrap a model of Chinese-CLIP with its function ``tokenize``."""
    visual: Any = module.visual
    return ClipModel(
        module,
        lambda texts, context: tokenize(texts, context_length=context or _CN_CLIP_CONTEXT),
        name,
        int(visual.input_resolution),
    )
