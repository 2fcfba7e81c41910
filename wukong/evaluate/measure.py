"""Measuring a model on hold-outs from image features: what goes into ``metrics.json`` and ``evaluation.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wukong.config import Classification, Holdout
from wukong.evaluate import classification, retrieval
from wukong.model.package import Package
from wukong.train.data import matching

_EXAMPLES = 8
_SHOWN = 5


@torch.inference_mode()
def retrieval_entry(
    package: Package, holdout: Holdout, keys: Sequence[str], captions: Sequence[str], features: Tensor
) -> dict[str, Any]:
    """Retrieval in both directions on one hold-out.

    Text to image: the queries are the distinct captions, the candidates all pictures, and every picture with the
    query's caption is right. Image to text: the queries are the pictures, the candidates the distinct captions.

    Args:
        package: the model.
        holdout: names the entry.
        keys: of the pairs.
        captions: of the pairs.
        features: of the pairs' pictures, [pairs, ...].

    Returns:
        ``holdout``, ``title``, ``images``, ``captions``; for each direction ``r1``, ``r5``, ``r10``; under ``chance``
        the same for candidates in random order; ``examples`` with ``caption``, ``rank`` (0 is first) and the first
        ``pictures`` (``key``, ``caption``, ``right``).
    """
    texts, relevant = retrieval.distinct(captions)
    image = package.model.embed_features(features.float())
    scores = package.model.similarity(image, package.encode_text(texts, strict=False))
    places = {
        "text_to_image": retrieval.ranks(scores.text_to_image.T, relevant),
        "image_to_text": retrieval.ranks(scores.image_to_text, relevant.T),
    }
    counts = {"text_to_image": relevant.sum(1).tolist(), "image_to_text": [1] * len(captions)}
    sizes = {"text_to_image": len(captions), "image_to_text": len(texts)}
    entry: dict[str, Any] = {
        "holdout": holdout.name,
        "title": holdout.title or holdout.name,
        "images": len(captions),
        "captions": len(texts),
        "chance": {name: _named(retrieval.chance(counts[name], sizes[name])) for name in places},
        "examples": _examples(
            texts, keys, captions, scores.text_to_image.T, relevant, places["text_to_image"].tolist()
        ),
    }
    return entry | {name: _named(retrieval.recall(ranks)) for name, ranks in places.items()}


def _named(recall: Mapping[int, float]) -> dict[str, float]:
    return {f"r{k}": value for k, value in recall.items()}


def _examples(
    texts: Sequence[str],
    keys: Sequence[str],
    captions: Sequence[str],
    scores: Tensor,
    relevant: Tensor,
    ranks: Sequence[int],
) -> list[dict[str, Any]]:
    """A few queries with their first pictures, spread evenly over all queries: found and missed as they come."""
    chosen = range(0, len(texts), max(1, len(texts) // _EXAMPLES))[:_EXAMPLES]
    best = scores.topk(min(_SHOWN, len(keys)), 1).indices.tolist()
    return [
        {
            "caption": texts[query],
            "rank": ranks[query],
            "pictures": [
                {"key": keys[place], "caption": captions[place], "right": bool(relevant[query, place])}
                for place in best[query]
            ],
        }
        for query in chosen
    ]


@torch.inference_mode()
def classification_entry(
    package: Package, task: Classification, urls: Sequence[str], features: Tensor, batch_size: int
) -> dict[str, Any] | None:
    """Zero-shot classification of those pictures whose URL belongs to a class; None where none does.

    Args:
        package: the model.
        task: the classes; a picture belongs to the first whose pattern its URL matches.
        urls: of the pictures.
        features: of the pictures, [pictures, ...].
        batch_size: captions encoded at a time.

    Returns:
        ``name``, ``title``, ``images``, ``top1``, ``top5``, their ``chance`` and ``chance_top5``, ``classes`` with
        ``name``, ``accuracy`` and ``images``; classes without pictures stay candidates but have no entry. All classes
        are the ``candidates``; ``confusion`` counts pictures by true class (rows) and first answer (columns).
    """
    names = list(task.classes)
    belongs = torch.tensor([matching(urls, [task.classes[name]]) for name in names])
    chosen = belongs.any(0).nonzero().squeeze(1)
    if not len(chosen):
        return None
    labels = belongs[:, chosen].int().argmax(0)
    image = package.model.embed_features(features[chosen].float())
    scores = classification.class_scores(package.model, package.tokenizer, image, names, batch_size=batch_size)
    by_class = classification.per_class(scores, labels)
    images = torch.bincount(labels, minlength=len(names)).tolist()
    return {
        "name": task.name,
        "title": task.title or task.name,
        "images": len(chosen),
        "top1": classification.accuracy(scores, labels),
        "top5": classification.accuracy(scores, labels, 5),
        "chance": 1 / len(names),
        "chance_top5": min(1.0, 5 / len(names)),
        "candidates": names,
        "confusion": torch.bincount(labels * len(names) + scores.argmax(1), minlength=len(names) ** 2)
        .view(len(names), len(names))
        .tolist(),
        "classes": [
            {"name": name, "accuracy": accuracy, "images": count}
            for name, accuracy, count in zip(names, by_class, images, strict=True)
            if count
        ],
    }


def metrics_of(retrieval_entries: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Flatten entries to named numbers.

    Names are ``retrieval.HOLDOUT.DIRECTION.rK`` with ``….chance_rK``, ``retrieval.HOLDOUT.mean_recall``,
    ``retrieval.mean_recall`` (the mean over hold-outs of the mean of both directions' recalls, the paper's MR),
    ``classification.NAME.top1``, ``….top5``, ``….chance``, and ``classification.mean_top1``.
    """
    metrics: dict[str, float] = {}
    means = []
    for entry in retrieval_entries:
        prefix = f"retrieval.{entry['holdout']}"
        recalls = []
        for direction in ("text_to_image", "image_to_text"):
            metrics |= {f"{prefix}.{direction}.{name}": value for name, value in entry[direction].items()}
            chance = entry["chance"][direction]
            metrics |= {f"{prefix}.{direction}.chance_{name}": value for name, value in chance.items()}
            recalls += list(entry[direction].values())
        means.append(sum(recalls) / len(recalls))
        metrics[f"{prefix}.mean_recall"] = means[-1]
    if means:
        metrics["retrieval.mean_recall"] = sum(means) / len(means)
    for task in tasks:
        metrics |= {f"classification.{task['name']}.{name}": task[name] for name in ("top1", "top5", "chance")}
    if tasks:
        metrics["classification.mean_top1"] = sum(task["top1"] for task in tasks) / len(tasks)
    return metrics
