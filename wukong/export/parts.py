"""What several targets write: the text tower as a BERT of Hugging Face, its tokenizer's files, inputs for checks."""

import json
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from wukong.data import images
from wukong.data.tokenizer import Tokenizer
from wukong.model.dual import DualEncoder
from wukong.model.saved_model import SavedModel
from wukong.model.text_encoder import TextEncoder

TOLERANCE = 1e-5
"""Largest difference of a number of a unit vector that an exported tower may have, in float32, on equal inputs."""
_LAYER = {
    "attended": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "norm2": "output.LayerNorm",
}


def bert_config(model: DualEncoder, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the ``config.json`` of the text tower as Hugging Face's ``BertModel`` without a pooling layer."""
    text = model.settings.text
    return {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(tokenizer),
        "hidden_size": text.width,
        "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads,
        "intermediate_size": 4 * text.width,
        "hidden_act": "gelu",
        "layer_norm_eps": text.norm_epsilon,
        "max_position_embeddings": text.max_tokens,
        "type_vocab_size": 1,
        "pad_token_id": tokenizer.pad,
        "hidden_dropout_prob": text.dropout,
        "attention_probs_dropout_prob": text.dropout,
        "torch_dtype": "float32",
    }


def bert_state(encoder: TextEncoder, last_bias: Tensor | None = None) -> dict[str, Tensor]:
    """Return the text tower's weights by Hugging Face's names, without a prefix; the inverse of ``bert.start_from``.

    BERT adds an embedding of the segment, which ours has within the positions: it is zero here.

    Args:
        encoder: the text encoder.
        last_bias: what stands in the place of the bias of the last layer's norm, from ``folded_bias``; None for its
            own.
    """
    own = {name: value.detach().cpu() for name, value in encoder.state_dict().items()}
    state = {
        "embeddings.word_embeddings.weight": own["tokens.weight"],
        "embeddings.position_embeddings.weight": own["positions.weight"],
        "embeddings.token_type_embeddings.weight": torch.zeros(1, encoder.width),
        "embeddings.LayerNorm.weight": own["norm.weight"],
        "embeddings.LayerNorm.bias": own["norm.bias"],
    }
    for number in range(len(encoder.layers)):
        layer = f"encoder.layer.{number}"
        for kind in ("weight", "bias"):
            parts = own[f"layers.{number}.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                state[f"{layer}.attention.self.{name}.{kind}"] = part
            for name, theirs in _LAYER.items():
                state[f"{layer}.{theirs}.{kind}"] = own[f"layers.{number}.{name}.{kind}"]
    if last_bias is not None:
        state[f"encoder.layer.{len(encoder.layers) - 1}.output.LayerNorm.bias"] = last_bias
    return {name: value.contiguous() for name, value in state.items()}


def folded_bias(norm: nn.LayerNorm, head: nn.Module) -> Tensor | None:
    """Return a bias for a layer norm with which a head without its bias gives what it gives with it.

    CLIP's projections have no bias, and our heads have one. A head of weight W and bias b after a norm of bias n gives
    W (x + n) + b = W (x + n'), where W n' = W n + b; n' is the solution with the smallest change. A mean over tokens
    between norm and head changes nothing of this.

    Args:
        norm: the last norm before the head.
        head: the head, a ``Linear`` or an ``Identity``.

    Returns:
        float32 [width]; None if there is none, because the head is wider than the tower.
    """
    own: Tensor = norm.bias.detach().cpu()
    if not isinstance(head, nn.Linear):
        return own.clone()
    weight, bias = head.weight.detach().cpu().double(), head.bias.detach().cpu().double()
    change: Tensor = torch.linalg.lstsq(weight, bias[:, None], driver="gelsd").solution[:, 0]
    if not torch.allclose(weight @ change, bias, atol=1e-7 * max(1.0, float(bias.abs().max()))):
        return None
    return (own.double() + change).float()


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer as ``AutoTokenizer`` and ``tokenizers`` read it, with ``vocab.txt`` beside it."""
    wordpiece = tokenizer._wordpiece
    wordpiece.no_truncation()
    try:
        content = json.loads(wordpiece.to_str())
    finally:
        wordpiece.enable_truncation(tokenizer.max_tokens)
    write_json(folder / "tokenizer.json", content)
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": tokenizer.max_tokens,
        "tokenize_chinese_chars": True,
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }
    write_json(folder / "tokenizer_config.json", config)
    (folder / "vocab.txt").write_text(tokenizer.vocabulary, encoding="utf-8", newline="\n")


def refuse_token_wise(saved: SavedModel) -> str | None:
    """Give the reason why a target that compares single vectors cannot hold a token-wise model; None if it can."""
    if not saved.model.token_wise:
        return None
    return (
        "it has a vector for every patch and every token, and this target one for a picture and one for a caption: "
        "train a model with `model.similarity: global`, or export this one to onnx"
    )


def seen(saved: SavedModel, pictures: Sequence[Image.Image]) -> Tensor:
    """Return what a model's image tower sees of RGB pictures, uint8 [pictures, 3, size, size]."""
    tower = saved.model.settings.image
    return images.to_tensor([images.evaluation_view(each, tower.image_size, tower.view) for each in pictures])


def sample_captions(count: int, seed: int = 0) -> list[str]:
    """Make captions for checks: Chinese and Latin characters, digits, signs, full width, emoji; long and short."""
    drawn = random.Random(seed)
    kinds = (
        [chr(code) for code in range(0x4E00, 0x9FA6)],
        list("的一是在不了有和人这中大为上个国我以要他"),
        list(string.ascii_letters),
        list(string.digits),
        list(string.punctuation),
        [chr(code) for code in range(0xFF01, 0xFF5F)],
        list("ÀÉîöüßçñ αβγ あいう 한국 ,。!?“”《》…—"),
        [" ", "\t", "\u3000", "\u200b", "\ufe0f", "😀", "🐼"],
    )
    weights = (8, 12, 4, 2, 1, 1, 1, 1)
    return [
        "".join(drawn.choice(drawn.choices(kinds, weights)[0]) for _ in range(drawn.choice((1, 3, 8, 15, 40, 90))))
        or "猫"
        for _ in range(count)
    ]


def sample_pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Make RGB pictures for checks, of several shapes, with areas, edges and noise; a side has 60 to 400 pixels."""
    drawn = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        height, width = drawn.integers(60, 400, 2)
        rows, columns = np.mgrid[:height, :width]
        waves = np.stack([np.sin(rows / drawn.uniform(5, 90) + columns / drawn.uniform(5, 90)) for _ in range(3)], 2)
        pixels = 127 + 90 * waves + drawn.normal(0, 12, (height, width, 3))
        top, left = drawn.integers(0, height // 2), drawn.integers(0, width // 2)
        pixels[top : top + height // 3, left : left + width // 3] = drawn.integers(0, 256, 3)
        pictures.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return pictures


def write_json(path: Path, value: Any) -> None:
    """Write a file of JSON that people can read."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
