"""Run evaluation tasks: a model, a set and a named protocol give results with intervals.

A task is one set of ``wukong.evaluate.sets``. An ``Evaluator`` measures all sets of one kind; ``EVALUATORS`` has them.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor

from wukong.errors import ConfigError, DataError
from wukong.evaluate import class_names, classification, prompts, retrieval, sets
from wukong.evaluate.data_set import Classification, ClassificationData, Retrieval, RetrievalData
from wukong.evaluate.interval import Interval
from wukong.evaluate.model import Model, refuse_collapsed
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.published import NotThereError

log = logging.getLogger(__name__)

ALL = "all"
FORMAT = 1
_BATCH_IMAGES, _LOGGED_IMAGES = 64, 5000


@dataclass(frozen=True)
class Outcome:
    """The results of one task.

    Attributes:
        task: name of the set.
        title: its title.
        kind: name of the evaluator, which is part of the metrics' names.
        split: the split that was measured.
        digest: SHA-256 of what was measured: ids, and labels or captions.
        sizes: numbers of images, and of classes or captions.
        headline: name of the result that is the protocol's number.
        results: each result with its interval, as shares of 1.
        chance: the result of a random order, for some of the results.
        classes: Chinese name, number of images and top-1 of each class, in label order; empty for retrieval.
    """

    task: str
    title: str
    kind: str
    split: str
    digest: str
    sizes: Mapping[str, int]
    headline: str
    results: Mapping[str, Interval]
    chance: Mapping[str, float]
    classes: Sequence[tuple[str, int, float]] = ()


class Evaluator(Interface):
    """Measures all sets of one kind. A new kind of evaluation is one more of these in ``EVALUATORS``."""

    @property
    def kind(self) -> str:
        """Its name, part of the names of the metrics."""
        ...

    def takes(self, data: object) -> bool:
        """Whether it measures sets that are read as this."""
        ...

    def measure(self, model: Model, data: Any, title: str, protocol: Protocol, cache: Path) -> Outcome:
        """Measure a model.

        Args:
            model: the model.
            data: what ``read`` of a set returns; ``takes`` accepts it.
            title: the set's title.
            protocol: the protocol.
            cache: folder of embedded classes.

        Raises:
            DataError: a vector is not finite, all are equal, or the set cannot be measured; no result is made up.
        """
        ...


class ZeroShot:
    """Zero-shot classification (section 5.2)."""

    kind = "classification"

    def takes(self, data: object) -> bool:
        """See ``Evaluator``."""
        return isinstance(data, ClassificationData)

    def measure(self, model: Model, data: ClassificationData, title: str, protocol: Protocol, cache: Path) -> Outcome:
        """Measure top-1, top-5 and the mean over classes; see ``Evaluator``."""
        names = _names(data.name, protocol)
        labels = torch.from_numpy(data.labels)
        embedded = classification.embed(model, names, prompts.of(protocol.prompts, data.name), protocol, cache)
        scores = classification.scores(model, _encoded(model, data, protocol), embedded, protocol)
        found = classification.measured(scores, labels, protocol, data.name)
        results = {"top1": found.top1, "mean_per_class": found.mean_per_class}
        chance = {"top1": 1 / len(names), "mean_per_class": 1 / len(names)}
        if found.top5 is not None:
            results["top5"], chance["top5"] = found.top5, 5 / len(names)
        counts = torch.bincount(labels, minlength=len(names)).tolist()
        return Outcome(
            data.name,
            title,
            self.kind,
            data.split,
            data.digest,
            {"images": len(data), "classes": len(names)},
            found.metric,
            results,
            chance,
            tuple(zip(names, counts, found.classes, strict=True)),
        )


class ImageTextRetrieval:
    """Image-text retrieval (section 5.3)."""

    kind = "retrieval"

    def takes(self, data: object) -> bool:
        """See ``Evaluator``."""
        return isinstance(data, RetrievalData)

    def measure(self, model: Model, data: RetrievalData, title: str, protocol: Protocol, cache: Path) -> Outcome:
        """Measure Recall@1, @5 and @10 in each direction and their mean; see ``Evaluator``."""
        if not data.answered:
            raise DataError(f"{title}, split {data.split}: its owner keeps the right answers; measure another split")
        both = not (data.text_to_image_only or data.name in protocol.text_to_image_only)
        pairs = retrieval.Pairs.of([caption.images for caption in data.captions], len(data), every_image=both)
        images = _encoded(model, data, protocol)
        refuse_collapsed(images, "image")
        texts = model.encode_texts([caption.text for caption in data.captions], protocol)
        refuse_collapsed(texts.vectors, "caption", texts.counted if texts.vectors.ndim == 3 else None)
        found = retrieval.search(
            images,
            texts,
            pairs,
            model.similarity,
            protocol.retrieval_ties,
            both=both,
            image_ids=data.image_ids,
            text_ids=[str(number) for number in range(pairs.texts)],
        )
        result = retrieval.result(found, pairs, protocol.hit)
        results = {f"text_to_image_r{k}": value for k, value in result.text_to_image.items()}
        results |= {f"image_to_text_r{k}": value for k, value in result.image_to_text.items()}
        random = retrieval.chance(torch.bincount(pairs.text, minlength=pairs.texts).tolist(), pairs.images)
        chance = {f"text_to_image_r{k}": value for k, value in random.items()}
        if both:
            random = retrieval.chance(torch.bincount(pairs.image, minlength=pairs.images).tolist(), pairs.texts)
            chance |= {f"image_to_text_r{k}": value for k, value in random.items()}
        return Outcome(
            data.name,
            title,
            self.kind,
            data.split,
            data.digest,
            {"images": len(data), "captions": pairs.texts},
            "mean_recall",
            {**results, "mean_recall": result.mean},
            chance,
        )


EVALUATORS: tuple[Evaluator, ...] = (ZeroShot(), ImageTextRetrieval())
"""All evaluators. The first that takes a set's data measures it."""


