"""Start the text encoder from a pretrained BERT or RoBERTa in Hugging Face's format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wukong.errors import ConfigError, DataError
from wukong.model import weights
from wukong.model.text_encoder import TextEncoder
from wukong.store import storage

HUB = "hub:"
# Weights in a checkpoint that the text encoder does not use: pooler, heads of pretraining tasks, stored constants.
_UNUSED = ("pooler.", "cls.", "lm_head.", "embeddings.position_ids", "embeddings.token_type_ids")
_LAYER = {
    "attention.output.dense": "attended",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "expand",
    "output.dense": "contract",
    "output.LayerNorm": "norm2",
}


def start_from(encoder: TextEncoder, source: str, read: Callable[[str], dict[str, Tensor]] = weights.read) -> None:
    """Load the weights of a pretrained text encoder, which must have the same architecture.

    Our encoder has no segment embeddings. The embedding of the first segment, a constant, is added to the position
    embeddings. Positions beyond ``max_tokens`` are not loaded. RoBERTa's positions start after its padding id.

    Args:
        encoder: the text encoder whose weights are replaced.
        source: URI of a folder with ``config.json`` and ``model.safetensors``, or ``hub:NAME``.
        read: reads the weights; ``weights.read_shapes`` to compare names and sizes alone, with an encoder on ``meta``.

    Raises:
        ConfigError: the model cannot be downloaded from the hub.
        StorageError: there is nothing at the URI.
        DataError: the model is not a BERT or RoBERTa, has another architecture, or lacks a weight; the message names
            what differs.
    """
    folder = _download(source.removeprefix(HUB)) if source.startswith(HUB) else source
    config: Any = storage.read_json(storage.join(folder, "config.json"))
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in {"bert", "roberta", "xlm-roberta"}:
        raise DataError(f"{source} holds a model of type {kind!r}; the text encoder starts from a BERT or a RoBERTa")
    for key in ("pad_token_id", "max_position_embeddings"):
        if not isinstance(config.get(key, 0), int):
            raise DataError(f"{source}/config.json has {key} {config[key]!r}, which is not a whole number")
    first = 0 if kind == "bert" else config.get("pad_token_id", 1) + 1
    _compare(encoder, config, first, source)
    given = read(storage.join(folder, "model.safetensors"))
    try:
        state = _translate(given, encoder, first, source)
    except (RuntimeError, IndexError) as error:
        raise DataError(f"{source} has weights whose sizes do not belong together: {error}") from error
    weights.fill(encoder, state, source, "accepted are the names of Hugging Face's BERT and RoBERTa")


def _download(name: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return storage.from_path(Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors"])))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{name} cannot be downloaded from the hub ({' '.join(str(error).split())}); without a network set "
            "model.text.weights to 'random' or to the URI of a folder with its config.json and model.safetensors"
        ) from error


def _compare(encoder: TextEncoder, config: dict[str, Any], first: int, source: str) -> None:
    """Raise DataError if the architectures differ; the message names each difference by its config key."""
    longest = config.get("max_position_embeddings", 512) - first
    wanted = {
        "entries of the vocabulary": (config.get("vocab_size"), encoder.tokens.num_embeddings),
        "layers": (config.get("num_hidden_layers"), len(encoder.layers)),
        "heads": (config.get("num_attention_heads"), encoder.heads),
        "width": (config.get("hidden_size"), encoder.width),
        "width of the feed-forward layer": (config.get("intermediate_size"), 4 * encoder.width),
        "norm_epsilon": (config.get("layer_norm_eps", 1e-12), encoder.norm.eps),
        "activation": (config.get("hidden_act", "gelu"), "gelu"),
        "position embeddings": (config.get("position_embedding_type", "absolute"), "absolute"),
    }
    different = [f"{name}: {theirs} instead of {ours}" for name, (theirs, ours) in wanted.items() if theirs != ours]
    if longest < encoder.positions.num_embeddings:
        different.append(f"max_tokens {encoder.positions.num_embeddings} where it reads {longest}")
    if different:
        raise DataError(f"{source} has another architecture than model.text: {'; '.join(different)}")


def _translate(state: dict[str, Tensor], encoder: TextEncoder, first: int, source: str) -> dict[str, Tensor]:
    """Rename Hugging Face's weights to this encoder's names; ``first`` is the row of position 0."""
    bert = {}
    for name, value in state.items():
        bare = name.removeprefix("bert.").removeprefix("roberta.")
        if not bare.startswith(_UNUSED):
            bert[bare.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")] = (
                value
            )

    def take(name: str) -> Tensor:
        try:
            return bert.pop(name)
        except KeyError:
            raise DataError(f"{source} lacks the weight {name}: it is not a whole model") from None

    positions = take("embeddings.position_embeddings.weight")[first : first + encoder.positions.num_embeddings]
    segment = take("embeddings.token_type_embeddings.weight")[0]
    if segment.shape != (encoder.width,):
        raise DataError(
            f"{source} has embeddings.token_type_embeddings.weight of another size: a segment is "
            f"{list(segment.shape)} instead of [{encoder.width}]"
        )
    ours = {
        "tokens.weight": take("embeddings.word_embeddings.weight"),
        "positions.weight": positions + segment,
        "norm.weight": take("embeddings.LayerNorm.weight"),
        "norm.bias": take("embeddings.LayerNorm.bias"),
    }
    for number in range(len(encoder.layers)):
        for kind in ("weight", "bias"):
            layer = f"encoder.layer.{number}"
            parts = [take(f"{layer}.attention.self.{name}.{kind}") for name in ("query", "key", "value")]
            ours[f"layers.{number}.qkv.{kind}"] = torch.cat(parts)
            for theirs, name in _LAYER.items():
                ours[f"layers.{number}.{name}.{kind}"] = take(f"{layer}.{theirs}.{kind}")
    return ours | bert
