"""A small model, pictures in shards, and an index of them, where replicas of their own find them."""

from pathlib import Path

import torch

from wukong.config.model import Model as Settings
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.store import storage


def model(folder: Path, similarity: str = "token") -> str:
    """Save a model with random weights."""
    torch.manual_seed(0)
    settings = Settings.model_validate(
        {
            "image": {"name": "resnet18", "weights": "random", "image_size": 64},
            "text": {"layers": 1, "heads": 2, "width": 16},
            "embedding": 8,
            "similarity": similarity,
        }
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    image = ImageEncoder(settings.image, with_weights=False)
    saved_model.save(storage.from_path(folder), DualEncoder(settings, tokenizer, image), tokenizer)
    return str(folder)
