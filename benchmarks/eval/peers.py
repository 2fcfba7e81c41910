"""Measure the same scores with other evaluators; run by bench.py with their packages on the import path.

    PYTHONPATH=FOLDER python benchmarks/eval/peers.py

Scores are random, random with few distinct values, or all equal. The last line of output is JSON: for each case the
scores, the pairs, and what Chinese-CLIP, CLIP_benchmark and MTEB make of them. Chinese-CLIP's own scripts run: they
multiply feature files, so a text's feature is a row of the identity and an image's a column of the scores.
"""

import json
import runpy
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

TEXTS, IMAGES, CLASSES = 36, 24, 12
CUTOFFS = (1, 5, 10)
PACKAGES = ("cn-clip", "clip-benchmark", "mteb", "pytrec-eval-terrier", "torch")


def made(seed: int, kind: str, shape: tuple[int, int]) -> list[list[float]]:
    numbers = np.random.default_rng(seed)
    if kind == "equal":
        return np.full(shape, 0.25).tolist()
    drawn = numbers.random(shape, dtype=np.float32) - np.float32(0.5)
    return (np.round(drawn * 3) / 4 if kind == "tied" else drawn).astype(np.float32).tolist()


def cases() -> dict[str, dict[str, Any]]:
    found = {}
    for seed, kind in enumerate(("random", "random", "tied", "tied", "tied", "equal")):
        numbers = np.random.default_rng(100 + seed)
        # Some captions have two or three images; every image has a caption.
        of_texts = [
            sorted({text % IMAGES, *numbers.integers(0, IMAGES, text % 3).tolist()})
            for text in numbers.permutation(TEXTS).tolist()
        ]
        found[f"{kind}-{seed}"] = {
            "scores": made(seed, kind, (TEXTS, IMAGES)),
            "images_of_texts": of_texts,
            "image_ids": [int(each) for each in numbers.permutation(200)[:IMAGES]],
            "text_ids": [int(each) for each in numbers.permutation(2000)[:TEXTS]],
            "class_scores": made(50 + seed, kind, (IMAGES * 2, CLASSES)),
            "labels": [number % CLASSES for number in range(IMAGES * 2)],
        }
    return found


def chinese_clip(case: dict[str, Any]) -> dict[str, list[float]]:
    """R@1, R@5, R@10 in per cent of both directions, from the scripts of its README."""
    from cn_clip import eval as scripts
    from cn_clip.eval import evaluation, evaluation_tr

    torch.Tensor.cuda = lambda self, *_args, **_options: self  # type: ignore[method-assign]
    scores = np.array(case["scores"], np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        texts, images = (list(case[name]) for name in ("text_ids", "image_ids"))
        rows = zip(texts, np.eye(TEXTS).tolist(), strict=True)
        columns = zip(images, scores.T.tolist(), strict=True)
        golden = zip(texts, case["images_of_texts"], strict=True)
        write(folder / "texts.jsonl", [{"text_id": text, "feature": row} for text, row in rows])
        write(folder / "images.jsonl", [{"image_id": image, "feature": column} for image, column in columns])
        write(
            folder / "golden.jsonl",
            [{"text_id": text, "image_ids": [images[place] for place in places]} for text, places in golden],
        )
        place = Path(scripts.__file__).parent
        features = ["--image-feats", folder / "images.jsonl", "--text-feats", folder / "texts.jsonl"]
        script(place / "make_topk_predictions.py", *features, "--output", folder / "found.jsonl")
        script(place / "make_topk_predictions_tr.py", *features, "--output", folder / "found.tr.jsonl")
        script(place / "transform_ir_annotation_to_tr.py", "--input", folder / "golden.jsonl")
        return {
            "text_to_image": evaluation.compute_score(folder / "golden.jsonl", folder / "found.jsonl")[1:],
            "image_to_text": evaluation_tr.compute_score(folder / "golden.tr.jsonl", folder / "found.tr.jsonl")[1:],
        }


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def script(path: Path, *arguments: object) -> None:
    kept, sys.argv = sys.argv, [str(path), *map(str, arguments)]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = kept


def right(case: dict[str, Any]) -> torch.Tensor:
    found = torch.zeros(TEXTS, IMAGES, dtype=torch.bool)
    for text, images in enumerate(case["images_of_texts"]):
        found[text, images] = True
    return found


def clip_benchmark(case: dict[str, Any]) -> dict[str, list[float]]:
    """Recalls of both directions as its ``evaluate`` computes them, acc1, acc5 and mean_per_class_recall."""
    from clip_benchmark.metrics.zeroshot_classification import accuracy
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k
    from sklearn.metrics import balanced_accuracy_score

    scores, pairs = torch.tensor(case["scores"]), right(case)
    found = {
        name: [(batchify(recall_at_k, one, of, 7, "cpu", k=k) > 0).float().mean().item() for k in CUTOFFS]
        for name, one, of in (("text_to_image", scores, pairs), ("image_to_text", scores.T, pairs.T))
    }
    logits, labels = torch.tensor(case["class_scores"]), torch.tensor(case["labels"])
    balanced = balanced_accuracy_score(labels, logits.argmax(axis=1))
    return {**found, "classes": [*accuracy(logits, labels, topk=(1, 5)), float(balanced)]}


def mteb(case: dict[str, Any]) -> dict[str, list[float]]:
    """hit_rate and recall of both directions."""
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    scores, pairs = torch.tensor(case["scores"]), right(case)
    found = {}
    texts, images = [str(each) for each in case["text_ids"]], [str(each) for each in case["image_ids"]]
    for name, queries, candidates, one, of in (
        ("text_to_image", texts, images, scores, pairs),
        ("image_to_text", images, texts, scores.T, pairs.T),
    ):
        results = {q: dict(zip(candidates, row, strict=True)) for q, row in zip(queries, one.tolist(), strict=True)}
        relevant = {
            q: {c: int(each) for c, each in zip(candidates, row, strict=True) if each}
            for q, row in zip(queries, of.tolist(), strict=True)
        }
        taken = calculate_retrieval_scores(results, relevant, CUTOFFS)
        found[name] = list(taken.hit_rate.values())
        found[f"{name}_share"] = list(taken.recall.values())
    return found


def main() -> None:
    found = cases()
    for case in found.values():
        case["peers"] = {peer.__name__: peer(case) for peer in (chinese_clip, clip_benchmark, mteb)}
    print(json.dumps({"versions": {name: version(name) for name in PACKAGES}, "cases": found}))


if __name__ == "__main__":
    main()
