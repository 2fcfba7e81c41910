"""Measure on a GPU the token-wise similarity, forward and backward, the text step's share of the GPU's speed (MFU), and
pairs a second of a training with ViT-L/14 locked.

    PYTHONPATH=FOLDERS python benchmarks/model/gpu.py [--repeats 20] [--peak 989]

Tokens are bfloat16 of width 256. ``blocks`` is the implementation that runs without Triton, ``naive`` keeps all
products, ``maxsim`` is late-interaction-kernels, which ``bench.py`` installs in one of ``FOLDERS``; it computes one
direction, so it is called twice. ``--peak`` is the most TFLOP/s of the GPU in bfloat16 without sparsity: 989 for an
H100 SXM, 312 for an A100. The trainings, in bfloat16, are those of ``benchmarks/train/peers.py``: ours reads pictures
that loader processes decode, or stored features; open_clip gets tensors that are ready. Without a GPU every row says
"not measured".
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from wukong.config.model import Model
from wukong.config.training import Training
from wukong.model import cost, similarity
from wukong.stages.estimate import CAPTION_TOKENS
from wukong.train import rates

WIDTH = 256
# Images, texts, patches, words; one GPU's share of the paper's batch is the last one.
SHAPES = [(128, 128, 49, 32), (128, 128, 256, 32), (256, 10_240, 256, 32)]
MOST_NAIVE = 2**30
"""The most products that the naive version keeps."""

PAIRS = 256
"""Of a batch of the trainings with the image tower."""


def naive(image: torch.Tensor, text: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    products = torch.einsum("ipd,jtd->ijpt", image, text)
    to_text = products.masked_fill(~counted[None, :, None], -torch.inf).amax(3).mean(2, dtype=torch.float32)
    to_image = products.amax(2).masked_fill(~counted, 0.0).sum(2, dtype=torch.float32) / counted.sum(1)
    return to_text.sum() + to_image.sum()


def kernels(image: torch.Tensor, text: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    to_text, to_image = similarity.token_similarity(image, text, counted)
    return to_text.sum() + to_image.sum()


def blocks(image: torch.Tensor, text: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    to_text, to_image = similarity._TokenSimilarity.apply(image, text, torch.stack([counted, counted]))
    return to_text.sum() + to_image.sum()


def maxsim(image: torch.Tensor, text: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    from late_interaction_kernels import maxsim as one_direction

    to_text = one_direction(image, text, d_mask=counted) / image.shape[1]
    to_image = one_direction(text, image, q_mask=counted) / counted.sum(1, keepdim=True)
    return to_text.sum() + to_image.sum()


def token_wise(repeats: int) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    versions: dict[str, Callable[..., torch.Tensor]] = {
        "kernels": kernels,
        "blocks": blocks,
        "naive": naive,
        "maxsim": maxsim,
    }
    for shape in SHAPES:
        images, texts, patches, words = shape
        for name, version in versions.items():
            row = f"{name} {' x '.join(map(str, shape))}"
            found[row] = None
            if not torch.cuda.is_available():
                continue
            if name == "naive" and images * texts * patches * words > MOST_NAIVE:
                continue
            generator = torch.Generator("cuda").manual_seed(0)
            options = {"device": "cuda", "generator": generator}
            image = F.normalize(torch.randn(images, patches, WIDTH, **options), dim=-1).bfloat16().requires_grad_()
            text = F.normalize(torch.randn(texts, words, WIDTH, **options), dim=-1).bfloat16().requires_grad_()
            counted = torch.arange(words, device="cuda") < torch.randint(8, words + 1, (texts, 1), **options)

            def work(
                version: Callable[..., torch.Tensor] = version,
                given: tuple[torch.Tensor, ...] = (image, text, counted),
            ) -> None:
                given[0].grad = given[1].grad = None
                version(*given).backward()

            try:
                work()
                found[row] = milliseconds(work, repeats if images * texts < 2**20 else 3)
            except ImportError:
                print(f"{row}: late-interaction-kernels is not installed", file=sys.stderr)
    return found


def milliseconds(work: Callable[[], None], repeats: int) -> float:
    """Return the median time of a call, by CUDA's events."""
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def utilisation(peak: float) -> dict[str, float | None]:
    """Return the share of the GPU's speed that a step on stored features reaches, with the paper's text tower."""
    found: dict[str, float | None] = {}
    for kind in ("global", "token"):
        row = f"MFU of the text step, {kind} similarity, batch 1,024"
        found[row] = None
        if torch.cuda.is_available():
            model = Model.model_validate({"architecture": "vit-l-14", "similarity": kind})
            settings = Training(batch_size=1_024, workers=1, precision="bfloat16", deterministic=False)
            device, tokens = torch.device("cuda"), CAPTION_TOKENS
            rate = rates.measure(model, settings, ["text_step"], device, tokens)["text_step"]
            done = rate * cost.text_step_flops(model, settings, cost.feature_shape(model), tokens)
            found[row] = done / (peak * 1e12)
    return found


def trainings(repeats: int) -> dict[str, float | None]:
    """Return pairs a second with ViT-L/14 locked and a text tower of 12 layers: ours and open_clip's, in turn."""
    rows = ("from pictures", "from stored features", "open_clip, from tensors")
    found: dict[str, float | None] = {f"pairs/s, ViT-L/14 locked, {row}, batch {PAIRS}": None for row in rows}
    if torch.cuda.is_available():
        sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
        import peers

        with tempfile.TemporaryDirectory() as folder:
            works = peers.on_a_gpu("l-14", PAIRS, Path(folder), loaders=min(16, os.cpu_count() or 1))
            times: list[list[float]] = [[] for _ in works]
            for number in range(repeats + 3):
                for work, each in zip(works, times, strict=True):
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                    work()
                    torch.cuda.synchronize()
                    if number > 2:  # before, the loader processes start
                        each.append(time.perf_counter() - began)
        found = {row: PAIRS / statistics.median(each) for row, each in zip(found, times, strict=True)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--peak", type=float, default=989)
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(device, flush=True)
    found = token_wise(options.repeats) | utilisation(options.peak) | trainings(options.repeats)
    for row, value in found.items():
        unit = "" if row.startswith(("MFU", "pairs/s")) else " ms"
        print(f"{row}: {'not measured' if value is None else f'{value:.4g}{unit}'}")
    sys.stdout.write(json.dumps({"device": device, **found}) + "\n")


if __name__ == "__main__":
    main()
