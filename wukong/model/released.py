"""The models that the paper's authors released: their architectures, and their checkpoints.

They differ from this project's models. The text encoder is CLIP's: layer norms before attention and feed-forward,
QuickGELU, causal attention; the feature of a text is that of its last token, [SEP]. The released Wukong variants pool
the patches of an image into a few tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from wukong.data.tokenizer import VOCABULARY_SIZE
from wukong.errors import ConfigError, DataError
from wukong.model import weights
from wukong.model.pooling import AttentionMaps

CONTEXT = 32
"""Tokens that the released text encoders read, with [CLS] and [SEP]."""
_HEAD = 64
_NORM_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Sizes of a transformer; its heads are 64 numbers wide.

    Attributes:
        width: width of a token's vector.
        layers: number of layers.
    """

    width: int
    layers: int = 12


@dataclass(frozen=True, kw_only=True)
class ViT(Transformer):
    """CLIP's image encoder.

    Attributes:
        patch: length of a side of a patch, in pixels.
    """

    patch: int


@dataclass(frozen=True, kw_only=True)
class Swin:
    """A Swin Transformer with patches of 4 pixels and windows of 7 patches.

    Attributes:
        width: width of a token's vector in the first stage.
        layers: number of layers of each stage.
        heads: number of heads of each stage.
    """

    width: int = 192
    layers: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (6, 12, 24, 48)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The architecture of a released model.

    Attributes:
        image: the image encoder.
        text: the text encoder.
        width: d, the width of the common space.
        token_wise: whether the model has the token-wise similarity (FILIP), not the global one (CLIP).
        tokens: number of tokens to which the patches are pooled; None for all patches.
        image_size: length of a side of the images, in pixels.
    """

    image: ViT | Swin
    text: Transformer
    width: int = 256
    token_wise: bool = True
    tokens: int | None = None
    image_size: int = 224


_B, _L, _SWIN = ViT(width=768, layers=12, patch=32), ViT(width=1024, layers=24, patch=14), Swin()
_NARROW, _WIDE = Transformer(width=512), Transformer(width=768)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "wukong_vit_b": Architecture(image=_B, text=_NARROW, tokens=12),
        "wukong_vit_b_f": Architecture(image=_B, text=_NARROW),
        "wukong_vit_b_g": Architecture(image=_B, text=_NARROW, width=512, token_wise=False),
        "wukong_vit_l": Architecture(image=_L, text=_WIDE, tokens=24),
        "wukong_vit_l_f": Architecture(image=_L, text=_WIDE),
        "wukong_vit_l_g": Architecture(image=_L, text=_WIDE, width=768, token_wise=False),
        "wukong_swin": Architecture(image=_SWIN, text=_WIDE, tokens=12),
        "wukong_swin_f": Architecture(image=_SWIN, text=_WIDE),
        "wukong_swin_g": Architecture(image=_SWIN, text=_WIDE, width=768, token_wise=False),
    }
)
"""The released models, by the names of the authors' configuration files. ``_g`` has the global similarity (CLIP);
``_f`` has the token-wise one (FILIP), and the others have it on pooled patches."""


def load(name: str, uri: str) -> "ReleasedModel":
    """Load a checkpoint of a released model, in evaluation mode.

    Args:
        name: one of ``ARCHITECTURES``.
        uri: URI of the checkpoint: as it was released, or its weights by the same names as a safetensors file.

    Raises:
        ConfigError: there is no model of this name.
        StorageError: there is nothing at the URI.
        DataError: the file is damaged, holds more than tensors and plain values, or is of another model. The message
            names the weights that are missing, unknown, of another size or not finite.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f"the authors released no model {name!r}; they released: {', '.join(ARCHITECTURES)}")
    model = ReleasedModel(ARCHITECTURES[name])
    model.load_released(weights.read_checkpoint(uri), f"{uri} ({name})")
    return model.eval().requires_grad_(requires_grad=False)


class ReleasedModel(nn.Module):
    """A dual encoder with the architecture of a released model, as the authors' evaluation code computes it.

    Args:
        architecture: the architecture.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        image, size, width = architecture.image, architecture.image_size, architecture.width
        tower = _SwinTower(image, size, width) if isinstance(image, Swin) else _ViTTower(image, size, width)
        self.visual: _SwinTower | _ViTTower = tower
        self.token_reduction = AttentionMaps(width, architecture.tokens) if architecture.tokens else None
        self.transformer = _TextTower(architecture.text, width)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode images.

        Args:
            pixels: float32 [images, 3, size, size], RGB, normalised with CLIP's mean and deviation. The authors'
                code does so for Swin too.

        Returns:
            [images, d], or [images, tokens, d] for a token-wise model, not normalised. There is no token for [CLS].
        """
        if not self.architecture.token_wise:
            pooled: Tensor = self.visual(pixels, pooled=True)
            return pooled
        tokens: Tensor = self.visual(pixels, pooled=False)
        return tokens if self.token_reduction is None else self.token_reduction(tokens)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode texts.

        Args:
            ids: token ids, int64 [texts, tokens], padded with 0; at most 32 tokens.

        Returns:
            [texts, d] at [SEP], or [texts, tokens, d] for a token-wise model, not normalised.
        """
        tokens: Tensor = self.transformer(ids)
        if self.architecture.token_wise:
            return tokens
        return tokens[torch.arange(len(ids), device=ids.device), (ids != 0).sum(1) - 1]

    def load_released(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load weights by their names in the released checkpoints.

        Left out are the temperature of the loss, which the authors' evaluation does not use, and Swin's indices and
        masks, which are no weights.

        Args:
            state: the weights.
            source: their origin, for the message.

        Raises:
            DataError: a weight is missing, unknown, of another size or not finite.
        """
        own = self.released_weights()
        given = {
            name.replace("token_learner", "token_reduction"): value.float()
            for name, value in state.items()
            if name != "loss.logit_scale" and not name.endswith(("relative_position_index", "attn_mask"))
        }
        if problems := weights.misfits(own, given):
            raise DataError(f"{source} is not that model: {problems}; the models are {', '.join(ARCHITECTURES)}")
        self.load_state_dict({name: given[_released_name(name)] for name in self.state_dict()}, assign=True)

    def released_weights(self) -> dict[str, Tensor]:
        """Return the weights by their names in the released checkpoints."""
        return {_released_name(name): value for name, value in self.state_dict().items()}


