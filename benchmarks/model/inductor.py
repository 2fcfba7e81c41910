"""Compare a step whose towers inductor has compiled with one that is not, on the processor; the output is JSON.

    PYTHONPATH=. python benchmarks/model/inductor.py [--layers 2] [--width 768]

The towers are a ViT-B/32 of so many blocks, which is trained, and a text tower of so many layers, in float32. Three
batches have captions of other lengths. ``largest`` is the largest difference of the loss and of all gradients, as a
share of the largest number of each; a tenth of a percent is the most.
"""

import argparse
import json
import sys
import time

import torch
from torch._inductor import metrics

from wukong.config.model import Model
from wukong.config.training import Training
from wukong.data.tokenizer import Tokenizer
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.train import gradients
from wukong.train.batches import Batch

TOLERANCE = 1e-3


def steps(model: DualEncoder, side: int) -> list[dict[str, torch.Tensor]]:
    """Return the loss and the gradients of each batch."""
    found = []
    for number, longest in enumerate((32, 12, 23)):
        generator = torch.Generator().manual_seed(number)
        pixels = torch.randint(0, 256, (4, 3, side, side), generator=generator, dtype=torch.uint8)
        ids = torch.randint(200, 9_000, (4, longest), generator=generator)
        ids = ids.masked_fill(torch.arange(longest) >= torch.tensor([longest, 5, 9, 3])[:, None], 0)
        model.zero_grad()
        loss = gradients.backward(model, model, Batch(pixels, ids, torch.arange(4), torch.arange(4)), Training())
        grown = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
        found.append({"loss": loss, **grown})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=768)
    options = parser.parse_args()
    image = {"name": "vit_base_patch32_clip_quickgelu_224.openai", "weights": "random", "image_size": 224}
    text = {"layers": options.layers, "heads": 12, "width": options.width}
    settings = Model.model_validate({"image": image, "text": text, "embedding": 256, "similarity": "token"})
    torch.manual_seed(0)
    tower = ImageEncoder(settings.image, with_weights=False)
    tower.backbone.blocks = tower.backbone.blocks[: options.layers]
    tower.lock("none")
    model = DualEncoder(settings, Tokenizer.of(settings.text), tower, with_weights=False).train()
    expected = steps(model, settings.image.image_size)
    metrics.reset()
    began = time.perf_counter()
    model.compile_towers()
    found = steps(model, settings.image.image_size)
    largest = {"image": 0.0, "text": 0.0, "other": 0.0}
    for compiled, eager in zip(found, expected, strict=True):
        assert compiled.keys() == eager.keys()
        for name, exact in eager.items():
            part = name.partition(".")[0] if name.startswith(("image.", "text.")) else "other"
            difference = float((compiled[name] - exact).abs().max() / exact.abs().max().clamp(min=1e-12))
            largest[part] = max(largest[part], difference)
    row = {"largest": largest, "kernels": metrics.generated_kernel_count, "seconds": time.perf_counter() - began}
    print(json.dumps(row))
    sys.exit(0 if row["kernels"] and max(largest.values()) <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
