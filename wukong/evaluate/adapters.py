"""Models of others behind the interface ``Model``: open_clip's, Chinese-CLIP's, and those that the authors released.

The packages of the first two are optional and imported when such a model is loaded. ``load`` takes what
``wukong evaluate --model`` takes.
"""

import hashlib
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from wukong.data import images
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError
from wukong.evaluate import best_words
from wukong.evaluate.model import (
    Model,
    OwnModel,
    concatenate,
    refuse_not_finite,
    square,
    token_ids,
    tokens_cut,
)
from wukong.evaluate.protocol import Protocol
from wukong.model import released, saved_model
from wukong.model.dual import Texts
from wukong.model.similarity import Scores, global_similarity, token_similarity
from wukong.store import storage

_TEXTS, _SHOWN = 256, 300
_CN_CLIP_CONTEXT = 52
_UNCUT = 2048
"""Tokens of a text that is not cut, more than any caption has."""
_CN_CLIP_TEXTS = {"ViT-H-14": "RoBERTa-wwm-ext-large-chinese", "RN50": "RBT3-chinese"}

_LOADING = (
    *(AssertionError, AttributeError, ImportError, LookupError, OSError),
    *(RuntimeError, TypeError, UnpicklingError, ValueError),
)
"""What the packages raise for weights that cannot be downloaded, are damaged or of another model, or need a package."""

Mean = tuple[float, float, float]
CLIP_MEAN: Mean = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Mean = (0.26862954, 0.26130258, 0.27577711)


def load(uri: str, device: str = "cpu") -> Model:
    """Load a model by what stands before the colon of its URI.

    ``open_clip:NAME/WEIGHTS`` or ``open_clip:hf-hub:OWNER/NAME``; ``cn_clip:NAME`` or ``cn_clip:NAME/WEIGHTS``;
    ``wukong_release:NAME/WEIGHTS`` for a model that the authors released. Anything else is a model of this project: a
    folder, a URI, or ``models:/NAME@ALIAS``.

    Args:
        uri: the URI.
        device: where it computes.

    Raises:
        ConfigError: the model's package is not installed, or has no such model.
        DataError: the model is damaged, or is another one than its name says.
        StorageError: it is not there.
    """
    kind, _, name = uri.partition(":")
    if kind == "open_clip":
        return _open_clip(name, uri, saved_model.device_of(device))
    if kind == "cn_clip":
        return _cn_clip(name, uri, saved_model.device_of(device))
    if kind == "wukong_release":
        return _released(name, uri, saved_model.device_of(device))
    return OwnModel(saved_model.load(uri, device), uri)


class ForeignModel:
    """A model of others, with images normalised by a mean and a deviation.

    Args:
        module: has ``encode_image`` and ``encode_text``.
        tokenize: makes token ids [texts, tokens] of texts and the protocol's context; 0 is padding.
        name: how reports call it.
        architecture: what computes with the weights, and with which vocabulary: a part of the digest.
        scale: the factor on similarities before a softmax.
        size: length of a side of the images that it reads.
        mean: the mean of each channel, for normalisation.
        std: each channel's deviation.
        token_wise: whether it has a vector for each token. The token-wise similarity is then the authors': a patch may
            match a text's first token, [CLS].
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
        mean: Mean = CLIP_MEAN,
        std: Mean = CLIP_STD,
        token_wise: bool = False,
        count_cut: Callable[[list[str], int | None], int] | None = None,
    ) -> None:
        module.eval()
        self._module: Any = module
        self._tokenize = tokenize
        self._count_cut = count_cut
        self._size = size
        self._mean, self._std = (torch.tensor(each).view(1, 3, 1, 1) for each in (mean, std))
        self.name = name
        self.scale = scale
        self.token_wise = token_wise
        self.digest = digest_of(module, architecture)

    def encode_images(self, pictures: Sequence[Image.Image], protocol: Protocol) -> Tensor:
        """Encode RGB images; see ``Model``.

        Raises:
            DataError: a vector is not finite.
        """
        pixels = images.to_tensor([square(picture, self._size, protocol) for picture in pictures])
        with torch.inference_mode():
            normal = (pixels.float() / 255 - self._mean) / self._std
            vectors = self._module.encode_image(normal.to(self._device)).float().cpu()
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
            counted = ids != 0
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
            return token_similarity(image, *text, with_first=True)
        return global_similarity(image, text.vectors)

    def image_to_text(self, image: Tensor, text: Texts) -> Tensor:
        """Compute s^I alone; see ``Model``."""
        if self.token_wise:
            return best_words.exact(image, text, with_first=True)
        return self.similarity(image, text).image_to_text

    def rough_image_to_text(self, image: Tensor, text: Texts) -> Tensor | None:
        """Compute s^I roughly; see ``Model``."""
        if not self.token_wise or not best_words.rough_is_quicker():
            return None
        return best_words.rough(image, text, with_first=True)

    @property
    def _device(self) -> torch.device:
        return next(self._module.parameters()).device  # type: ignore[no-any-return]


def digest_of(module: nn.Module, architecture: str) -> str:
    """SHA-256 over an architecture's name, a module's layers, and the names and values of its state.

    The same weights mean another model in another architecture, for instance with another activation.
    """
    digest = hashlib.sha256(f"{architecture}\n{module}".encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _package(name: str, how: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} is not installed ({error}): {how}") from error


def _reason(error: Exception) -> str:
    """Return the beginning of an exception's message in one line."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", _SHOWN, placeholder=" …")


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
    except _LOADING as error:
        raise ConfigError(f"open_clip does not load {name!r} ({_reason(error)})") from error
    return from_open_clip(module, tokenizer, uri, architecture)


