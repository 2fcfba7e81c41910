"""The text encoder of section 4.2: a BERT-like transformer whose first token, [CLS], stands for the caption."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong.errors import DataError


class TextEncoder(nn.Module):
    """Transformer encoder over word pieces, with learned positions.

    Padding costs almost nothing: everything but attention runs on the real tokens alone, laid end to end.

    Args:
        vocabulary_size: rows of the token embedding.
        layers: transformer layers.
        heads: attention heads; must divide ``width``.
        width: of the hidden state; the feed-forward layer is four times as wide.
        max_tokens: rows of the position embedding.
        dropout: on the embeddings, attention outputs and feed-forward outputs, as in BERT.
        padding: the token id that fills a row up.
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
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.width = width
        self.padding = padding
        self.tokens = nn.Embedding(vocabulary_size, width, padding_idx=padding)
        self.positions = nn.Embedding(max_tokens, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(layers))
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        # BERT's initialisation: normal with 0.02, zero bias.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states of the last layer, [captions, tokens, width]; zero where the token is padding.

        Args:
            ids: token ids, int64 [captions, tokens]; the first of each row is [CLS].

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
        where = real.flatten().nonzero().squeeze(1)
        hidden = self.tokens(ids.flatten()[where]) + self.positions(where % length)
        hidden = self.dropout(self.norm(hidden))
        layout = _Layout(rows, length, where, real[:, None, None, :])
        for layer in self.layers:
            hidden = layer(hidden, layout)
        return layout.pad(hidden)


class _Layout:
    """Where the real tokens of a padded batch lie."""

    def __init__(self, rows: int, length: int, where: Tensor, keys: Tensor) -> None:
        self.rows, self.length, self.where, self.keys = rows, length, where, keys

    def pad(self, packed: Tensor) -> Tensor:
        """Lay [real tokens, width] out as [rows, length, width], zero elsewhere."""
        padded = packed.new_zeros(self.rows * self.length, packed.shape[-1]).index_copy(0, self.where, packed)
        return padded.view(self.rows, self.length, -1)

    def pack(self, padded: Tensor) -> Tensor:
        """The inverse of ``pad``."""
        return padded.reshape(self.rows * self.length, -1)[self.where]


class _Layer(nn.Module):
    """One BERT layer: attention and feed-forward, each followed by its residual and layer norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, layout: _Layout) -> Tensor:
        width = hidden.shape[-1]
        qkv = layout.pad(self.qkv(hidden)).view(layout.rows, layout.length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=layout.keys)
        mixed = layout.pack(mixed.transpose(1, 2).reshape(layout.rows, layout.length, width))
        hidden = self.norm1(hidden + self.dropout(self.attended(mixed)))
        output: Tensor = self.norm2(hidden + self.dropout(self.contract(F.gelu(self.expand(hidden)))))
        return output
