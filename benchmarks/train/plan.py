"""Compare what `wukong plan` predicts with what is then measured: filling the feature cache, and training on it.

    python benchmarks/train/plan.py [--pairs 512] [--pictures 64] [--rounds 5] [--seconds 3]

The model is configs/demo.yaml's, with random weights; pictures are JPEGs of 256 x 341 pixels; one thread. Other
programs change the machine's speed from second to second, so rates and work take turns: in each round the rates are
measured as ``wukong plan`` does, in less time, then features are computed and an epoch is trained. The median of the
rounds' ratios counts. The last line of output is JSON.
"""

import argparse
import io
import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.training import Training
from wukong.data.feature_files import File
from wukong.data.tokenizer import Tokenizer
from wukong.model import cost
from wukong.model.dual import DualEncoder
from wukong.stages import estimate
from wukong.train import features, rates
from wukong.train.feature_pairs import FeaturePairs
from wukong.train.loop import train
from wukong.train.pairs import Loaded, Pairs
from wukong.train.stream import Piece

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
        return self.loaded(piece, keys, self.captions[rows], self.features[:, rows])


def filling(experiment: Experiment, pictures: int, folder: Path) -> Callable[[], object]:
    """Return the computation of the features of a shard."""
    model = experiment.model.model_copy(
        update={"image": experiment.model.image.model_copy(update={"weights": "random"})}
    )
    shard, keys = folder / "00000.tar", [f"{number:06d}" for number in range(pictures)]
    with tarfile.open(shard, "w") as tar:
        for number, key in enumerate(keys):
            data = rates.photograph(number)
            member = tarfile.TarInfo(f"{key}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    pq.write_table(pa.table({"key": keys}), folder / "00000.parquet")
    files = [File(shard.as_uri(), 0, (folder / "features.safetensors").as_uri())]
    return lambda: list(features.compute(files, model))


def training(experiment: Experiment, settings: Training, shape: cost.Shape, pairs: int) -> Callable[[], object]:
    """Return the training of all epochs."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.of(experiment.model.text)
    model = DualEncoder(experiment.model, tokenizer, feature_width=shape.width)
    captions = [CAPTION[: 3 + number % (len(CAPTION) - 3)] + str(number) for number in range(pairs)]
    data = InMemory(torch.randn(1, pairs, shape.width).half(), captions, tokenizer)
    return lambda: train(model, data, settings, 0)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=512)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of the measurement of the rates in a round")
    options = parser.parse_args()
    torch.set_num_threads(CORES)
    overrides = ["pretrain.workers=1", "pretrain.epochs=1", "pretrain.whiten_image_head=false"]
    experiment = documents.load(Path("configs/demo.yaml"), overrides)
    settings = experiment.pretrain
    shape = cost.feature_shape(experiment.model)
    lengths = [3 + number % (len(CAPTION) - 3) + len(str(number)) + 2 for number in range(options.pairs)]
    tokens = round(sum(lengths) / len(lengths))
    size = estimate.feature_bytes(*shape, experiment.features.dtype)

    ratios: dict[str, list[float]] = {"fill": [], "epoch": []}
    with tempfile.TemporaryDirectory() as folder:
        fill = filling(experiment, options.pictures, Path(folder))
        epoch = training(experiment, settings, shape, options.pairs)
        fill()
        epoch()
        for _ in range(options.rounds):
            found = rates.find(experiment.model, settings, caption_tokens=tokens, seconds=options.seconds)
            of_pictures = estimate.training(settings, options.pictures, size, CORES, found).cached
            of_pairs = estimate.training(settings, options.pairs, size, CORES, found).cached
            assert of_pictures is not None and of_pairs is not None
            for name, predicted, work in (
                ("fill", of_pictures.fill_seconds, fill),
                ("epoch", of_pairs.train_seconds, epoch),
            ):
                took = timed(work)
                ratios[name].append(predicted / took)
                print(f"{name}: predicted {predicted:.2f} s, measured {took:.2f} s, {predicted / took:.2f}", flush=True)
    medians = {name: statistics.median(each) for name, each in ratios.items()}
    for name, ratio in medians.items():
        print(f"{name}: predicted is {ratio:.2f} of measured, median of {options.rounds} rounds")
    sys.stdout.write(json.dumps(medians) + "\n")


if __name__ == "__main__":
    main()
