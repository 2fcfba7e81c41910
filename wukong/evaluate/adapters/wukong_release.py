"""Models that the paper's authors released."""

from pathlib import Path

import torch

from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import ConfigError
from wukong.evaluate.foreign import ForeignModel, Kind
from wukong.evaluate.model import Model, token_ids, tokens_cut
from wukong.model import released
from wukong.store import storage


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


KIND = Kind("wukong_release", _released)
