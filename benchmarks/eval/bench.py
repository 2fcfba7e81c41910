"""Compare evaluation results with other evaluators, and measure time and memory of scoring and retrieval.

    python benchmarks/eval/bench.py [--threads 2] [--only peers coverage classes retrieval token] [--record]
        [--model MODEL]

The first run installs Chinese-CLIP, CLIP_benchmark and MTEB into a separate folder in ``--work``, by default in the
user's cache. ``--record`` writes what they make of made-up scores to the tests' ``peers.json``. Token-wise scoring and
retrieval are measured on a part, and the time of the whole is in proportion; memory is that of the whole. ``--model``,
a model of ``make run``, adds the rows of ``trained.py``. Results are printed and written to ``results.json``.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "model"))
import measure  # noqa: E402

from wukong.evaluate import retrieval  # noqa: E402

RECORD = HERE.parents[1] / "tests" / "wukong" / "evaluate" / "peers.json"
PEERS = (
    "clip-benchmark==1.6.2", "cn-clip==1.6.0", "mteb==2.26.24", "pytrec-eval-terrier==0.5.11", "datasets==5.2.0",
    "sentence-transformers==6.2.0", "scikit-learn==1.9.1", "dill==0.4.1", "multiprocess==0.70.19", "xxhash==4.1.0",
    "tqdm==4.70.1", "joblib==1.6.0", "threadpoolctl==3.8.0", "numpy==2.3.5",
)  # fmt: skip
"""Without torch and transformers, which come from this environment. CLIP_benchmark 1.6.2 fails with numpy 2.4."""
IMAGES, CLASSES, PROMPTS = 1000, 1000, 80
TIMED_PROMPTS, TIMED_CLASSES, WEIGHED_CLASSES = 8, 20, 100
"""The prompts whose time is measured with all classes; the classes whose time is measured with all prompts; and those
of the run for memory, which are two pieces of those on disk."""
ROUNDS = 2
SLICE = (1024, 512)
"""Images and captions of two blocks; the whole has 1,960."""
TARGETS = {
    "peers": ("results that differ from another evaluator's", 0),
    "coverage": ("intervals of 2,000 that hold the true value: by how much the worst case is below 95 %", 0.02),
    "wrong": ("verdicts of 2,000 without a cause: the worst case, give or take the simulation's error", 0.065),
    "classes_time": ("1,000 images x 1,000 classes x 80 prompts: CPU time of the loop over templates'", 1 / 5),
    "classes_mib": ("the same: peak memory of the process, MiB", 2048),
    "retrieval_seconds": ("retrieval 5,000 x 25,000, global: seconds", 20),
    "token_mib": ("retrieval 10,000 x 50,000, token-wise: peak memory of the process, MiB", 2048),
}


def peers(work: Path, record: bool) -> dict[str, float]:
    folder = work / "peers"
    if not folder.exists():
        print("installing Chinese-CLIP, CLIP_benchmark and MTEB", flush=True)
        partial = work / "peers.partial"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", partial, *PEERS]
        subprocess.run(command, check=True)
        partial.rename(folder)
    found = measure.run_for_time(str(HERE / "peers.py"), python_path=[folder])
    if record:
        RECORD.write_text(json.dumps(found) + "\n")
    different = sum(differences(case) for case in found["cases"].values())
    print(f"{found['versions']}: {different} recalls differ", flush=True)
    return {"peers": different}


def differences(case: dict[str, Any]) -> int:
    """Count the recalls of one case that are not the peers', to the last digit that they print."""
    scores = torch.tensor(case["scores"])
    right = torch.zeros(scores.shape, dtype=torch.bool)
    for text, images in enumerate(case["images_of_texts"]):
        right[text, images] = True
    different = 0
    for direction, one, of, ids in (
        ("text_to_image", scores, right, case["image_ids"]),
        ("image_to_text", scores.T, right.T, case["text_ids"]),
    ):
        first, topk, by_id = (
            retrieval.hits(one, of, ties, [str(each) for each in ids]) > 0 for ties in ("first", "topk", "id")
        )
        for peer, ours in (
            ("chinese_clip", (first.double().mean(0) * 100).tolist()),
            ("clip_benchmark", topk.float().mean(0).tolist()),
            ("mteb", [round(each, 5) for each in by_id.double().mean(0).tolist()]),
        ):
            different += sum(a != b for a, b in zip(ours, case["peers"][peer][direction], strict=True))
    return different


