"""Compare what `wukong plan` predicts with what is then measured: filling the feature cache, and training on it.

    python benchmarks/train/plan.py [--pairs 1024] [--pictures 256] [--epochs 2] [--seconds 5]

The model is configs/demo.yaml's, with random weights; pictures are JPEGs of 256 x 341 pixels; one thread. Rates are
measured before and after the work, because other programs change the machine's speed; each prediction is that of their
mean. The last line of output is JSON.
"""

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from wukong import config, estimate
from wukong.config import Experiment, Training
from wukong.data.tokenizer import Tokenizer
from wukong.estimate import Rate, RateName
from wukong.model.dual import DualEncoder
from wukong.train import features, rates
from wukong.train.loop import train
from wukong.train.stream import Piece
from wukong.train.training_data import FeaturePairs, Loaded, Pairs

CAPTION = "一只红色的鸟站在树上看着远方的山和河流"
CORES = 1


class InMemory(FeaturePairs):
    """Pairs of one shard, with features, float16 [1, pairs, width], in memory."""

    def __init__(self, features: torch.Tensor, captions: list[str], tokenizer: Tokenizer) -> None:
        Pairs.__init__(self, [len(captions)], "plan", tokenizer)
        self.features, self.captions = features, captions

    def load(self, piece: Piece) -> Loaded:
        rows = slice(piece.start, piece.stop)
        keys = [str(number) for number in range(piece.start, piece.stop)]
        return self._loaded(piece, keys, self.captions[rows], self.features[:, rows])


def measured(
    experiment: Experiment, settings: Training, shape: rates.Shape, tokens: int, seconds: float
) -> dict[RateName, float]:
    device = torch.device("cpu")
    return {
        "text_step": rates.text_step(experiment.model, settings, shape, device, tokens, seconds),
        "tower": rates.tower(experiment.model, settings, device, seconds),
        "decode": rates.decode(experiment.model.image, (), seconds),
        "augment": rates.decode(experiment.model.image, settings.augmentations, seconds),
    }


def filled(experiment: Experiment, pictures: int) -> float:
    """Return the seconds that the features of a shard take."""
    model = experiment.model.model_copy(
        update={"image": experiment.model.image.model_copy(update={"weights": "random"})}
    )
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder, "00000.tar")
        with tarfile.open(shard, "w") as tar:
            for number in range(pictures):
                data = rates.photograph(number)
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        features.compute(shard.as_uri(), Path(folder, "warm.safetensors").as_uri(), model, 0)  # builds the tower
        started = time.perf_counter()
        features.compute(shard.as_uri(), Path(folder, "features.safetensors").as_uri(), model, 0)
        return time.perf_counter() - started


def trained(experiment: Experiment, settings: Training, shape: rates.Shape, pairs: int) -> float:
    """Return the seconds of all epochs."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.of(experiment.model.text)
    model = DualEncoder(experiment.model, tokenizer, feature_width=shape.width)
    captions = [CAPTION[: 3 + number % (len(CAPTION) - 3)] + str(number) for number in range(pairs)]
    data = InMemory(torch.randn(1, pairs, shape.width).half(), captions, tokenizer)
    started = time.perf_counter()
    train(model, data, settings, 0)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the measurement of each rate")
    options = parser.parse_args()
    torch.set_num_threads(CORES)
    overrides = ["pretrain.workers=1", f"pretrain.epochs={options.epochs}", "pretrain.whiten_image_head=false"]
    experiment = config.load(Path("configs/demo.yaml"), overrides)
    settings = experiment.pretrain
    shape = rates.feature_shape(experiment.model)
    lengths = [3 + number % (len(CAPTION) - 3) + len(str(number)) + 2 for number in range(options.pairs)]
    tokens = round(sum(lengths) / len(lengths))

    before = measured(experiment, settings, shape, tokens, options.seconds)
    seconds = {
        "fill": filled(experiment, options.pictures),
        "epochs": trained(experiment, settings, shape, options.pairs),
    }
    after = measured(experiment, settings, shape, tokens, options.seconds)

    found: dict[str, float] = {}
    means: Mapping[RateName, Rate] = {
        name: Rate(2 / (1 / before[name] + 1 / after[name]), "measured") for name in before
    }
    numbers = shape.tokens * shape.width
    fill = estimate.training(settings, options.pictures, numbers, CORES, means).cached
    epochs = estimate.training(settings, options.pairs, numbers, CORES, means).cached
    assert fill is not None and epochs is not None
    for name, predicted in (("fill", fill.fill_seconds), ("epochs", epochs.train_seconds)):
        found[f"{name}_predicted"], found[f"{name}_measured"] = predicted, seconds[name]
        print(f"{name}: predicted {predicted:.1f} s, measured {seconds[name]:.1f} s, {predicted / seconds[name]:.2f}")
    for name in before:
        print(f"{name}: {before[name]:,.1f}/s before, {after[name]:,.1f}/s after")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
