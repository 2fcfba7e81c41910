"""Build image classifiers from the files in which timm and transformers save them; no code comes with weights.

Of timm every architecture is read, by its name in ``config.json``; of transformers ``ViTForImageClassification``, which
timm's ViT computes alike under other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from wukong.errors import ConfigError

_THEIRS = "ViTForImageClassification"
_NAMES = (
    (r"^vit\.embeddings\.cls_token$", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings$", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vit\.encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"blocks.\1.attn.\2."),
    (r"^vit\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^vit\.encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"^vit\.encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"^vit\.encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^vit\.encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"^vit\.layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
"""Weights of transformers' ViT, and what timm calls them; its queries, keys and values are one matrix."""

_ACTIVATIONS: Mapping[str, Any] = {
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
}


def build(config: Mapping[str, Any], weights: bytes, uri: str) -> nn.Module:
    """Build a classifier that gives a number for each class, before any softmax.

    Args:
        config: the content of ``config.json``.
        weights: the bytes of ``model.safetensors``.
        uri: what an error message calls the folder.

    Raises:
        ConfigError: it is another kind of model, or the weights are not its own.
    """
    try:
        state = safetensors.torch.load(weights)
        if config.get("architectures") == [_THEIRS]:
            module, state = _vit(config, len(state["classifier.bias"])), _renamed(state)
        elif timm.is_model(name := str(config.get("architecture"))):
            options = {"num_classes": config["num_classes"], **(config.get("model_args") or {})}
            module = timm.create_model(name, pretrained=False, **options)
        else:
            raise ConfigError(
                f"{uri}: its config.json names {config.get('architectures') or name}; a folder is of timm, with an "
                f"architecture that timm {timm.__version__} has, or of transformers' {_THEIRS}: export another model "
                "to ONNX, and name that file"
            )
        module.load_state_dict(state)
    except (safetensors.SafetensorError, LookupError, RuntimeError, TypeError, ValueError, AssertionError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(f"{uri}: its config.json and its weights do not fit together ({why})") from error
    built: nn.Module = module
    return built


def _vit(config: Mapping[str, Any], classes: int) -> nn.Module:
    """Make timm's ViT with the settings of one of transformers, whose defaults are those of ViT-B/16.

    Raises:
        LookupError: the activation is another than those of ``_ACTIVATIONS``.
    """
    width = config.get("hidden_size", 768)
    module: nn.Module = timm.models.VisionTransformer(
        img_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 16),
        num_classes=classes,
        embed_dim=width,
        depth=config.get("num_hidden_layers", 12),
        num_heads=config.get("num_attention_heads", 12),
        mlp_ratio=config.get("intermediate_size", 3072) / width,
        qkv_bias=config.get("qkv_bias", True),
        norm_layer=partial(nn.LayerNorm, eps=config.get("layer_norm_eps", 1e-12)),
        act_layer=_ACTIVATIONS[config.get("hidden_act", "gelu")],
    )
    return module


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of transformers' ViT under timm's names."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        key = name
        for theirs, ours in _NAMES:
            key = re.sub(theirs, ours, key)
        renamed[key] = value
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [renamed.pop(name.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        renamed[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return renamed
