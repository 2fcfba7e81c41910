"""A small model and small data, the same in every process."""

import torch

from wukong.config import ImageEncoder, Model, Training
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model import image_encoder
from wukong.model.dual import DualEncoder
from wukong.train.training_data import Pairs

WIDTH = 12
SETTINGS = Training(epochs=4, batch_size=8, learning_rate=0.02, views=1, epsilon=1e-6)
CAPTIONS = [
    "猫",
    "狗",
    "红色的苹果",
    "绿色的苹果",
    "月亮",
    "太阳",
    "一只鸟",
    "两只鸟",
    "房子",
    "树",
    "猫",
    "雪山",
    "河",
    "火车",
] * 2


def make(dropout: float = 0.0, similarity: str = "global", loss: str = "softmax") -> tuple[DualEncoder, Pairs]:
    torch.manual_seed(0)
    text = {"layers": 1, "heads": 2, "width": 16, "dropout": dropout}
    model = Model.model_validate({"text": text, "embedding": 8, "similarity": similarity, "loss": loss})
    tokenizer = Tokenizer(packaged_vocabulary())
    dual = DualEncoder(model, tokenizer, feature_width=WIDTH)
    shape = (2, len(CAPTIONS), WIDTH) if similarity == "global" else (2, len(CAPTIONS), 4, WIDTH)
    return dual, Pairs(torch.randn(shape).half(), CAPTIONS, tokenizer)


def with_tower(similarity: str = "global", lock: int | str = "none") -> DualEncoder:
    """The same model with an image tower: a small ViT with random weights for images of 32 x 32 pixels."""
    torch.manual_seed(0)
    tower = ImageEncoder(name="vit_tiny_patch16_224", weights="random", image_size=32)
    text = {"layers": 1, "heads": 2, "width": 16}
    model = Model.model_validate({"image": tower, "text": text, "embedding": 8, "similarity": similarity})
    dual = DualEncoder(model, Tokenizer(packaged_vocabulary()), image_encoder.ImageEncoder(tower))
    assert dual.image is not None
    dual.image.lock(lock)
    return dual