def coverage() -> dict[str, float]:
    found = measure.run_for_time(str(HERE / "coverage.py"))
    for asked, shares in found.items():
        for title, share in shares.items():
            print(f"{title}: {100 * share:.1f} % {asked}", flush=True)
    return {
        "coverage": round(max(0.95 - share for share in found["holds"].values()), 6),
        "wrong": round(max(found["wrong"].values()), 6),
    }


def run(threads: int, *arguments: object, weighed: bool = True) -> dict[str, Any]:
    start = measure.run_for_memory if weighed else measure.run_for_time
    found = start(str(HERE / "run.py"), *arguments, "--threads", threads)
    print(f"{' '.join(map(str, arguments))}: {found}", flush=True)
    return found


def classes(threads: int) -> dict[str, float]:
    """CPU seconds are the best of some rounds in which all take turns.

    Ours is measured on some prompts of all classes, because it computes only the best classes' scores twice.
    """
    few = (IMAGES, TIMED_CLASSES, PROMPTS, "--of", CLASSES)
    works: dict[str, tuple[tuple[object, ...], float]] = {
        "ours": ((IMAGES, CLASSES, TIMED_PROMPTS), PROMPTS / TIMED_PROMPTS),
        **dict.fromkeys(("exact", "products", "loop"), (few, CLASSES / TIMED_CLASSES)),
    }
    taken = dict.fromkeys(works, float("inf"))
    for _ in range(ROUNDS):
        for kind, (size, whole) in works.items():
            taken[kind] = min(taken[kind], whole * run(threads, kind, *size, weighed=False)["cpu"])
    weighed = run(threads, "ours", IMAGES, WEIGHED_CLASSES, PROMPTS, "--of", CLASSES)
    return {
        "classes_time": taken["ours"] / taken["loop"],
        "classes_exact_time": taken["exact"] / taken["loop"],
        "classes_products_time": taken["products"] / taken["loop"],
        "classes_cpu_seconds": taken["ours"],
        "classes_mib": weighed["bytes"] / 2**20,
        "classes_mib_before": weighed["bytes_before"] / 2**20,
    }


def global_retrieval(threads: int) -> dict[str, float]:
    found = run(threads, "retrieval", 5000, 25_000)
    return {"retrieval_seconds": found["seconds"], "retrieval_mib": found["bytes"] / 2**20}


def token_retrieval(threads: int) -> dict[str, float]:
    found = run(threads, "retrieval", 10_000, 50_000, "--token-wise", "--limit", *SLICE)
    return {
        "token_cpu_seconds": found["cpu"],
        "token_share": found["share"],
        "token_mib": found["bytes"] / 2**20,
        "token_mib_before": found["bytes_before"] / 2**20,
    }


def trained(model: str) -> None:
    """Print what ``trained.py`` prints."""
    subprocess.run([sys.executable, HERE / "trained.py", "--model", model], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("~/.cache/wukong/bench-eval").expanduser())
    parser.add_argument("--only", nargs="+", choices=["peers", "coverage", "classes", "retrieval", "token"])
    parser.add_argument("--model", help="a model of make run: its results under each protocol")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = options.only or ["peers", "coverage", "classes", "retrieval", "token"]
    # A thread that waits for others must not count as one that works.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    figures: dict[str, float] = {"load": os.getloadavg()[0], "threads": options.threads}
    if "peers" in wanted:
        figures |= peers(options.work, options.record)
    if "coverage" in wanted:
        figures |= coverage()
    for name, part in (("classes", classes), ("retrieval", global_retrieval), ("token", token_retrieval)):
        if name in wanted:
            figures |= part(options.threads)
    if options.model:
        trained(options.model)
    (options.work / "results.json").write_text(json.dumps(figures, indent=2) + "\n")
    missed = 0
    for name, (what, target) in TARGETS.items():
        if name in figures:
            missed += figures[name] > target
            word = "MISSED" if figures[name] > target else "met   "
            print(f"{word} {what}: {figures[name]:.3g} (at most {target:.4g})")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
