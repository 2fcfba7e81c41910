"""Measure ONNX exports of a model: size, speed, and R@1 lost, in float32 and in int8, beside torch in one run.

    python benchmarks/export/bench.py MODEL DATA [--threads 1] [--seconds 4]

MODEL is a saved model, and DATA pictures with captions, as of `wukong model export --measure-on`. Pictures are decoded
and cut before the clock runs. The three versions take turns, and the fastest turn of each counts; a ratio is to torch.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import torch

import wukong
from wukong.data import images
from wukong.export import graphs, measure
from wukong.export.run import export
from wukong.export.target import Options

BATCHES = {"pictures": 16, "captions": 64}


def rates(runs: dict[str, Callable[[], object]], items: int, seconds: float) -> dict[str, float]:
    """Return how many items a second each version does, of its fastest turn."""
    best = dict.fromkeys(runs, float("inf"))
    end = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < end:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return {name: items / taken for name, taken in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4, help="of each version")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    saved, data = wukong.load(asked.model), measure.read(asked.data)
    tower = saved.model.settings.image
    shown = [
        images.evaluation_view(data.image(i), tower.image_size, tower.view)
        for i in range(min(len(data), BATCHES["pictures"]))
    ]
    pixels = images.to_tensor(shown).contiguous()
    ids = saved.tokenizer([caption.text for caption in islice(data.captions, BATCHES["captions"])])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "onnx")
        checks = export(saved, "onnx", folder, Options(measure_on=asked.data, int8=True))
        for kind, given, name, of_torch in (
            ("pictures", pixels, "image", lambda: saved.model.embed_pixels(pixels)),
            ("captions", ids, "text", lambda: saved.model.embed_text(ids)),
        ):
            files = {"float32": folder / f"{name}.onnx", "int8": folder / f"{name}_int8.onnx"}
            sessions = {label: graphs.session(file, asked.threads) for label, file in files.items()}
            feed = {sessions["float32"].get_inputs()[0].name: given.numpy()}
            runs = {label: partial(opened.run, None, feed) for label, opened in sessions.items()}
            with torch.inference_mode():
                found = rates({"torch": of_torch, **runs}, len(given), asked.seconds)
            for label, rate in found.items():
                size = f", {files[label].stat().st_size / 2**20:.1f} MiB" if label in files else ""
                print(f"{kind}, {label}: {rate:.0f} a second, {rate / found['torch']:.2f} of torch{size}")
        for check in checks:
            print(f"{check.of}, {check.measure}: {check.value:.4f} ({check.by})")


if __name__ == "__main__":
    main()
