"""Measure one training step of the paper's text tower with the global loss: peak memory and seconds.

    python benchmarks/model/caching.py BATCH MICRO_BATCH [--threads 2]

12 layers of width 768, float32, LAMB, stored image features of width 1,280. Captions have only 3 to 12 tokens, so that
activations are small and the other costs of a large batch are visible. ``MICRO_BATCH`` 0 is a step without pieces.
"""

import argparse
import json
import sys
import time

import measure
import torch
from text_step import captions

from wukong.config.model import Model
from wukong.config.training import Training
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model.dual import DualEncoder
from wukong.train import gradients, optimizer
from wukong.train.batches import Batch

FEATURES = 1_280


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("batch", type=int)
    parser.add_argument("micro_batch", type=int)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = DualEncoder(Model(), Tokenizer(packaged_vocabulary()), feature_width=FEATURES).train()
    settings = Training(micro_batch=options.micro_batch)
    optimiser = optimizer.build(model, settings)
    numbers = torch.arange(options.batch)
    batch = Batch(torch.randn(options.batch, FEATURES), captions("short", options.batch), numbers, numbers)
    measure.reset_peak()
    started = time.perf_counter()
    gradients.backward(model, model, batch, settings)
    optimiser.step()
    found = {"seconds": time.perf_counter() - started, "bytes": measure.peak()}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
