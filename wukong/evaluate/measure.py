"""Evaluate a model on hold-outs from image features; the results go into ``metrics.json`` and ``evaluation.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wukong.config import Classification, Holdout
from wukong.errors import DataError
from wukong.evaluate import classification, retrieval
from wukong.model.saved_model import SavedModel
from wukong.train.training_data import matching

_EXAMPLES = 8
_SHOWN = 5


@torch.inference_mode()
def retrieval_entry(
    saved: SavedModel,
    holdout: Holdout,
    keys: Sequence[str],
    pictures: Sequence[str],
    captions: Sequence[str],
    features: Tensor,
    protocol: retrieval.Captions = "distinct",
) -> dict[str, Any]:
    """Evaluate retrieval in both directions on one hold-out.

    Text to image: captions are the queries and distinct images the candidates; any image that is right for the caption
    is a hit. Image to text: distinct images are the queries and captions the candidates; any of the image's captions is
    a hit. ``wukong.evaluate.retrieval.task`` defines which captions there are and what is right.

    Args:
        saved: the model.
        holdout: the hold-out; its name and title go into the result.
        keys: keys of the pairs.
        pictures: an identifier of each pair's image, for instance the digest of its bytes.
        captions: captions of the pairs.
        features: image features of the pairs, [pairs, ...].
        protocol: which captions are used and which images are right, see ``retrieval.task``.

    Returns:
        ``holdout``, ``title``, ``images`` and ``captions`` (their numbers), ``captions_taken``; for each direction
        ``r1``, ``r5``, ``r10``; under ``chance`` the same for candidates in random order; ``examples`` with
        ``caption``, ``rank`` (0 is first) and the best ``pictures`` (``key``, ``caption``, ``right``).

    Raises:
        DataError: a vector is not finite or a similarity is NaN.
    """
    rows, texts, relevant = retrieval.task(pictures, captions, protocol)
    chosen = rows.tolist()
    image = _embedded(saved, features[rows], [keys[row] for row in chosen])
    scores = saved.model.similarity(image, saved.encode_text(texts, strict=False))
    places = {
        "text_to_image": retrieval.ranks(scores.text_to_image.T, relevant),
        "image_to_text": retrieval.ranks(scores.image_to_text, relevant.T),
    }
    counts = {"text_to_image": relevant.sum(1).tolist(), "image_to_text": relevant.sum(0).tolist()}
    sizes = {"text_to_image": len(chosen), "image_to_text": len(texts)}
    entry: dict[str, Any] = {
        "holdout": holdout.name,
        "title": holdout.title or holdout.name,
        "images": len(chosen),
        "captions": len(texts),
        "captions_taken": protocol,
        "chance": {name: _named(retrieval.chance(counts[name], sizes[name])) for name in places},
        "examples": _examples(
            texts,
            [keys[row] for row in chosen],
            [captions[row] for row in chosen],
            scores.text_to_image.T,
            relevant,
            places["text_to_image"].tolist(),
        ),
    }
    return entry | {name: _named(retrieval.recall(ranks)) for name, ranks in places.items()}


def _embedded(saved: SavedModel, features: Tensor, keys: Sequence[str]) -> Tensor:
    """Embed image features as unit vectors, [images, (tokens,) d].

    Raises:
        DataError: a vector is not finite; the message names its pair.
    """
    image = saved.model.embed_features(features.float())
    finite = torch.isfinite(image).flatten(1).all(1)
    if not finite.all():
        key = keys[int((~finite).nonzero()[0])]
        raise DataError(
            f"the vector of the picture {key} is not finite: the model's weights or the features are damaged; train "
            "again, or delete the output of the features stage"
        )
    return image


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
    """Return a few queries with their best images. The queries are spread evenly over all, whether hit or missed.

    If the image is right for the query, its caption here is the query; otherwise it is the image's first caption.
    """
    chosen = range(0, len(texts), max(1, len(texts) // _EXAMPLES))[:_EXAMPLES]
    best = scores.topk(min(_SHOWN, len(keys)), 1).indices.tolist()
    return [
        {
            "caption": texts[query],
            "rank": ranks[query],
            "pictures": [
                {
                    "key": keys[place],
                    "caption": texts[query] if relevant[query, place] else captions[place],
                    "right": bool(relevant[query, place]),
                }
                for place in best[query]
            ],
        }
        for query in chosen
    ]


@torch.inference_mode()
def classification_entry(
    saved: SavedModel,
    task: Classification,
    keys: Sequence[str],
    pictures: Sequence[str],
    urls: Sequence[str],
    features: Tensor,
    batch_size: int,
) -> dict[str, Any] | None:
    """Evaluate zero-shot classification on the images whose URL belongs to a class.

    An image in several pairs counts once in its class.

    Args:
        saved: the model.
        task: the classes; an image belongs to the first class whose pattern matches its URL.
        keys: keys of the pairs.
        pictures: an identifier of each pair's image.
        urls: URLs of the pairs' images.
        features: image features of the pairs, [pairs, ...].
        batch_size: number of captions encoded at a time.

    Returns:
        ``name``, ``title``, ``images`` (their number), ``top1``, ``top5``, ``chance`` and ``chance_top5``;
        ``candidates``, all classes; ``classes`` with ``name``, ``accuracy`` and ``images`` for each class with images;
        ``confusion``, the number of images by true class (rows) and best class (columns). None if no image belongs to
        a class.

    Raises:
        DataError: a vector is not finite or a score is NaN.
    """
    names = list(task.classes)
    belongs = torch.tensor([matching(urls, [task.classes[name]]) for name in names])
    label_of = belongs.int().argmax(0).tolist()
    firsts = {(pictures[row], label_of[row]): row for row in reversed(belongs.any(0).nonzero().squeeze(1).tolist())}
    if not firsts:
        return None
    chosen = sorted(firsts.values())
    labels = torch.tensor([label_of[row] for row in chosen])
    image = _embedded(saved, features[chosen], [keys[row] for row in chosen])
    scores = classification.class_scores(saved.model, saved.tokenizer, image, names, batch_size=batch_size)
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
    """Flatten the results to metrics by name.

    The names are ``retrieval.HOLDOUT.DIRECTION.rK`` with ``….chance_rK``, ``retrieval.HOLDOUT.mean_recall``,
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
