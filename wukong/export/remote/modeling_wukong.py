"""A dual encoder of Wukong for ``AutoModel`` of transformers; it needs torch, timm and transformers.

The image tower is one of timm's, the text tower is BERT. A model gives one unit vector for each picture and text, or,
if its similarity is token-wise, one for each patch and token (FILIP, https://arxiv.org/abs/2111.07783).
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput


class WukongConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """The parts of a model.

    Args:
        tower: timm's name of the image tower.
        tower_options: arguments of ``timm.create_model`` besides the name.
        block: the tower's block or stage whose tokens are the features; None for the tower's own features.
        text_config: keys of the text tower's ``BertConfig``.
        text_pooling: what stands for a text: ``cls`` or ``mean``.
        projection_dim: width of a vector.
        feature_width: width of the image tower's features, which are projected; None if both towers have the width of a
            vector themselves.
        similarity: ``global`` for one vector, ``token`` for all.
        match_text_cls: whether a patch may take a text's [CLS] for its match.
        pooled_tokens: number of vectors to which a picture's patches are pooled; None for all patches.
        pooling: how: means of square ``areas``, or trained maps of ``attention``.
        logit_scale_init_value: logarithm of the factor on similarities.
        has_bias: whether a bias is added to logits, as in models of the sigmoid loss.
    """

    model_type = "wukong"

    def __init__(
        self,
        tower: str = "vit_base_patch32_clip_quickgelu_224",
        tower_options: dict[str, Any] | None = None,
        block: int | None = None,
        text_config: dict[str, Any] | BertConfig | None = None,
        text_pooling: str = "cls",
        projection_dim: int = 256,
        feature_width: int | None = None,
        similarity: str = "global",
        match_text_cls: bool = True,
        pooled_tokens: int | None = None,
        pooling: str = "areas",
        logit_scale_init_value: float = 2.6592,
        has_bias: bool = False,
        **kwargs: Any,
    ) -> None:
        self.tower = tower
        self.tower_options = tower_options or {}
        self.block = block
        self.text_config = text_config if isinstance(text_config, BertConfig) else BertConfig(**(text_config or {}))
        self.text_pooling = text_pooling
        self.projection_dim = projection_dim
        self.feature_width = feature_width
        self.similarity = similarity
        self.match_text_cls = match_text_cls
        self.pooled_tokens = pooled_tokens
        self.pooling = pooling
        self.logit_scale_init_value = logit_scale_init_value
        self.has_bias = has_bias
        super().__init__(**kwargs)


@dataclass
class WukongFeatures(ModelOutput):
    """Unit vectors of pictures or texts.

    Attributes:
        pooler_output: [n, d], of a model with one vector.
        token_embeddings: [n, tokens, d], of a token-wise model: of a picture's patches by rows, or of a text's tokens.
        counted: bool [n, tokens], of a token-wise model's texts: the tokens that look for a match, which are all but
            padding and [CLS].
    """

    pooler_output: Tensor | None = None
    token_embeddings: Tensor | None = None
    counted: Tensor | None = None


@dataclass
class WukongOutput(ModelOutput):
    """Similarities, and the vectors they are of.

    Attributes:
        loss: of the softmax over the batch, or of the sigmoid if the model has a bias; None unless it is asked for.
        logits_per_image: [images, texts], the scaled similarities of pictures to texts.
        logits_per_text: [texts, images], those of texts to pictures. In a token-wise model it is not the other one
            transposed: the mean is over the text's tokens.
        text_embeds: unit vectors of the texts, [texts, (tokens,) d].
        image_embeds: unit vectors of the pictures, [images, (tokens,) d].
        text_counted: see ``WukongFeatures.counted``.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_counted: Tensor | None = None


class WukongModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A picture's and a text's encoder with projections to a common space."""

    config_class = WukongConfig
    base_model_prefix = "wukong"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: WukongConfig) -> None:
        super().__init__(config)
        self.vision_model = timm.create_model(config.tower, num_classes=0, **config.tower_options)
        if config.block is not None:
            self.vision_model.prune_intermediate_layers([config.block], prune_norm=True, prune_head=True)
        # transformers fills an empty model from the file, so what timm would compute has to be there too.
        for name, value in list(self.vision_model.named_buffers()):
            parent, _, own = name.rpartition(".")
            self.vision_model.get_submodule(parent).register_buffer(own, value)
        self.text_model = BertModel(config.text_config, add_pooling_layer=False)
        self.visual_projection: nn.Module = nn.Identity()
        self.text_projection: nn.Module = nn.Identity()
        if config.feature_width is not None:
            self.visual_projection = nn.Linear(config.feature_width, config.projection_dim)
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.token_pooling: _AttentionMaps | None = None
        if config.pooled_tokens is not None and config.pooling == "attention":
            self.token_pooling = _AttentionMaps(config.projection_dim, config.pooled_tokens)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if config.has_bias else None
        self.post_init()  # type: ignore[no-untyped-call]

    def get_image_features(self, pixel_values: Tensor, attention_mask: Tensor | None = None) -> WukongFeatures:
        """Encode pictures.

        Args:
            pixel_values: [images, 3, size, size] as the image processor makes them.
            attention_mask: not read: an image processor with masks gives it, and every patch is real.
        """
        return self._named(self._embed_image(pixel_values))

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> WukongFeatures:
        """Encode texts.

        Args:
            input_ids: token ids, [texts, tokens].
            attention_mask: the real tokens; without it, all tokens but padding are real.
            token_type_ids: not read: the tokenizer gives them, and this text tower has one type.
        """
        return self._named(*self._embed_text(input_ids, attention_mask))

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_loss: bool = False,
        return_dict: bool = True,
    ) -> WukongOutput | tuple[Any, ...]:
        """Compare pictures with texts.

        Args:
            input_ids: see ``get_text_features``.
            pixel_values: see ``get_image_features``.
            attention_mask: see ``get_text_features``.
            token_type_ids: see ``get_text_features``.
            return_loss: whether to compute the loss, of as many pictures as texts.
            return_dict: whether to return the output by names, or a tuple of what is not None.
        """
        image, (text, counted) = self._embed_image(pixel_values), self._embed_text(input_ids, attention_mask)
        to_texts, to_images = self._similarity(image, text, counted)
        scale, bias = self.logit_scale.exp(), 0.0 if self.logit_bias is None else self.logit_bias
        per_image, per_text = to_texts * scale + bias, to_images * scale + bias
        output = WukongOutput(
            loss=(self._loss(per_image) + self._loss(per_text)) / 2 if return_loss else None,
            logits_per_image=per_image,
            logits_per_text=per_text,
            text_embeds=text,
            image_embeds=image,
            text_counted=counted if self.config.similarity == "token" else None,
        )
        return output if return_dict else output.to_tuple()

    def _named(self, vectors: Tensor, counted: Tensor | None = None) -> WukongFeatures:
        if self.config.similarity == "token":
            return WukongFeatures(token_embeddings=vectors, counted=counted)
        return WukongFeatures(pooler_output=vectors)

    def _embed_image(self, pixels: Tensor) -> Tensor:
        """Return unit vectors of pictures, [images, (tokens,) d]."""
        pooled, patches = self._of_tower(pixels)
        if self.config.similarity == "global":
            vectors = self.visual_projection(pooled)
        elif self.token_pooling is not None:
            vectors = self.token_pooling(self.visual_projection(patches))
        elif self.config.pooled_tokens is not None:
            vectors = self.visual_projection(_areas(patches, self.config.pooled_tokens))
        else:
            vectors = self.visual_projection(patches)
        return F.normalize(vectors, dim=-1)

    def _embed_text(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return unit vectors of texts, [texts, (tokens,) d], and the tokens that look for a match, [texts, tokens]."""
        real = ids != self.config.text_config.pad_token_id if mask is None else mask.bool()
        taken = self.text_model(ids, attention_mask=real.long()).last_hidden_state
        if self.config.similarity == "global":
            mean = taken.masked_fill(~real[:, :, None], 0.0).sum(1) / real.sum(1, keepdim=True)
            taken = mean if self.config.text_pooling == "mean" else taken[:, 0]
        counted = real.clone()
        counted[:, 0] = False
        return F.normalize(self.text_projection(taken), dim=-1), counted

    def _similarity(self, image: Tensor, text: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the similarities of pictures to texts, [images, texts], and of texts to pictures, [texts, images]."""
        if self.config.similarity == "global":
            return image @ text.T, text @ image.T
        each = torch.einsum("ipd,tqd->itpq", image, text)
        matched = counted.clone()
        matched[:, 0] = self.config.match_text_cls
        to_texts = each.masked_fill(~matched[None, :, None, :], -torch.inf).amax(3).mean(2)
        best = each.amax(2).masked_fill(~counted, 0.0)
        return to_texts, (best.sum(2) / counted.sum(1)).T

    def _loss(self, logits: Tensor) -> Tensor:
        if self.logit_bias is None:
            return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        signs = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -F.logsigmoid(signs * logits).sum(1).mean()

    def _of_tower(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tower's pooled feature, [images, width], and its tokens, [images, patches, width]."""
        tower = self.vision_model
        if self.config.block is not None:
            (grid,) = tower.forward_intermediates(
                pixels, indices=[self.config.block], output_fmt="NCHW", intermediates_only=True
            )
            tokens = grid.flatten(2).transpose(1, 2)
            return tokens.mean(1), tokens
        features = tower.forward_features(pixels)
        pooled = tower.forward_head(features, pre_logits=True)
        if features.ndim == 3:
            return pooled, features[:, tower.num_prefix_tokens :]
        if getattr(tower, "output_fmt", "NCHW") == "NHWC":
            return pooled, features.flatten(1, 2)
        return pooled, features.flatten(2).transpose(1, 2)


class _AttentionMaps(nn.Module):
    """Pools tokens [images, patches, width] to fewer by maps that the tokens themselves give."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.attention_maps = nn.Sequential(
            nn.Conv2d(width, width, 1, groups=8, bias=False), nn.Conv2d(width, count, 1, bias=False)
        )
        self.feat_conv = nn.Conv2d(width, width, 1, groups=8, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        maps = self.attention_maps(self.norm(tokens).transpose(1, 2)[..., None]).squeeze(3).softmax(2)
        values = self.feat_conv(tokens.transpose(1, 2)[..., None]).squeeze(3).transpose(1, 2)
        pooled: Tensor = maps @ values
        return pooled


def _areas(tokens: Tensor, count: int) -> Tensor:
    """Pool the patches of a square, [images, patches, width] by rows, to the means of ``count`` square areas."""
    grid = tokens.transpose(1, 2).unflatten(2, (isqrt(tokens.shape[1]), -1))
    return F.adaptive_avg_pool2d(grid, isqrt(count)).flatten(2).transpose(1, 2)
