"""Zero-shot classification with prompts (section 5.2), of any ``wukong.evaluate.model.Model``.

``embed`` encodes the classes, ``scores`` compares images with them, ``judged`` says which count as right, ``measured``
gives results with intervals. All work in pieces that fit in memory.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.errors import DataError
from wukong.evaluate import candidates, interval
from wukong.evaluate.blocks import Files
from wukong.evaluate.interval import Interval
from wukong.evaluate.model import Model, refuse_collapsed, refuse_not_finite
from wukong.evaluate.protocol import Metric, Protocol, Ties
from wukong.evaluate.retrieval import hits, refuse_not_a_number
from wukong.evaluate.vectors import Rows, slices
from wukong.model.dual import Texts

_FORMAT = 1
PIECE_CLASSES = 50
IMAGES = 4096
"""Images that are compared with all classes at a time. For each time the classes' texts are read."""
_BLOCK_PRODUCTS = 2**23
"""The most products of image tokens and text tokens in a block: 32 MiB in float32."""
_BEST = 5
_COMPUTED_AGAIN = 16
"""Rough scores of an image that are computed again at least."""


@dataclass(frozen=True)
class Classes:
    """Embedded classes, in pieces of a few classes in files.

    Attributes:
        names: the names, in label order.
        prompts: number of prompts of each class.
        vectors: unit vectors [classes, d] of a model with global vectors; None for a token-wise one.
        pieces: names of files with the texts of some classes each, class by class and prompt by prompt, for a
            token-wise model.
        files: where they are.
    """

    names: tuple[str, ...]
    prompts: int
    vectors: Tensor | None
    pieces: tuple[str, ...] = ()
    files: Files | None = None

    def texts(self) -> Iterator[Texts]:
        """Read the pieces in order: the texts of ``len(vectors) // prompts`` classes each, [texts, tokens, d]."""
        return (texts for _, texts in self.texts_of(torch.ones(len(self.names), dtype=torch.bool)))

    def texts_of(self, wanted: Tensor) -> Iterator[tuple[int, Texts]]:
        """Read the pieces in which a class is wanted, bool [classes]; with the label of each piece's first class."""
        pieces = [number for number, some in enumerate(wanted.split(PIECE_CLASSES)) if some.any()]
        stored = self.files.read_in_turn([self.pieces[number] for number in pieces]) if self.files else iter(())
        return ((number * PIECE_CLASSES, Texts(**each)) for number, each in zip(pieces, stored, strict=True))


def key(model: Model, names: Sequence[str], prompts: Sequence[str], protocol: Protocol) -> str:
    """Compute the digest by which embedded classes are found again: of all that they depend on."""
    parts = [_FORMAT, model.digest, model.token_wise, list(names), list(prompts), protocol.context, protocol.writing]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


@torch.inference_mode()
def embed(model: Model, names: Sequence[str], prompts: Sequence[str], protocol: Protocol, cache: Files) -> Classes:
    """Embed the classes, or find them in the cache.

    The vector of a class of a global model is the normalised mean of its prompts' vectors. Of a token-wise model, the
    vectors of all tokens are stored: those of 1,000 classes and 80 prompts are about 1.6 GB at 256 numbers a token, so
    they are written and read in pieces of 50 classes, and no process keeps them.

    Args:
        model: the model.
        names: names of the classes, in label order; equal names are allowed (太阳镜 stands twice in ImageNet).
        prompts: templates, each with one ``{}`` for the name.
        protocol: how texts are written and cut.
        cache: embedded classes.

    Raises:
        DataError: there are fewer than two classes or no prompt; the vectors are not finite or all equal.
    """
    if len(set(names)) < 2 or not prompts or any(prompt.count("{}") != 1 for prompt in prompts):
        raise DataError(
            f"{len(set(names))} classes and {len(prompts)} prompts: give two or more classes, and prompts with one {{}}"
        )
    for first in range(0, len(names), PIECE_CLASSES):
        embed_piece(model, names, prompts, protocol, cache, first)
    own = key(model, names, prompts, protocol)
    pieces = [_piece(own, first) for first in range(0, len(names), PIECE_CLASSES)]
    if model.token_wise:
        return Classes(tuple(names), len(prompts), None, tuple(pieces), cache)
    vectors = torch.cat([each["vectors"] for each in cache.read_in_turn(pieces)])
    refuse_collapsed(vectors, "class")
    return Classes(tuple(names), len(prompts), vectors)


