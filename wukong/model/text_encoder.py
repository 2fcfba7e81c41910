"""The text encoder of section 4.2: a BERT-like transformer. The first token, [CLS], represents the whole caption."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wukong.config.model import TextEncoder as Settings
from wukong.errors import ConfigError, DataError


class TextEncoder(nn.Module):
    """Transformer encoder over word pieces, with learned position embeddings.

    Padding costs almost nothing: all layers except attention process only the real tokens, packed without gaps.

    Args:
        vocabulary_size: rows of the token embedding.
        layers: number of transformer layers.
        heads: number of attention heads; must divide ``width``.
        width: width of the hidden states; the feed-forward layer is four times as wide.
        max_tokens: rows of the position embedding.
        dropout: dropout rate on embeddings, attention outputs and feed-forward outputs, as in BERT.
        padding: the token id of padding.
        norm_epsilon: epsilon of the layer norms.

    Raises:
        ConfigError: ``heads`` does not divide ``width``.

    Attributes:
        checkpoint_activations: whether the backward pass computes each layer a second time instead of storing its
            activations. This takes less memory and more time; the gradients are the same.
    """

    def __init__(
        self,
        vocabulary_size: int,
        layers: int = 12,
        heads: int = 12,
        width: int = 768,
        max_tokens: int = 32,
        dropout: float = 0.0,
        padding: int = 0,
        norm_epsilon: float = 1e-12,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"model.text: {heads} heads do not divide a width of {width}")
        self.width, self.heads = width, heads
        self.padding = padding
        self.tokens = nn.Embedding(vocabulary_size, width, padding_idx=padding)
        self.positions = nn.Embedding(max_tokens, width)
        self.norm = nn.LayerNorm(width, eps=norm_epsilon)
        self.dropout = nn.Dropout(dropout)
        self.checkpoint_activations = False
        self.layers = nn.ModuleList(_Layer(width, heads, dropout, norm_epsilon) for _ in range(layers))
        self.apply(self._initialise)

    @classmethod
    def of(cls, settings: Settings, vocabulary_size: int, padding: int = 0) -> "TextEncoder":
        """Create the encoder of an experiment's settings; for the errors see the class."""
        return cls(
            vocabulary_size,
            settings.layers,
            settings.heads,
            settings.width,
            settings.max_tokens,
            settings.dropout,
            padding,
            settings.norm_epsilon,
        )

    def _initialise(self, module: nn.Module) -> None:
        # BERT's initialisation: normal with 0.02, zero bias.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()

    def forward(self, ids: Tensor, first: bool = False, packed: int | None = None) -> Tensor:
        """Encode captions.

        Args:
            ids: token ids, int64 [captions, tokens]; the first of each row is [CLS].
            first: return only the hidden state of [CLS]; the last layer then skips the other tokens.
            packed: number of tokens to compute, the real ones and some of padding, for instance from ``packed_size``;
                None for the real ones alone: to count them, the processor waits for a GPU.

        Returns:
            Hidden states of the last layer, [captions, tokens, width], zero at padding; if ``first``,
            [captions, width].

        Raises:
            DataError: a row is longer than ``max_tokens``.
        """
        rows, length = ids.shape
        if length > self.positions.num_embeddings:
            raise DataError(
                f"captions of {length} tokens; this text encoder reads {self.positions.num_embeddings}: "
                "let its own tokenizer cut them"
            )
        real = ids != self.padding
        layout = _Layout(real, packed)
        places = torch.arange(length, device=ids.device).expand(rows, -1)
        hidden: Tensor = self.tokens(layout.pack(ids)) + self.positions(layout.pack(places))
        hidden = self.dropout(self.norm(hidden))
        for number, layer in enumerate(self.layers, 1):
            alone = first and number == len(self.layers)
            if self.checkpoint_activations and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, layout, alone, use_reentrant=False)
            else:
                hidden = layer(hidden, layout, alone)
        if first:
            return hidden
        return layout.pad(hidden).masked_fill(~real[:, :, None], 0.0)


def packed_size(real: int, places: int) -> int:
    """Return a number of tokens to compute that differs little from step to step: a multiple of a part of all places.

    Args:
        real: number of real tokens of a batch.
        places: number of its tokens with padding.
    """
    step = max(1, places // _SIZES)
    return min(-(-real // step) * step, places)


_SIZES = 32
"""Numbers of tokens to which those of a batch are rounded up."""


class _Layout:
    """The positions of the tokens of a padded batch that are computed: the real ones, and some of padding if asked.

    In an exported graph, shapes may depend only on other shapes, not on values. So during export nothing is packed and
    padding is processed too.
    """

    def __init__(self, real: Tensor, packed: int | None = None) -> None:
        self.rows, self.length = real.shape
        self.keys: Tensor | None = real[:, None, None, :]
        self.where: Tensor | None
        if packed is not None and not torch.compiler.is_exporting():
            # The real tokens in their order, and then as many of padding as are missing.
            order = (~real).flatten().byte().argsort(stable=True)
            self.where = order[:packed] if packed < real.numel() else None
            return
        self.where = None if torch.compiler.is_exporting() else real.flatten().nonzero().squeeze(1)
        if self.where is not None and len(self.where) == real.numel():
            self.where = self.keys = None  # no padding, nothing to hide

    def pad(self, packed: Tensor) -> Tensor:
        """Unpack [real tokens, width] to [rows, length, width], with zeros at padding."""
        if self.where is not None:
            empty = packed.new_zeros(self.rows * self.length, packed.shape[-1])
            packed = empty.index_copy(0, self.where, packed)
        return packed.view(self.rows, self.length, -1)

    def pack(self, padded: Tensor) -> Tensor:
        """Pack [rows, length, width] or [rows, length] to the real tokens; the inverse of ``pad``."""
        flat = padded.flatten(0, 1)
        return flat if self.where is None else flat[self.where]


class _Layer(nn.Module):
    """One BERT layer: attention and feed-forward, each followed by a residual connection and layer norm."""

    def __init__(self, width: int, heads: int, dropout: float, norm_epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=norm_epsilon)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width, eps=norm_epsilon)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, layout: _Layout, first: bool = False) -> Tensor:
        width = hidden.shape[-1]
        qkv = layout.pad(self.qkv(hidden)).view(layout.rows, layout.length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if first:
            query, hidden = query[:, :, :1], layout.pad(hidden)[:, 0]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=layout.keys).transpose(1, 2).flatten(2)
        mixed = mixed[:, 0] if first else layout.pack(mixed)
        hidden = self.norm1(hidden + self.dropout(self.attended(mixed)))
        output: Tensor = self.norm2(hidden + self.dropout(self.contract(F.gelu(self.expand(hidden)))))
        return output
