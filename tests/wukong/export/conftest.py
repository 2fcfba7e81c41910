"""Two small models with random text towers that every target is tried on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.model.saved_model import SavedModel
from wukong.store import storage

TEXT = {"layers": 2, "heads": 4, "width": 64}
LITE0 = {
    "image": {"name": "tf_efficientnet_lite0", "image_size": 224, "block": 4},
    "text": {**TEXT, "pooling": "mean"},
    "embedding": 32,
}
"""Like the demo's model: the last block of Lite0, the whole picture on a white square, the mean of a text's tokens."""
CLIP_VIT = {
    "image": {"name": "vit_xsmall_patch16_clip_224", "weights": "random", "view": "crop"},
    "text": {**TEXT, "pooling": "cls"},
    "embedding": 32,
}
"""A small ViT of CLIP: [CLS] on both sides, the square in the middle of the picture."""


def build(folder: Path, settings: dict[str, object], seed: int = 0) -> SavedModel:
    """Save and load a model with random weights; its biases are as large as those of a trained model."""
    torch.manual_seed(seed)
    parsed = Model.model_validate(settings)
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(parsed, tokenizer, ImageEncoder(parsed.image)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not name.startswith("image."):
                parameter.normal_(std=0.1)
    saved_model.save(storage.from_path(folder), model, tokenizer)
    return saved_model.load(folder)


@pytest.fixture
def built(tmp_path: Path) -> Callable[[dict[str, object]], SavedModel]:
    """Makes a model of some settings."""
    return lambda settings: build(tmp_path / "model", settings)


@pytest.fixture(scope="session")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> SavedModel:
    return build(tmp_path_factory.mktemp("lite0"), LITE0)


@pytest.fixture(scope="session")
def clip_vit(tmp_path_factory: pytest.TempPathFactory) -> SavedModel:
    return build(tmp_path_factory.mktemp("clip_vit"), CLIP_VIT)


@pytest.fixture(scope="session")
def token_wise(tmp_path_factory: pytest.TempPathFactory) -> SavedModel:
    """The same ViT with the token-wise similarity: a vector for each patch and each token."""
    return build(tmp_path_factory.mktemp("token_wise"), {**CLIP_VIT, "similarity": "token"})
