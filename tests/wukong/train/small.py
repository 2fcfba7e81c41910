"""A small model and small data, the same in every process."""

import torch

from wukong.config.model import ImageEncoder, Model
from wukong.config.training import Checkpointing, Training
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model import image_encoder
from wukong.model.dual import DualEncoder
from wukong.train.feature_pairs import FeaturePairs
from wukong.train.pairs import Loaded, Pairs
from wukong.train.stream import Piece

WIDTH = 12
EACH = Checkpointing(least_seconds=0, most_share=1)
"""A checkpoint after each epoch, however short it is."""
SETTINGS = Training(epochs=4, batch_size=8, learning_rate=0.02, views=1, epsilon=1e-6, checkpoint=EACH)
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


class InMemory(FeaturePairs):
    """Pairs whose features, float16 [views, pairs, ...], and captions are given, in shards of ten."""

    def __init__(self, features: torch.Tensor, captions: list[str], tokenizer: Tokenizer) -> None:
        rows = [min(10, len(captions) - start) for start in range(0, len(captions), 10)]
        Pairs.__init__(self, rows, "digest", tokenizer)
        self.features, self.captions = features, captions

    def load(self, piece: Piece) -> Loaded:
        rows = slice(10 * piece.shard + piece.start, 10 * piece.shard + piece.stop)
        captions = self.captions[rows]
        return self.loaded(
            piece, [f"k{number}" for number in range(rows.start, rows.stop)], captions, self.features[:, rows]
        )


def make(
    dropout: float = 0.0, similarity: str = "global", loss: str = "softmax", width: int = 16
) -> tuple[DualEncoder, InMemory]:
    """The similarity ``pooled`` is the token-wise one, of three tokens that attention pools of four patches."""
    torch.manual_seed(0)
    described = {
        "image": {"tokens": 3, "pooling": "attention"} if similarity == "pooled" else {},
        "text": {"layers": 1, "heads": 2, "width": width, "dropout": dropout},
        "similarity": "token" if similarity == "pooled" else similarity,
    }
    model = Model.model_validate({**described, "embedding": 8, "loss": loss})
    tokenizer = Tokenizer(packaged_vocabulary())
    dual = DualEncoder(model, tokenizer, feature_width=WIDTH)
    shape = (2, len(CAPTIONS), WIDTH) if similarity == "global" else (2, len(CAPTIONS), 4, WIDTH)
    return dual, InMemory(torch.randn(shape).half(), CAPTIONS, tokenizer)


def with_tower(similarity: str = "global", lock: int | str = "none", block: int | None = None) -> DualEncoder:
    """The same model with an image tower: a small ViT with random weights for images of 32 x 32 pixels."""
    torch.manual_seed(0)
    tower = ImageEncoder(name="vit_tiny_patch16_224", weights="random", image_size=32, block=block)
    text = {"layers": 1, "heads": 2, "width": 16}
    model = Model.model_validate({"image": tower, "text": text, "embedding": 8, "similarity": similarity})
    dual = DualEncoder(model, Tokenizer(packaged_vocabulary()), image_encoder.ImageEncoder(tower))
    assert dual.image is not None
    dual.image.lock(lock)
    return dual
