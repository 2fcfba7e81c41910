"""Run evaluation tasks: a model, a set or hold-out, and a protocol give results with intervals.

An ``Evaluator`` measures everything of one kind; ``EVALUATORS`` has them. ``wukong evaluate`` and the evaluate stage
both measure here.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.errors import ConfigError, DataError
from wukong.evaluate import answers, class_names, classification, prompts, retrieval, sets, vectors
from wukong.evaluate.data_set import Classification, ClassificationData, Retrieval, RetrievalData
from wukong.evaluate.model import Model, concatenate, refuse_collapsed
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.published import NotThereError
from wukong.evaluate.results import Candidate, Classified, ClassResult, Outcome, Query
from wukong.evaluate.vectors import Rows, StoredTexts, Tokens
from wukong.model.dual import Texts

log = logging.getLogger(__name__)

ALL = "all"
_BATCH_IMAGES, _BATCH_TEXTS, _LOGGED_IMAGES = 64, 4096, 5000
_EXAMPLES = 4  # of right ones, and as many of wrong ones
_SHOWN = 5  # images of a query
_MOST_CONFUSED = 50  # classes of a set whose confusions are kept


class Evaluator(Interface):
    """Measures everything of one kind. A new kind of evaluation is one more of these in ``EVALUATORS``."""

    @property
    def kind(self) -> str:
        """Its name, part of the names of the metrics."""
        ...

    def takes(self, data: object) -> bool:
        """Whether it measures sets that are read as this."""
        ...

    def measure(
        self, model: Model, data: Any, protocol: Protocol, cache: Path, encoded: Tensor | None = None
    ) -> Outcome:
        """Measure a model.

        Args:
            model: the model.
            data: what ``read`` of a set returns, or a hold-out of ``wukong.evaluate.holdouts``; ``takes`` accepts it.
            protocol: the protocol.
            cache: folder of embedded classes.
            encoded: the images' vectors, in the data's order, where they are known; None to encode the images.

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

    def measure(
        self, model: Model, data: ClassificationData, protocol: Protocol, cache: Path, encoded: Tensor | None = None
    ) -> Outcome:
        """Measure top-1, top-5 and the mean over classes; see ``Evaluator``."""
        names = data.names or [each.chinese for each in class_names.of(data.name, protocol.class_names)]
        labels = torch.from_numpy(data.labels)
        embedded = classification.embed(model, names, prompts.of(protocol.prompts, data.name), protocol, cache)
        images = _encoded(model, data, protocol, cache) if encoded is None else encoded
        scores = classification.scores(model, images, embedded, protocol)
        found = classification.measured(scores, labels, protocol, data.name, every_class=data.every_class)
        results = {"top1": found.top1, "mean_per_class": found.mean_per_class}
        chance = {"top1": 1 / len(names), "mean_per_class": 1 / len(names)}
        if found.top5 is not None:
            results["top5"], chance["top5"] = found.top5, 5 / len(names)
        # What a wrong image is taken for; where the right class ties with another, the other.
        wrong = scores.scatter(1, labels[:, None], -torch.inf).argmax(1)
        best = torch.where(found.right, labels, wrong)
        confusion = torch.bincount(labels * len(names) + best, minlength=len(names) ** 2).view(len(names), -1)
        few = len(names) <= _MOST_CONFUSED
        right, missed = found.right.nonzero().squeeze(1).tolist(), (~found.right).nonzero().squeeze(1).tolist()
        return Outcome(
            data.name,
            data.title,
            self.kind,
            data.split,
            data.digest,
            protocol.name,
            {"images": len(data), "classes": len(names)},
            found.metric,
            results,
            chance,
            _classes(names, confusion, found.classes),
            confusion.tolist() if few else (),
            tuple(names) if few else (),
            tuple(
                Classified(data.ids[i], names[int(labels[i])], names[int(best[i])], bool(found.right[i]))
                for i in (*_spread(right, _EXAMPLES), *_spread(missed, _EXAMPLES))
            ),
            answers.of_images(data.ids, data.labels, _by_image(scores, labels, protocol), data.pictures).ordered(
                data.order, sorted(data.ids)
            ),
        )


def _by_image(scores: Tensor, labels: Tensor, protocol: Protocol) -> dict[str, Tensor]:
    """Return whether each image counts as right, by result."""
    best = classification.right(scores, labels, protocol.classification_ties)
    same = protocol.mean_ties == protocol.classification_ties
    mean = best if same else classification.right(scores, labels, protocol.mean_ties)
    found = {"top1": best[:, 0], "mean_per_class": mean[:, 0]}
    return found | ({"top5": best[:, 1]} if scores.shape[1] >= 5 else {})


