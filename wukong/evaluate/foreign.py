"""What the adapters of models of others share: such a model behind the interface ``Model``, and its kind."""

import hashlib
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pickle import UnpicklingError
from types import ModuleType
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wukong.data import images
from wukong.errors import ConfigError
from wukong.evaluate import best_words
from wukong.evaluate.model import Model, concatenate, refuse_not_finite, square
from wukong.evaluate.protocol import PROTOCOLS, Protocol
from wukong.model.dual import Texts
from wukong.model.similarity import Scores, global_similarity, token_similarity

_TEXTS, _SHOWN = 256, 300
UNCUT = 2048
"""Tokens of a text that is not cut, more than any caption has."""
_TRIED = PROTOCOLS["clip-benchmark"]
"""As many tokens of a text as the model reads."""

LOADING = (
    *(AssertionError, AttributeError, ImportError, LookupError, OSError),
    *(RuntimeError, TypeError, UnpicklingError, ValueError),
)
"""What the packages raise for weights that cannot be downloaded, are damaged or of another model, or need a package."""

View: TypeAlias = Literal["whole", "crop"]
Mean: TypeAlias = tuple[float, float, float]
CLIP_MEAN: Mean = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Mean = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Kind:
    """A kind of models of others.

    Attributes:
        name: what stands before the first colon of their URIs.
        load: loads one, by what stands behind that colon, the whole URI, and where it computes. It raises ConfigError
            if the model's package is not installed or has no such model.
    """

    name: str
    load: Callable[[str, str, torch.device], Model]


class ForeignModel:
    """A model of others, with images normalised by a mean and a deviation.

    Args:
        module: has ``encode_image`` and ``encode_text``.
        tokenize: makes token ids [texts, tokens] of texts and the protocol's context.
        name: how reports call it.
        architecture: what computes with the weights, and with which vocabulary: a part of the digest.
        scale: the factor on similarities before a softmax.
        size: length of a side of the images that it reads.
        mean: the mean of each channel, for normalisation; None for a module that takes pixels as they are, uint8.
        std: each channel's deviation.
        token_wise: whether it has a vector for each token.
        match_text_cls: whether a patch may match a text's first token, [CLS], as with the authors.
        pad: the id of padding.
        view: what it sees of a picture where the protocol leaves that to the model.
        count_cut: counts the texts that ``tokenize`` cuts; None if it cannot be told.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenize: Callable[[list[str], int | None], Tensor],
        name: str,
        architecture: str,
        scale: float,
        size: int,
        mean: Mean | None = CLIP_MEAN,
        std: Mean = CLIP_STD,
        token_wise: bool = False,
        match_text_cls: bool = True,
        pad: int = 0,
        view: View = "crop",
        count_cut: Callable[[list[str], int | None], int] | None = None,
    ) -> None:
        module.eval()
        self._module: Any = module
        self._tokenize = tokenize
        self._count_cut = count_cut
        self._size = size
        self._mean = None if mean is None else torch.tensor(mean).view(1, 3, 1, 1)
        self._std = torch.tensor(std).view(1, 3, 1, 1)
        self._match_text_cls, self._pad, self._view = match_text_cls, pad, view
        self.name = name
        self.scale = scale
        self.token_wise = token_wise
        self.digest = digest_of(module, architecture)

    def encode_images(self, pictures: Sequence[Image.Image], protocol: Protocol) -> Tensor:
        """Encode RGB images; see ``Model``.

        Raises:
            DataError: a vector is not finite.
        """
        pixels = images.to_tensor([square(picture, self._size, protocol, self._view) for picture in pictures])
        with torch.inference_mode():
            seen = pixels if self._mean is None else (pixels.float() / 255 - self._mean) / self._std
            vectors = self._module.encode_image(seen.to(self._device)).float().cpu()
        refuse_not_finite(vectors, "image")
        return F.normalize(vectors, dim=-1)

    def encode_texts(self, texts: Sequence[str], protocol: Protocol) -> Texts:
        """Encode texts; see ``Model``.

        Raises:
            DataError: a vector is not finite, or the tokenizer knows few of the words.
        """
        parts = []
        for ids in self._tokenize([protocol.written(text) for text in texts], protocol.context).split(_TEXTS):
            with torch.inference_mode():
                vectors = self._module.encode_text(ids.to(self._device)).float().cpu()
            refuse_not_finite(vectors, "text")
            counted = ids != self._pad
            if self.token_wise:
                counted[:, 0] = False
            parts.append(Texts(F.normalize(vectors, dim=-1), counted))
        return concatenate(parts)

    def count_cut(self, texts: Sequence[str], protocol: Protocol) -> int | None:
        """Count the texts that ``encode_texts`` cuts; None where the tokenizer does not tell."""
        if self._count_cut is None:
            return None
        return self._count_cut([protocol.written(text) for text in texts], protocol.context)

    def similarity(self, image: Tensor, text: Texts) -> Scores:
        """Compute the similarities in both directions; see ``Model``."""
        if self.token_wise:
            return token_similarity(image, *text, with_first=self._match_text_cls)
        return global_similarity(image, text.vectors)

    def image_to_text(self, image: Tensor, text: Texts) -> Tensor:
        """Compute s^I alone; see ``Model``."""
        if self.token_wise:
            return best_words.exact(image, text, with_first=self._match_text_cls)
        return self.similarity(image, text).image_to_text

    def rough_image_to_text(self, image: Tensor, text: Texts) -> Tensor | None:
        """Compute s^I roughly; see ``Model``."""
        if not self.token_wise or not best_words.rough_is_quicker():
            return None
        return best_words.rough(image, text, with_first=self._match_text_cls)

    @property
    def _device(self) -> torch.device:
        """Where the module's weights are; those of a session of onnxruntime are its own affair."""
        return next((weight.device for weight in self._module.parameters()), torch.device("cpu"))


