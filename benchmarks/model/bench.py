"""Measure time and memory of losses and training steps, compared with other implementations in one run.

    python benchmarks/model/bench.py [--threads 2] [--repeats 5] [--only token caching text losses]

Each figure is a ratio: of the times of two versions that run alternately in one process, or of the peak memory of two
processes that do nothing else. The first run installs open_clip into a separate folder in ``--work``, by default in the
user's cache. The results are printed and written to ``results.json`` there.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import measure

HERE = Path(__file__).parent

TARGETS = {
    "token_49_memory": ("token-wise loss, 128 of 49 x 32: extra memory of the naive version's", 1 / 8),
    "token_49_time": ("token-wise loss, 128 of 49 x 32: time of the naive version's", 0.6),
    "token_256_memory": ("token-wise loss, 64 of 256 x 32: extra memory of the naive version's", 1 / 8),
    "token_256_time": ("token-wise loss, 64 of 256 x 32: time of the naive version's", 0.6),
    "token_1024_mib": ("token-wise loss, 1,024 of 49 x 32: extra memory, MiB", 1024),
    "caching_memory": ("gradient caching, batch 4,096: peak memory of a plain batch of 256", 1.3),
    "text_ragged": ("text step, captions as in table 2: time of Hugging Face's BERT", 1.0),
    "text_full": ("text step, no padding: time of Hugging Face's BERT", 1.0),
    "loss_softmax": ("softmax loss: largest difference from open_clip's ClipLoss, gradients too", 1e-9),
    "loss_sigmoid": ("sigmoid loss: largest difference from open_clip's SigLipLoss, gradients too", 1e-9),
}


def token_wise(threads: int, repeats: int) -> dict[str, float]:
    script, options = str(HERE / "token_loss.py"), ("--threads", threads, "--repeats", repeats)
    figures = {}
    for name, shape in (("49", (128, 49, 32)), ("256", (64, 256, 32))):
        memory = {
            kind: measure.run_for_memory(script, "memory", kind, *shape, *options)["bytes"]
            for kind in ("naive", "ours")
        }
        taken = measure.run_for_time(script, "time", "both", *shape, *options)
        figures[f"token_{name}_memory"] = memory["ours"] / memory["naive"]
        figures[f"token_{name}_time"] = taken["ours"] / taken["naive"]
        for kind in ("naive", "ours"):
            seconds, mib = taken[kind], memory[kind] / 2**20
            print(f"token-wise loss {shape}, {kind}: {seconds:.3f} s, {mib:.0f} MiB extra", flush=True)
    figures["token_1024_mib"] = (
        measure.run_for_memory(script, "memory", "ours", 1024, 49, 32, *options)["bytes"] / 2**20
    )
    print(f"token-wise loss (1024, 49, 32), ours: {figures['token_1024_mib']:.0f} MiB extra", flush=True)
    return figures


def caching(threads: int, _repeats: int) -> dict[str, float]:
    taken = {}
    for batch, micro_batch in ((256, 0), (4096, 256)):
        taken[batch] = measure.run_for_memory(str(HERE / "caching.py"), batch, micro_batch, "--threads", threads)
        mib, rate = taken[batch]["bytes"] / 2**20, batch / taken[batch]["seconds"]
        pieces = f"pieces of {micro_batch}" if micro_batch else "at once"
        print(f"global loss, batch {batch} {pieces}: peak {mib:.0f} MiB, {rate:.1f} captions/s", flush=True)
    return {"caching_memory": taken[4096]["bytes"] / taken[256]["bytes"]}


def text(threads: int, repeats: int) -> dict[str, float]:
    figures = {}
    for lengths in ("ragged", "full"):
        options = ("--threads", threads, "--repeats", repeats)
        taken = measure.run_for_time(str(HERE / "text_step.py"), lengths, *options)
        figures[f"text_{lengths}"] = taken["ours"] / taken["theirs"]
        shares = f"{taken['real']} tokens of {taken['padded']} places"
        times = ", ".join(f"{side} {taken[side]:.2f} s" for side in ("ours", "theirs"))
        print(f"text step, {lengths} captions, {shares}: {times}", flush=True)
    return figures


def losses(work: Path) -> dict[str, float]:
    folder = measure.installed(work, "open_clip", measure.OPEN_CLIP)
    found = measure.run_for_time(str(HERE / "open_clip_losses.py"), python_path=[folder])
    print("open_clip's losses: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items()), flush=True)
    return {f"loss_{name}": value for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/wukong/bench-model").expanduser())
    parser.add_argument("--only", nargs="+", choices=["token", "caching", "text", "losses"])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = options.only or ["token", "caching", "text", "losses"]
    figures: dict[str, float] = {"load": os.getloadavg()[0], "threads": options.threads}
    print(f"{options.threads} threads, load {figures['load']:.1f}", flush=True)
    for name, part in (("token", token_wise), ("caching", caching), ("text", text)):
        if name in wanted:
            figures |= part(options.threads, options.repeats)
    if "losses" in wanted:
        figures |= losses(options.work)
    figures["when"] = time.time()
    (options.work / "results.json").write_text(json.dumps(figures, indent=2) + "\n")
    print()
    missed = 0
    for name, (what, target) in TARGETS.items():
        if name in figures:
            missed += figures[name] > target
            print(
                f"{'MISSED' if figures[name] > target else 'met   '} {what}: {figures[name]:.3g} (at most {target:.4g})"
            )
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