def _classes(names: Sequence[str], confusion: Tensor, shares: Sequence[float]) -> tuple[ClassResult, ...]:
    """Return the result of each class that has images."""
    others = confusion.clone()
    others.fill_diagonal_(0)
    most, second = others.max(1)
    return tuple(
        ClassResult(name, count, share, names[other] if times else None)
        for name, count, share, times, other in zip(
            names, confusion.sum(1).tolist(), shares, most.tolist(), second.tolist(), strict=True
        )
        if count
    )


class ImageTextRetrieval:
    """Image-text retrieval (section 5.3)."""

    kind = "retrieval"

    def takes(self, data: object) -> bool:
        """See ``Evaluator``."""
        return isinstance(data, RetrievalData)

    def measure(
        self, model: Model, data: RetrievalData, protocol: Protocol, cache: Path, encoded: Tensor | None = None
    ) -> Outcome:
        """Measure Recall@1, @5 and @10 in each direction and their mean; see ``Evaluator``."""
        if not data.answered:
            raise DataError(f"{data.title}, split {data.split}: its owner keeps the right answers; measure another one")
        both = not (data.text_to_image_only or data.name in protocol.text_to_image_only)
        pairs = retrieval.Pairs.of([caption.images for caption in data.captions], len(data), every_image=both)
        images = _encoded(model, data, protocol, cache) if encoded is None else encoded
        refuse_collapsed(images, "image")
        texts = _encoded_texts(model, [caption.text for caption in data.captions], protocol, cache)
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
        answered = answers.of_retrieval(
            found,
            pairs,
            [caption.text for caption in data.captions],
            data.image_ids,
            share=protocol.hit == "share",
            pictures=data.pictures,
        )
        order, pictures = data.order
        queries = [str(number) for number in range(pairs.texts)]
        if both:
            order = [*order, *(pairs.texts + i for i in pictures)]
            queries += [data.image_ids[i] for i in pictures]
        answered = answered.ordered(order, queries)
        random = retrieval.chance(torch.bincount(pairs.text, minlength=pairs.texts).tolist(), pairs.images)
        chance = {f"text_to_image_r{k}": value for k, value in random.items()}
        if both:
            random = retrieval.chance(torch.bincount(pairs.image, minlength=pairs.images).tolist(), pairs.texts)
            chance |= {f"image_to_text_r{k}": value for k, value in random.items()}
        first = found.text_to_image[:, 0] > 0
        right, missed = first.nonzero().squeeze(1).tolist(), (~first).nonzero().squeeze(1).tolist()
        return Outcome(
            data.name,
            data.title,
            self.kind,
            data.split,
            data.digest,
            protocol.name,
            {"images": len(data), "captions": pairs.texts},
            "mean_recall",
            answered.intervals(),
            chance,
            examples=_queries(model, data, images, texts, [*_spread(right, _EXAMPLES), *_spread(missed, _EXAMPLES)]),
            answers=answered,
        )