def longer(uncut: Tensor, tokens: int) -> int:
    """Count the texts that have more tokens; the last place of their ids, [texts, places], is padding."""
    return int((uncut[:, tokens:] != uncut[:, -1:]).any(1).sum())


def refuse_unusable(model: Model) -> None:
    """Encode a picture, a short and a long text, so that what a model cannot do is said before a set is measured.

    Raises:
        ConfigError: its code fails, or its vectors of pictures and texts have different widths.
        DataError: a vector is not finite.
    """
    try:
        picture = model.encode_images([Image.new("RGB", (64, 48), "white")], _TRIED)
        texts = model.encode_texts(["猫", "一只猫坐在窗前" * 100], _TRIED).vectors
    except LOADING as error:
        raise ConfigError(f"{model.name} is loaded and cannot encode ({reason(error)})") from error
    if picture.shape[-1] != texts.shape[-1]:
        raise ConfigError(
            f"{model.name} has vectors of {picture.shape[-1]} numbers for pictures and of {texts.shape[-1]} for texts, "
            "which cannot be compared: it is no dual encoder, or a projection is missing"
        )


def digest_of(module: nn.Module, architecture: str) -> str:
    """SHA-256 over an architecture's name, a module's layers, and the names and values of its state.

    The same weights mean another model in another architecture, for instance with another activation.
    """
    digest = hashlib.sha256(f"{architecture}\n{module}".encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def imported(name: str, how: str) -> ModuleType:
    """Import a package that is optional; ``how`` says how to install it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is not installed ({error}): {how}") from error


def reason(error: Exception) -> str:
    """Return the beginning of an exception's message in one line."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", _SHOWN, placeholder=" …")


def scale_of(module: nn.Module) -> float:
    """Return the factor on similarities of a module that has its logarithm as ``logit_scale``."""
    scale: Any = module.logit_scale
    return float(scale.detach().exp())
