"""Train, save and load a model whose image encoder is your own (``tiny_encoder.py``), on images of four colours."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import tiny_encoder  # noqa: F401 - registers the image encoder
import torch
from PIL import Image

import wukong
from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model import saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.store import storage

COLOURS = {"红色": "red", "绿色": "green", "蓝色": "blue", "黄色": "yellow"}
SETTINGS = Model.model_validate(
    {
        "image": {"name": "tiny_encoder", "weights": "random", "image_size": 64},
        "text": {"layers": 1, "heads": 2, "width": 32},
        "embedding": 16,
    }
)


def main() -> int:
    """Train for some steps, then ask the saved model for the colour of each image."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(SETTINGS, tokenizer, ImageEncoder(SETTINGS.image))
    images = [Image.new("RGB", (64, 64), colour) for colour in COLOURS.values()]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    ids = tokenizer(list(COLOURS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = model.loss(model(pixels, ids))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.clamp_temperature()
    with tempfile.TemporaryDirectory() as folder:
        saved_model.save(storage.from_path(Path(folder)), model.eval(), tokenizer)
        loaded = wukong.load(folder)
    similarity = loaded.similarity(loaded.encode_image(images), loaded.encode_text(list(COLOURS)))
    for colour, scores in zip(COLOURS.values(), similarity, strict=True):
        sys.stdout.write(f"{colour}: {list(COLOURS)[int(scores.argmax())]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
