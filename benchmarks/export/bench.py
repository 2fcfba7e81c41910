"""Measure ONNX exports of a model: size, speed, and R@1 lost, in float32 and in int8, beside torch in one run.

    python benchmarks/export/bench.py MODEL DATA [--seconds 10] [--only-speed]

MODEL is a saved model, and DATA pictures with captions, as of `wukong model export --measure-on`. Pictures are decoded
and cut before the clock runs, which counts seconds of a core, with one thread. The three versions take turns, and the
fastest turn of each counts; a ratio is to torch, with the model as `wukong.load` gives it.
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
    """Return how many items each version does in a second of a core, of its fastest turn."""
    best = dict.fromkeys(runs, float("inf"))
    end = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < end:
        for name, run in runs.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    return {name: items / taken for name, taken in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--seconds", type=float, default=10, help="of each version")
    parser.add_argument("--only-speed", action="store_true", help="do not measure R@1, which takes minutes")
    asked = parser.parse_args()
    torch.set_num_threads(1)
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
        checks = export(saved, "onnx", folder, Options(measure_on=None if asked.only_speed else asked.data, int8=True))
        for kind, given, name, of_torch in (
            ("pictures", pixels, "image", lambda: saved.model.embed_pixels(pixels)),
            ("captions", ids, "text", lambda: saved.model.embed_text(ids)),
        ):
            files = {"float32": folder / f"{name}.onnx", "int8": folder / f"{name}_int8.onnx"}
            sessions = {label: graphs.session(file, threads=1) for label, file in files.items()}
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
