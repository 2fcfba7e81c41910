"""Measure how many of 2,000 confidence intervals hold the true value, for results whose true value is known.

    python benchmarks/eval/coverage.py [--simulations 2000] [--cases 0 1 …]

Each simulation draws a test set from a world where each image, or caption of an image, has a known chance to be right,
and measures it by the functions that ``wukong evaluate`` calls. Every case has a seed of its own. The last line of
output is JSON: the share of intervals that hold, by case.
"""

import argparse
import json
from collections.abc import Callable, Iterator

import numpy as np
import torch

from wukong.evaluate import answers, classification, paired, retrieval
from wukong.evaluate.interval import Interval
from wukong.evaluate.protocol import PROTOCOLS

RULES = PROTOCOLS["paper"]
CAPTIONS = 5
FIRST_SEED = 1000
"""Chosen before the results were seen; an earlier method was judged, and replaced, by seeds from 0."""

Truths = dict[str, float]
Case = Callable[[np.random.Generator], dict[str, Interval]]


def classes(images: int, truths: np.ndarray) -> tuple[Truths, Case]:
    """The mean over classes, with as many images of each class as of any other; top-1 if all classes are as hard.

    Where classes differ, a set with a fixed number of images of each varies less than one drawn at random, for which
    the interval of top-1 is made.
    """
    labels = torch.arange(images) % len(truths)
    alike = bool((truths == truths[0]).all())

    def simulated(numbers: np.random.Generator) -> dict[str, Interval]:
        right = numbers.random(images) < truths[labels.numpy()]
        scores = torch.zeros(images, len(truths))
        best = torch.where(torch.from_numpy(right), labels, (labels + 1) % len(truths))
        scores[torch.arange(images), best] = 1.0
        found = classification.measured(scores, labels, RULES, "caltech101")
        return {"top-1": found.top1} if alike else {"mean per class": found.mean_per_class}

    return {"top-1" if alike else "mean per class": float(truths.mean())}, simulated


def captions(images: int, alpha: float, beta: float) -> tuple[Truths, Case]:
    """R@1 both ways and the mean recall; an image's five captions share its chance to be hit, a beta variable."""
    pairs = retrieval.Pairs.of([[number // CAPTIONS] for number in range(images * CAPTIONS)], images)
    texts, ids = [f"caption {n}" for n in range(images * CAPTIONS)], [str(n) for n in range(images)]
    more = np.array([0.0, 0.3, 0.5])  # R@5 and R@10 find some of what R@1 misses

    def hit(numbers: np.random.Generator, chance: np.ndarray) -> torch.Tensor:
        places = numbers.random(chance.shape)[..., None]
        return torch.from_numpy(places < chance[..., None] + (1 - chance[..., None]) * more).long()

    def simulated(numbers: np.random.Generator) -> dict[str, Interval]:
        easy = numbers.beta(alpha, beta, images)
        found = retrieval.Found(hit(numbers, np.repeat(easy, CAPTIONS)), hit(numbers, easy), retrieval.CUTOFFS)
        result = answers.of_retrieval(found, pairs, texts, ids, share=False).intervals()
        return {
            "R@1, text to image": result["text_to_image_r1"],
            "R@1, image to text": result["image_to_text_r1"],
            "mean recall": result["mean_recall"],
        }

    first = alpha / (alpha + beta)
    mean = float((first + (1 - first) * more).mean())
    return {"R@1, text to image": first, "R@1, image to text": first, "mean recall": mean}, simulated


def difference(images: int) -> tuple[Truths, Case]:
    """Two models on the same images; what is hard for one is hard for the other."""
    ids, labels = [str(number) for number in range(images)], np.zeros(images, np.int64)

    def simulated(numbers: np.random.Generator) -> dict[str, Interval]:
        hard, other = numbers.random(images), numbers.random(images)
        # The second model agrees with the first on four images of five, and is right on 0.46 of the others.
        agrees = numbers.random(images) < 0.8
        first = hard < 0.53
        second = np.where(agrees, first, other < 0.46)
        one, other = (answers.of_images(ids, labels, {"top1": right}).scores() for right in (first, second))
        return {"paired difference": paired.differences(other, [one])[0]["top1"]}

    return {"paired difference": 0.53 - (0.8 * 0.53 + 0.2 * 0.46)}, simulated


def cases() -> Iterator[tuple[str, Truths, Case]]:
    spread = np.linspace(0.25, 0.87, 20)
    yield "400 images, 56 % right", *classes(400, np.full(10, 0.5613))
    yield "100 images, 87 % right", *classes(100, np.full(10, 0.8723))
    yield "2,000 images, 4 % right", *classes(2000, np.full(10, 0.0413))
    yield "20 classes of 20 images", *classes(400, spread)
    yield "20 classes of 5 images", *classes(100, spread)
    yield "300 images, 5 captions each, 40 % right", *captions(300, 0.6, 0.9)
    yield "100 images, 5 captions each, 7 % right", *captions(100, 0.21, 2.79)
    yield "1,000 images, 5 captions each, 90 % right", *captions(1000, 2.7, 0.3)
    yield "300 images, two models", *difference(300)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2_000)
    parser.add_argument("--cases", type=int, nargs="+", help="numbers of the rows that are measured; by default all")
    options = parser.parse_args()
    simulations = options.simulations
    torch.set_num_threads(1)
    shares: dict[str, float] = {}
    for seed, (title, truths, simulated) in enumerate(cases(), FIRST_SEED):
        if options.cases is not None and seed - FIRST_SEED not in options.cases:
            continue
        numbers = np.random.default_rng(seed)
        held = dict.fromkeys(truths, 0)
        for _ in range(simulations):
            for name, found in simulated(numbers).items():
                held[name] += found.low <= truths[name] <= found.high
        for name, count in held.items():
            print(f"{title}: {name}: {100 * count / simulations:.1f} %", flush=True)
            shares[f"{title}: {name}"] = count / simulations
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
