"""Compare the token-wise loss, forward and backward, with a naive one: seconds, and memory in addition to the inputs.

    python benchmarks/model/token_loss.py time|memory naive|ours|both BATCH PATCHES WORDS [--threads 2] [--repeats 5]

Float32, width 256. The naive version computes section 4.3 directly: all products in memory, gradients by autograd. The
last line of output is JSON; ``bench.py`` runs the script for all sizes.
"""

import argparse
import json
import sys
from collections.abc import Callable

import measure
import torch
import torch.nn.functional as F

from wukong.model.loss import token_loss

WIDTH = 256


def naive_loss(image: torch.Tensor, text: torch.Tensor, counted: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    products = torch.einsum("ipd,jtd->ijpt", image, text)
    to_text = products.masked_fill(~counted[None, :, None], -torch.inf).amax(3).mean(2)
    to_image = products.amax(2).masked_fill(~counted, 0.0).sum(2) / counted.sum(1)
    own = torch.arange(len(image))
    return (F.cross_entropy(scale * to_text, own) + F.cross_entropy(scale * to_image.T, own)) / 2


def inputs(batch: int, patches: int, words: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    image = F.normalize(torch.randn(batch, patches, WIDTH), dim=-1).requires_grad_()
    text = F.normalize(torch.randn(batch, words, WIDTH), dim=-1).requires_grad_()
    return image, text, torch.ones(batch, words, dtype=torch.bool)


def work_of(kind: str, shape: tuple[int, int, int]) -> Callable[[], None]:
    loss = {"naive": naive_loss, "ours": token_loss}[kind]
    scale = torch.tensor(14.3)
    loss(*inputs(4, 5, 6), scale).backward()  # let libraries initialise themselves before the measurement
    image, text, counted = inputs(*shape)

    def work() -> None:
        image.grad = text.grad = None
        loss(image, text, counted, scale).backward()

    return work


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["time", "memory"])
    parser.add_argument("kind", choices=["naive", "ours", "both"])
    parser.add_argument("shape", nargs=3, type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = tuple(options.shape)
    if options.what == "memory":
        found = {"bytes": measure.extra_memory(work_of(options.kind, shape))}
    else:
        kinds = ("naive", "ours") if options.kind == "both" else (options.kind,)
        found = measure.seconds({kind: work_of(kind, shape) for kind in kinds}, options.repeats)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