def quick_gelu(values: Tensor) -> Tensor:
    """Compute CLIP's approximation of GELU: x * sigmoid(1.702 x)."""
    return values * torch.sigmoid(1.702 * values)


def _layers(sizes: Transformer) -> nn.ModuleList:
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            sizes.width,
            sizes.width // _HEAD,
            4 * sizes.width,
            dropout=0.0,
            activation=quick_gelu,
            layer_norm_eps=_NORM_EPSILON,
            batch_first=True,
            norm_first=True,
        )
        for _ in range(sizes.layers)
    )


class _TextTower(nn.Module):
    """CLIP's text encoder; ``forward`` gives [texts, tokens, d]."""

    def __init__(self, sizes: Transformer, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY_SIZE, sizes.width)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT, sizes.width))
        self.resblocks = _layers(sizes)
        self.ln_final = nn.LayerNorm(sizes.width, eps=_NORM_EPSILON)
        self.text_projection = nn.Parameter(torch.empty(sizes.width, width))

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        hidden = self.token_embedding(ids) + self.positional_embedding[:length]
        # Padding stands at the end, where no token of the text sees it.
        causal = nn.Transformer.generate_square_subsequent_mask(length, device=ids.device, dtype=hidden.dtype)
        for layer in self.resblocks:
            hidden = layer(hidden, src_mask=causal, is_causal=True)
        features: Tensor = self.ln_final(hidden) @ self.text_projection
        return features


class _ViTTower(nn.Module):
    """CLIP's image encoder; ``forward`` gives [images, d] at [CLS], or [images, patches, d]."""

    def __init__(self, sizes: ViT, image_size: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, sizes.width, sizes.patch, sizes.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(sizes.width))
        self.positional_embedding = nn.Parameter(torch.empty((image_size // sizes.patch) ** 2 + 1, sizes.width))
        self.ln_pre = nn.LayerNorm(sizes.width, eps=_NORM_EPSILON)
        self.transformer = nn.ModuleDict({"resblocks": _layers(sizes)})
        self.ln_post = nn.LayerNorm(sizes.width, eps=_NORM_EPSILON)
        self.proj = nn.Parameter(torch.empty(sizes.width, width))

    def forward(self, pixels: Tensor, pooled: bool) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        hidden = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], 1)
        hidden = self.ln_pre(hidden + self.positional_embedding)
        blocks: Any = self.transformer["resblocks"]
        for layer in blocks:
            hidden = layer(hidden)
        taken = hidden[:, 0] if pooled else hidden[:, 1:]
        features: Tensor = self.ln_post(taken) @ self.proj
        return features


class _SwinTower(SwinTransformer):  # type: ignore[misc]
    """A Swin Transformer; ``forward`` gives [images, d] of the mean patch, or [images, patches, d]."""

    def __init__(self, sizes: Swin, image_size: int, width: int) -> None:
        norm = partial(nn.LayerNorm, eps=_NORM_EPSILON)
        super().__init__(
            image_size, num_classes=width, embed_dim=sizes.width, depths=sizes.layers, num_heads=sizes.heads,
            norm_layer=norm, drop_path_rate=0.0,
        )  # fmt: skip

    def forward(self, pixels: Tensor, pooled: bool) -> Tensor:
        tokens: Tensor = self.forward_features(pixels).flatten(1, 2)
        features: Tensor = self.head.fc(tokens.mean(1) if pooled else tokens)
        return features


_BLOCK_NAMES = {
    "self_attn.": "attn.",
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "linear1.": "mlp.c_fc.",
    "linear2.": "mlp.c_proj.",
}


def _released_name(name: str) -> str:
    """Return the name that one of our weights has in the released checkpoints."""
    if name.startswith("token_reduction."):
        return f"visual.{name}"
    if "resblocks." in name:
        for ours, theirs in _BLOCK_NAMES.items():
            name = name.replace(f".{ours}", f".{theirs}")
        return name
    if ".downsample." in name:  # timm merges patches before a stage, Swin's first code after the stage before
        visual, layers, stage, rest = name.split(".", 3)
        return f"{visual}.{layers}.{int(stage) - 1}.{rest}"
    return name.replace("visual.head.fc.", "visual.head.")
