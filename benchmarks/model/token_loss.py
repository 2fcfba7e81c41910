"""The token-wise loss, forward and backward, against the naive one: seconds and memory beyond the inputs.

    python benchmarks/model/token_loss.py [--threads 2] [--repeats 5]

Float32, width 256. The naive version is the plain reading of section 4.3: all products at once, autograd's backward.
Processor seconds tell the work done; wall-clock seconds also depend on what else the machine does.
"""

import argparse
import json
import sys

import measure
import torch
import torch.nn.functional as F

from wukong.model.loss import token_loss

SHAPES = ((128, 49, 32), (64, 256, 32), (1024, 49, 32))
NAIVE_UP_TO = 128
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


def one(kind: str, what: str, shape: tuple[int, int, int], threads: int, repeats: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    loss = {"naive": naive_loss, "ours": token_loss}[kind]
    scale = torch.tensor(14.3)
    loss(*inputs(4, 5, 6), scale).backward()  # what libraries set up once is not the work's
    image, text, counted = inputs(*shape)

    def work() -> None:
        image.grad = text.grad = None
        loss(image, text, counted, scale).backward()

    if what == "memory":
        return {"bytes": measure.extra_memory(work)}
    wall, processor = measure.seconds(work, repeats)
    return {"wall": wall, "processor": processor}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--one", nargs=5)
    options = parser.parse_args()
    if options.one:
        kind, what, *shape = options.one
        found = one(kind, what, tuple(map(int, shape)), options.threads, options.repeats)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    print(f"{'batch':>5} {'tokens':>9} {'version':>7} {'wall s':>8} {'processor s':>12} {'extra MiB':>10}")
    for shape in SHAPES:
        for kind in ("naive", "ours"):
            if kind == "naive" and shape[0] > NAIVE_UP_TO:
                continue
            arguments = ["--threads", options.threads, "--repeats", options.repeats, "--one", kind]
            time = measure.plain(__file__, *arguments, "time", *shape)
            memory = measure.alone(__file__, *arguments, "memory", *shape)["bytes"] / 2**20
            tokens = f"{shape[1]}x{shape[2]}"
            print(
                f"{shape[0]:>5} {tokens:>9} {kind:>7} {time['wall']:>8.3f} {time['processor']:>12.3f} {memory:>10.1f}"
            )


if __name__ == "__main__":
    main()