def from_open_clip(module: nn.Module, tokenizer: Callable[..., Tensor], name: str, architecture: str) -> Model:
    """Wrap a model of open_clip with its tokenizer."""
    visual: Any = module.visual
    size = visual.image_size
    mean, std = (getattr(visual, each, None) for each in ("image_mean", "image_std"))

    longest = getattr(tokenizer, "context_length", None)

    def tokenize(texts: list[str], context: int | None) -> Tensor:
        ids = tokenizer(texts, context_length=min(context, longest) if context and longest else longest)
        # A model reads as many positions as it was built for; what was cut is padding.
        padding = getattr(tokenizer, "pad_token_id", 0) or 0
        return ids if longest is None else F.pad(ids, (0, longest - ids.shape[1]), value=padding)

    return ForeignModel(
        module,
        tokenize,
        name,
        f"open_clip:{architecture}",
        _scale_of(module),
        size[0] if isinstance(size, tuple | list) else size,
        tuple(mean) if mean is not None else CLIP_MEAN,
        tuple(std) if std is not None else CLIP_STD,
        count_cut=lambda texts, context: _longer(
            tokenizer(texts, context_length=_UNCUT), min(each or _UNCUT for each in (context, longest))
        ),
    )


def _longer(uncut: Tensor, tokens: int) -> int:
    """Count the texts that have more tokens; the last place of their ids, [texts, places], is padding."""
    return int((uncut[:, tokens:] != uncut[:, -1:]).any(1).sum())


def _cn_clip(name: str, uri: str, device: torch.device) -> Model:
    package: Any = _package("cn_clip.clip", "pip install cn_clip")
    architecture, _, weights = name.partition("/")
    if architecture not in (known := package.available_models()):
        raise ConfigError(f"cn_clip has no model {architecture!r}; there are: {', '.join(known)}")
    # A file's architecture is not known to cn_clip. It wants a resolution for its transform, which is not used here.
    given = {
        "vision_model_name": architecture,
        "text_model_name": _CN_CLIP_TEXTS.get(architecture, "RoBERTa-wwm-ext-base-chinese"),
        "input_resolution": 224,
    }
    try:
        with redirect_stdout(sys.stderr):  # it prints its settings
            module, _ = package.load_from_name(weights or architecture, str(device), **(given if weights else {}))
    except _LOADING as error:
        raise ConfigError(f"cn_clip does not load {name!r} ({_reason(error)})") from error
    return from_cn_clip(module.float(), package.tokenize, uri, architecture)


def from_cn_clip(module: nn.Module, tokenize: Callable[..., Tensor], name: str, architecture: str) -> Model:
    """Wrap a model of Chinese-CLIP with its function ``tokenize``."""
    visual: Any = module.visual
    return ForeignModel(
        module,
        lambda texts, context: tokenize(texts, context_length=context or _CN_CLIP_CONTEXT),
        name,
        f"cn_clip:{architecture}",
        _scale_of(module),
        int(visual.input_resolution),
        count_cut=lambda texts, context: _longer(tokenize(texts, context_length=_UNCUT), context or _CN_CLIP_CONTEXT),
    )


def _scale_of(module: nn.Module) -> float:
    scale: Any = module.logit_scale
    return float(scale.detach().exp())


def _released(name: str, uri: str, device: torch.device) -> Model:
    architecture, _, checkpoint = name.partition("/")
    if not checkpoint:
        raise ConfigError(
            f"{uri!r} names no checkpoint: write wukong_release:NAME/FILE, for instance "
            f"wukong_release:wukong_vit_b//data/wukong_vit_b.ckpt; NAME is one of {', '.join(released.ARCHITECTURES)}"
        )
    weights = checkpoint if "://" in checkpoint else storage.from_path(Path(checkpoint))
    return from_released(released.load(architecture, weights).to(device), uri, architecture)


def from_released(module: released.ReleasedModel, name: str, architecture: str) -> Model:
    """Wrap a model that the authors released, with their vocabulary, which is that of the Chinese BERT."""
    tokenizer = Tokenizer(packaged_vocabulary(), released.CONTEXT)
    return ForeignModel(
        module,
        lambda texts, context: tokenizer.collate(token_ids(tokenizer, texts, context)),
        name,
        f"wukong_release:{architecture}",
        1.0,  # the authors' evaluation scales no similarity
        module.architecture.image_size,
        token_wise=module.architecture.token_wise,
        count_cut=lambda texts, context: tokens_cut(tokenizer, texts, context),
    )
