"""The evaluator of image-text retrieval (section 5.3)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from wukong.config.evaluators import EVALUATORS
from wukong.errors import DataError
from wukong.evaluate import answers, encoding, examples, retrieval, vectors
from wukong.evaluate.data_set import RetrievalData
from wukong.evaluate.model import Model, concatenate, refuse_collapsed
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.results import Candidate, Outcome, Query
from wukong.evaluate.vectors import Rows, StoredTexts
from wukong.model.dual import Texts

DATA = RetrievalData
_SHOWN = 5  # images of a query


def measure(
    model: Model, data: RetrievalData, protocol: Protocol, cache: Path, encoded: Tensor | None = None
) -> Outcome:
    """Measure Recall@1, @5 and @10 in each direction and their mean; see ``wukong.evaluate.tasks.Measure``."""
    if not data.answered:
        raise DataError(f"{data.title}, split {data.split}: its owner keeps the right answers; measure another one")
    both = not (data.text_to_image_only or data.name in protocol.text_to_image_only)
    pairs = retrieval.Pairs.of([caption.images for caption in data.captions], len(data), every_image=both)
    images = encoding.images(model, data, protocol, cache) if encoded is None else encoded
    refuse_collapsed(images, "image")
    texts = encoding.texts(model, [caption.text for caption in data.captions], protocol, cache)
    refuse_collapsed(texts.vectors, "caption", texts.counted if texts.vectors.ndim == 3 else None)
    hits = retrieval.search(
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
        hits,
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
    return Outcome(
        data.name,
        data.title,
        "retrieval",
        data.split,
        data.digest,
        protocol.name,
        {"images": len(data), "captions": pairs.texts},
        EVALUATORS["retrieval"].main,
        answered.intervals(),
        chance,
        examples=_queries(model, data, images, texts, examples.chosen(hits.text_to_image[:, 0] > 0)),
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
