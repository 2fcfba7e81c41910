"""Models of Chinese-CLIP, a package that is imported when such a model is loaded."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from wukong.errors import ConfigError
from wukong.evaluate.foreign import LOADING, UNCUT, ForeignModel, Kind, imported, longer, reason, scale_of
from wukong.evaluate.model import Model

CONTEXT = 52
"""Most tokens of a text in the training of Chinese-CLIP."""
_TEXTS = {"ViT-H-14": "RoBERTa-wwm-ext-large-chinese", "RN50": "RBT3-chinese"}


def _cn_clip(name: str, uri: str, device: torch.device) -> Model:
    package: Any = imported("cn_clip.clip", "pip install cn_clip")
    architecture, _, weights = name.partition("/")
    if architecture not in (known := package.available_models()):
        raise ConfigError(f"cn_clip has no model {architecture!r}; there are: {', '.join(known)}")
    # A file's architecture is not known to cn_clip. It wants a resolution for its transform, which is not used here.
    given = {
        "vision_model_name": architecture,
        "text_model_name": _TEXTS.get(architecture, "RoBERTa-wwm-ext-base-chinese"),
        "input_resolution": 224,
    }
    try:
        with redirect_stdout(sys.stderr):  # it prints its settings
            module, _ = package.load_from_name(weights or architecture, str(device), **(given if weights else {}))
    except LOADING as error:
        raise ConfigError(f"cn_clip does not load {name!r} ({reason(error)})") from error
    return from_cn_clip(module.float(), package.tokenize, uri, architecture)


def from_cn_clip(module: nn.Module, tokenize: Callable[..., Tensor], name: str, architecture: str) -> Model:
    """Wrap a model of Chinese-CLIP with its function ``tokenize``."""
    visual: Any = module.visual
    return ForeignModel(
        module,
        lambda texts, context: tokenize(texts, context_length=context or CONTEXT),
        name,
        f"cn_clip:{architecture}",
        scale_of(module),
        int(visual.input_resolution),
        count_cut=lambda texts, context: longer(tokenize(texts, context_length=UNCUT), context or CONTEXT),
    )


KIND = Kind("cn_clip", _cn_clip)