@torch.inference_mode()
def embed_piece(
    model: Model, names: Sequence[str], prompts: Sequence[str], protocol: Protocol, cache: Files, first: int
) -> None:
    """Embed ``PIECE_CLASSES`` classes, the first by its label, if they are not in the cache; arguments as ``embed``."""
    piece = _piece(key(model, names, prompts, protocol), first)
    if cache.has(piece):
        return
    part = names[first : first + PIECE_CLASSES]
    texts = model.encode_texts([prompt.format(name) for name in part for prompt in prompts], protocol)
    refuse_not_finite(texts.vectors, "text")
    if model.token_wise and not first:
        refuse_collapsed(texts.vectors.float(), "text", texts.counted)
    cache.write(piece, texts._asdict() if model.token_wise else {"vectors": _means(texts.vectors, len(part))})


def _piece(own: str, first: int) -> str:
    return f"{own}/{first:06d}"


def _means(vectors: Tensor, classes: int) -> Tensor:
    return F.normalize(F.normalize(vectors, dim=-1).view(classes, -1, vectors.shape[-1]).mean(1), dim=-1)


@torch.inference_mode()
def scores(model: Model, images: Rows, classes: Classes, protocol: Protocol) -> Tensor:
    """Compute the score of every image for every class, float32 [images, classes].

    With global vectors it is the dot product with the class's vector. Token-wise it is the mean over prompts of the
    similarity of image to text, s^I, or of its softmax over classes, as the protocol says. One block of images and of
    texts at a time is in memory.

    Many token-wise scores are computed roughly first (``Model.rough_image_to_text``). Then those that may be among an
    image's best five are computed again in float32 (``wukong.evaluate.candidates``). So the best five, their order and
    their scores are those of float32; the scores further down stay rough.

    Args:
        model: the model that encoded both.
        images: unit vectors, [images, (tokens,) d].
        classes: what ``embed`` returned.
        protocol: how the prompts of a class become one token-wise score.

    Raises:
        DataError: the images' vectors are not finite or all equal, or a score is NaN.
    """
    refuse_collapsed(images, "image")
    return compare(model, images, classes, protocol)


@torch.inference_mode()
def compare(model: Model, images: Rows, classes: Classes, protocol: Protocol) -> Tensor:
    """Compute the scores as ``scores`` does, of images which may be few, so that equal ones are no error."""
    if classes.vectors is not None:
        products = images[0 : len(images)] @ classes.vectors.T
    else:
        one = _mean_softmax if protocol.aggregation == "softmax" else _mean_similarity
        products = torch.cat([one(model, images[rows], classes) for rows in slices(len(images), IMAGES)])
    refuse_not_a_number(products, "image", "class")
    return products


def _mean_similarity(model: Model, images: Tensor, classes: Classes) -> Tensor:
    """Mean over prompts of the similarity, of some images; of the best classes in float32."""
    again = candidates.first(len(images), len(classes.names), _COMPUTED_AGAIN)
    rough = None if again is None else _rough(model, images, classes)
    if again is None or rough is None:
        columns = [_mean_of_prompts(model.image_to_text(images, texts), classes) for texts in classes.texts()]
        return torch.cat(columns, 1)
    scores = rough

    def near(exact: Tensor, margin: float) -> Tensor:
        fifth = scores.masked_fill(~exact, -torch.inf).topk(_BEST, 1).values[:, -1:]
        return scores >= fifth - margin

    wanted = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(again, 1).indices, True)
    candidates.decide(wanted, lambda asked: _compute_again(model, images, classes, asked, scores), near)
    return scores


def _rough(model: Model, images: Tensor, classes: Classes) -> Tensor | None:
    columns = []
    for texts in classes.texts():
        each = model.rough_image_to_text(images, texts)
        if each is None:
            return None
        columns.append(_mean_of_prompts(each, classes))
    return torch.cat(columns, 1)


def _mean_of_prompts(similarities: Tensor, classes: Classes) -> Tensor:
    return similarities.view(len(similarities), -1, classes.prompts).mean(2)


def _compute_again(model: Model, images: Tensor, classes: Classes, wanted: Tensor, scores: Tensor) -> float:
    """Put scores in float32 where they are wanted, bool [images, classes]; return the largest change."""
    error = 0.0
    for first, texts in classes.texts_of(wanted.any(0)):
        for place, start in enumerate(range(0, len(texts.vectors), classes.prompts)):
            number = first + place
            rows = wanted[:, number].nonzero().squeeze(1)
            if len(rows):
                prompts = slice(start, start + classes.prompts)
                part = Texts(texts.vectors[prompts], texts.counted[prompts])
                score = model.image_to_text(images[rows], part).mean(1)
                error = max(error, float((score - scores[rows, number]).abs().max()))
                scores[rows, number] = score
    return error


