"""Measuring a model on hold-outs from image features: what goes into ``metrics.json`` and ``evaluation.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wukong.config import Classification, Holdout
from wukong.errors import DataError
from wukong.evaluate import classification, retrieval
from wukong.model.saved_model import Package
from wukong.train.data import matching

_EXAMPLES = 8
_SHOWN = 5


@torch.inference_mode()
def retrieval_entry(
    package: Package,
    holdout: Holdout,
    keys: Sequence[str],
    pictures: Sequence[str],
    captions: Sequence[str],
    features: Tensor,
    taken: retrieval.Captions = "distinct",
) -> dict[str, Any]:
    """Retrieval in both directions on one hold-out.

    Text to image: the queries are the captions, the candidates the distinct pictures; a query is answered by any
    picture that is right for it. Image to text: the queries are the distinct pictures, the candidates the captions; any
    of the picture's captions answers it. ``wukong.evaluate.retrieval.task`` says which captions and what is right.

    Args:
        package: the model.
        holdout: names the entry.
        keys: of the pairs.
        pictures: of the pairs, the digest of the picture's bytes or what else tells it from others.
        captions: of the pairs.
        features: of the pairs' pictures, [pairs, ...].
        taken: which captions.

    Returns:
        ``holdout``, ``title``, ``images``, ``captions`` (how many), ``captions_taken``; for each direction ``r1``,
        ``r5``, ``r10``; under ``chance`` the same for candidates in random order; ``examples`` with ``caption``,
        ``rank`` (0 is first) and the first ``pictures`` (``key``, ``caption``, ``right``).

    Raises:
        DataError: a vector or a similarity is not a number.
    """
    rows, texts, relevant = retrieval.task(pictures, captions, taken)
    chosen = rows.tolist()
    image = _embedded(package, features[rows], [keys[row] for row in chosen])
    scores = package.model.similarity(image, package.encode_text(texts, strict=False))
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
        "captions_taken": taken,
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


def _embedded(package: Package, features: Tensor, keys: Sequence[str]) -> Tensor:
    """Unit vectors of pictures, [pictures, (tokens,) d]; one that is not finite is an error that names its pair."""
    image = package.model.embed_features(features.float())
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
    """A few queries with their first pictures, spread evenly over all queries: found and missed as they come.

    A picture of several captions is shown with the query where that is right, and with its first one elsewhere.
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
    package: Package,
    task: Classification,
    keys: Sequence[str],
    pictures: Sequence[str],
    urls: Sequence[str],
    features: Tensor,
    batch_size: int,
) -> dict[str, Any] | None:
    """Zero-shot classification of those pictures whose URL belongs to a class; None where none does.

    A picture that stands in several pairs counts once in its class.

    Args:
        package: the model.
        task: the classes; a picture belongs to the first whose pattern its URL matches.
        keys: of the pairs.
        pictures: of the pairs, what tells a picture from others.
        urls: of the pairs' pictures.
        features: of the pairs' pictures, [pairs, ...].
        batch_size: captions encoded at a time.

    Returns:
        ``name``, ``title``, ``images``, ``top1``, ``top5``, their ``chance`` and ``chance_top5``, ``classes`` with
        ``name``, ``accuracy`` and ``images``; classes without pictures stay candidates but have no entry. All classes
        are the ``candidates``; ``confusion`` counts pictures by true class (rows) and first answer (columns).

    Raises:
        DataError: a vector or a score is not a number.
    """
    names = list(task.classes)
    belongs = torch.tensor([matching(urls, [task.classes[name]]) for name in names])
    label_of = belongs.int().argmax(0).tolist()
    firsts = {(pictures[row], label_of[row]): row for row in reversed(belongs.any(0).nonzero().squeeze(1).tolist())}
    if not firsts:
        return None
    chosen = sorted(firsts.values())
    labels = torch.tensor([label_of[row] for row in chosen])
    image = _embedded(package, features[chosen], [keys[row] for row in chosen])
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