def _queries(
    model: Model, data: RetrievalData, images: Rows, texts: Texts | StoredTexts, numbers: Sequence[int]
) -> tuple[Query, ...]:
    """Search images by some of the captions, for the report. A caption of each image stands with it."""
    if not numbers:
        return ()
    asked = concatenate([vectors.block(texts, slice(number, number + 1)) for number in numbers])
    blocks = [model.similarity(images[rows], asked).text_to_image.T.float() for rows in vectors.slices(len(images))]
    scores = torch.cat(blocks, 1)
    first: dict[int, str] = {}
    for caption in data.captions:
        for image in caption.images:
            first.setdefault(image, caption.text)
    queries = []
    for row, number in zip(scores, numbers, strict=True):
        caption = data.captions[number]
        right = torch.zeros(len(data), dtype=torch.bool)
        right[list(caption.images)] = True
        rank = int(((row >= row[right].max()) & ~right).sum())
        candidates = tuple(
            Candidate(data.image_ids[i], caption.text if right[i] else first.get(i, ""), bool(right[i]))
            for i in row.topk(min(_SHOWN, len(data))).indices.tolist()
        )
        queries.append(Query(caption.text, rank, candidates))
    return tuple(queries)


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    """Choose some of the numbers, spread evenly over all."""
    return list(numbers[:: max(1, len(numbers) // count)][:count]) if numbers else []


EVALUATORS: tuple[Evaluator, ...] = (ZeroShot(), ImageTextRetrieval())
"""All evaluators. The first that takes the data measures it."""


@dataclass(frozen=True)
class Read:
    """What was read of the chosen tasks.

    Attributes:
        data: of each task that is there, by its name.
        missing: for each task that is not there, what to download and where to put it; only for ``all``.
    """

    data: Mapping[str, ClassificationData | RetrievalData]
    missing: Mapping[str, str]


def chosen(tasks: str, holdouts: Sequence[str] = ()) -> list[str]:
    """Return the names in a comma-separated list, or all for ``all``: sets in the registry's order, then hold-outs.

    Args:
        tasks: the list.
        holdouts: names of the hold-outs' tasks, of an experiment.

    Raises:
        ConfigError: there is no such task, or no name.
    """
    known = [*sets.REGISTRY, *holdouts]
    asked = [name.strip() for name in tasks.split(",") if name.strip()]
    if not asked:
        raise ConfigError(f"tasks: {tasks!r} names none; allowed: {ALL}, or some of {', '.join(known)}")
    if asked == [ALL]:
        return known
    for name in asked:
        if name not in known:
            hint = "" if holdouts else "; hold-outs are those of --config"
            raise ConfigError(f"tasks: there is no evaluation set {name!r}: take some of {', '.join(known)}{hint}")
    return [name for name in known if name in asked]


def read(names: Sequence[str], folders: Mapping[str, Path], root: Path, protocol: Protocol, *, skip: bool) -> Read:
    """Read sets before any model works: ids and labels, no images.

    Args:
        names: of sets.
        folders: folders of some sets; the others' is the folder with their name below ``root``.
        root: the folder that holds all sets.
        protocol: says which split is read.
        skip: whether a set that is not there is left out, and not an error.

    Raises:
        ConfigError: there is no such set.
        NotThereError: a set is not there.
        DataError: a set is damaged, or is not the published one.
    """
    found: dict[str, ClassificationData | RetrievalData] = {}
    missing: dict[str, str] = {}
    for name in names:
        data_set: Classification | Retrieval = sets.of(name)
        try:
            found[name] = data_set.read(folders.get(name, root / name), protocol.split(name))
        except NotThereError as error:
            if not skip:
                raise
            missing[name] = str(error)
    return Read(found, missing)


def measure(
    model: Model,
    data: ClassificationData | RetrievalData,
    protocol: Protocol,
    cache: Path,
    encoded: Tensor | None = None,
) -> Outcome:
    """Measure one task with the evaluator that takes its data; see ``Evaluator.measure``.

    Raises:
        DataError: see ``Evaluator.measure``.
        ConfigError: no evaluator takes the data.
    """
    for evaluator in EVALUATORS:
        if evaluator.takes(data):
            with torch.inference_mode():
                return evaluator.measure(model, data, protocol, cache, encoded)
    raise ConfigError(f"no evaluator takes {data.name}, which is read as {type(data).__name__}")


def _encoded(model: Model, data: ClassificationData | RetrievalData, protocol: Protocol, cache: Path) -> Rows:
    """Encode all images of a set; a batch of them is decoded at a time. Vectors of tokens go to a file in the cache."""
    parts: list[Tensor] = []
    stored = Tokens(cache) if model.token_wise else None
    for start in range(0, len(data), _BATCH_IMAGES):
        pictures = [data.image(i) for i in range(start, min(start + _BATCH_IMAGES, len(data)))]
        found = model.encode_images(pictures, protocol)
        if stored is None:
            parts.append(found)
        else:
            stored.append(found)
        if start // _LOGGED_IMAGES != (start + len(pictures)) // _LOGGED_IMAGES:
            log.info("%s: %d of %d images encoded", data.name, start + len(pictures), len(data))
    return torch.cat(parts) if stored is None else stored


def _encoded_texts(model: Model, texts: Sequence[str], protocol: Protocol, cache: Path) -> Texts | StoredTexts:
    """Encode texts. Vectors of tokens go to a file in the cache, some thousand texts at a time."""
    if not model.token_wise:
        return model.encode_texts(texts, protocol)
    stored, counted = Tokens(cache), []
    # Parts of one size: a model refuses texts of which it knows few words, and a part of few texts may be of such.
    for rows in np.array_split(np.arange(len(texts)), math.ceil(len(texts) / _BATCH_TEXTS)):
        found = model.encode_texts([texts[row] for row in rows], protocol)
        ends = (found.counted * torch.arange(1, found.counted.shape[1] + 1)).amax(1)
        stored.append(found.vectors, ends)
        counted.append(found.counted)
    longest = max(each.shape[1] for each in counted)
    padded = [F.pad(each, (0, longest - each.shape[1])) for each in counted]
    return StoredTexts(stored, torch.cat(padded))