def _mean_softmax(model: Model, images: Tensor, classes: Classes) -> Tensor:
    """Mean over prompts of the softmax over classes, of some images at a time."""
    blocks = images.split(max(1, _BLOCK_PRODUCTS // (len(classes.names) * classes.prompts)))
    similarities = [[model.image_to_text(block, texts) for block in blocks] for texts in classes.texts()]
    parts = []
    for each in zip(*similarities, strict=True):
        logits = model.scale * torch.cat(each, 1).view(-1, len(classes.names), classes.prompts)
        parts.append(logits.softmax(1).mean(2))
    return torch.cat(parts)


class Judged(NamedTuple):
    """Which images count as right; that of parts of a set is joined.

    Attributes:
        labels: the right classes, int64 [images].
        right: whether each image's class is the best, and whether it is among the best five, bool [images, 2].
        mean: whether it is the best for the mean over classes, bool [images].
        best: what each image is taken for; where the right class ties with another, the other, int64 [images].
    """

    labels: Tensor
    right: Tensor
    mean: Tensor
    best: Tensor


@dataclass(frozen=True)
class Measured:
    """Results of a classification set, with intervals.

    Attributes:
        metric: which one is the protocol's number.
        top1: share of images whose class is the best.
        top5: share of images whose class is among the best five; None with fewer than five classes.
        mean_per_class: mean over classes of the share of its images whose class is the best.
        classes: top-1 of each class, whose mean is ``mean_per_class``; NaN for a class without images.
    """

    metric: Metric
    top1: Interval
    top5: Interval | None
    mean_per_class: Interval
    classes: tuple[float, ...]


def right(found: Tensor, labels: Tensor, ties: Ties) -> Tensor:
    """Compute whether each image's class is the best and among the best five: bool [images, 2].

    Args:
        found: scores, [images, classes], none of them NaN.
        labels: int64 [images].
        ties: the rule for equal scores. ``topk`` takes both from one call for five classes, as Chinese-CLIP and
            CLIP_benchmark do.
    """
    best = min(_BEST, found.shape[1])
    if ties == "topk":
        first = found.topk(best, 1).indices == labels[:, None]
        return torch.stack([first[:, 0], first.any(1)], 1)
    wanted = F.one_hot(labels, found.shape[1]).bool()
    return hits(found, wanted, ties, cutoffs=(1, best)) > 0


def judged(found: Tensor, labels: Tensor, protocol: Protocol, data_set: str) -> Judged:
    """Judge images by their scores.

    Args:
        found: scores, [images, classes].
        labels: the right classes, int64 [images].
        protocol: fixes how equal scores rank.
        data_set: name of the set.

    Raises:
        DataError: there are not as many labels as images, a label is no class, or a score is NaN.
    """
    if labels.shape != found.shape[:1]:
        raise DataError(f"{data_set}: {len(found)} images have scores and {len(labels)} have labels: they differ")
    counts = torch.bincount(labels.clamp_min(0), minlength=found.shape[1])
    least = int(labels.min()) if len(labels) else 0
    if not len(labels) or least < 0 or len(counts) > found.shape[1]:
        raise DataError(
            f"{data_set}: labels reach from {least} to {len(counts) - 1}, and there are {found.shape[1]} classes: the "
            "class names are of another set, or images are missing"
        )
    refuse_not_a_number(found, "image", "class")
    answers = right(found, labels, protocol.classification_ties)
    same = protocol.mean_ties == protocol.classification_ties
    mean = answers if same else right(found, labels, protocol.mean_ties)
    wrong = found.scatter(1, labels[:, None], -torch.inf).argmax(1)
    return Judged(labels, answers, mean[:, 0].clone(), torch.where(answers[:, 0], labels, wrong))


def measured(images: Judged, classes: int, protocol: Protocol, data_set: str, *, every_class: bool = True) -> Measured:
    """Compute top-1, top-5 and the mean over classes, with intervals.

    Args:
        images: what ``judged`` returned.
        classes: number of classes.
        protocol: fixes the metric.
        data_set: name of the set.
        every_class: whether a class without an image is an error. If not, the mean is over the classes with images.

    Raises:
        DataError: a class has no image though it must.
    """
    labels, best = images.labels, images.mean
    counts = torch.bincount(labels, minlength=classes)
    if every_class and not counts.all():
        raise DataError(f"{data_set}: class {int((counts == 0).nonzero()[0])} has no image: images are missing")
    top1, top5 = interval.of(images.right.double().numpy())
    shares = torch.bincount(labels, best.double(), minlength=classes) / counts
    return Measured(
        protocol.metric(data_set),
        top1,
        top5 if classes >= _BEST else None,
        interval.mean_per_class(best.numpy(), labels.unique(return_inverse=True)[1].numpy()),
        tuple(shares.tolist()),
    )