@dataclass(frozen=True)
class Read:
    """What was read of the chosen tasks.

    Attributes:
        data: of each task that is there, by its name.
        missing: for each task that is not there, what to download and where to put it; only for ``all``.
    """

    data: Mapping[str, ClassificationData | RetrievalData]
    missing: Mapping[str, str]


def chosen(tasks: str) -> list[str]:
    """Return the names of the sets in a comma-separated list, or all for ``all``, in the registry's order.

    Raises:
        ConfigError: there is no such set, or no name.
    """
    asked = [name.strip() for name in tasks.split(",") if name.strip()]
    if not asked:
        raise ConfigError(f"tasks: {tasks!r} names none; allowed: {ALL}, or some of {', '.join(sets.REGISTRY)}")
    if asked == [ALL]:
        return list(sets.REGISTRY)
    for name in asked:
        sets.of(name)
    return [name for name in sets.REGISTRY if name in asked]


def read(tasks: str, folders: Mapping[str, Path], root: Path, protocol: Protocol) -> Read:
    """Read the sets of the chosen tasks before any model works: ids and labels, no images.

    Args:
        tasks: ``all``, or names of sets with commas between them.
        folders: folders of some sets; the others' is the folder with their name below ``root``.
        root: the folder that holds all sets.
        protocol: says which split is read.

    Raises:
        ConfigError: there is no such task.
        NotThereError: a set that was named is not there, or with ``all``, no set is.
        DataError: a set is damaged, or is not the published one.
    """
    found: dict[str, ClassificationData | RetrievalData] = {}
    missing: dict[str, str] = {}
    names = chosen(tasks)
    for name in names:
        data_set: Classification | Retrieval = sets.of(name)
        try:
            found[name] = data_set.read(folders.get(name, root / name), protocol.split(name))
        except NotThereError as error:
            if tasks.strip() != ALL:
                raise
            missing[name] = str(error)
    if not found:
        raise NotThereError(
            f"none of the {len(names)} sets is in {root}: each needs a folder with its name there, for instance "
            f"{root / names[0]}; docs/evaluation-sets.md says how to get them"
        )
    return Read(found, missing)


def measure(model: Model, name: str, data: object, protocol: Protocol, cache: Path) -> Outcome:
    """Measure one task with the evaluator that takes its data.

    Raises:
        DataError: see ``Evaluator.measure``.
        ConfigError: no evaluator takes the data.
    """
    for evaluator in EVALUATORS:
        if evaluator.takes(data):
            with torch.inference_mode():
                return evaluator.measure(model, data, sets.of(name).title, protocol, cache)
    raise ConfigError(f"no evaluator takes {name}, which is read as {type(data).__name__}")


def as_json(
    model: Model, protocol: Protocol, outcomes: Sequence[Outcome], missing: Mapping[str, str]
) -> dict[str, Any]:
    """Return all results as JSON: the model, the protocol's sentences, each task's results with their intervals."""
    return {
        "format": FORMAT,
        "model": {"name": model.name, "digest": model.digest, "token_wise": model.token_wise},
        "protocol": {"name": protocol.name, "settings": protocol.describe()},
        "tasks": [
            {
                "task": each.task,
                "title": each.title,
                "kind": each.kind,
                "split": each.split,
                "digest": each.digest,
                "protocol": protocol.name,
                "sizes": dict(each.sizes),
                "headline": each.headline,
                "results": {name: asdict(value) for name, value in each.results.items()},
                "chance": dict(each.chance),
                "classes": [{"name": name, "images": images, "top1": share} for name, images, share in each.classes],
            }
            for each in outcomes
        ],
        "missing": dict(missing),
    }


def metrics_of(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Flatten results to metrics with stable names: ``eval/KIND/TASK/RESULT``, and ``…_low``, ``…_high``."""
    return {
        f"eval/{each.kind}/{each.task}/{name}{suffix}": number
        for each in outcomes
        for name, value in each.results.items()
        for suffix, number in (("", value.value), ("_low", value.low), ("_high", value.high))
    }


def _names(name: str, protocol: Protocol) -> list[str]:
    data_set = sets.of(name)
    if isinstance(data_set, Classification) and data_set.names is not None:
        return [each.chinese for each in data_set.classes]  # a set that is not in the paper has one list
    return [each.chinese for each in class_names.of(name, protocol.class_names)]


def _encoded(model: Model, data: ClassificationData | RetrievalData, protocol: Protocol) -> Tensor:
    """Encode all images of a set; a batch of them is decoded at a time."""
    parts = []
    for start in range(0, len(data), _BATCH_IMAGES):
        pictures = [data.image(i) for i in range(start, min(start + _BATCH_IMAGES, len(data)))]
        parts.append(model.encode_images(pictures, protocol))
        if start // _LOGGED_IMAGES != (start + len(pictures)) // _LOGGED_IMAGES:
            log.info("%s: %d of %d images encoded", data.name, start + len(pictures), len(data))
    return torch.cat(parts)
