"""The evaluator of word order: which of two captions with the same characters belongs to which of two pictures.

The scores are those of Winoground (Thrush et al., 2022, section 3.2).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from wukong.config.evaluators import EVALUATORS
from wukong.evaluate import answers, examples, image_text, vectors
from wukong.evaluate.answers import Answers
from wukong.evaluate.blocks import Block, Sizes, Work, cut
from wukong.evaluate.data_set import WordOrderData
from wukong.evaluate.model import concatenate
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.results import Candidate, Outcome, Query
from wukong.evaluate.retrieval import refuse_not_a_number
from wukong.model.similarity import Scores

DATA = WordOrderData
_PAIRS = 32  # whose similarities are computed at a time, each picture's with the captions of all
CHANCE = {"group_score": 1 / 6, "text_score": 1 / 4, "image_score": 1 / 4}
"""The share of pairs that are right by chance. In a right group both right similarities are above both wrong ones: one
of the six choices of two of four."""


def blocks(data: WordOrderData, _protocol: Protocol, roles: Sequence[str], sizes: Sizes) -> list[list[Block]]:
    """Divide the work; see ``wukong.evaluate.tasks.blocks``."""
    compared = [block for role in roles for block in _compared(data, role, sizes)]
    return [image_text.encoding_blocks(data, roles, sizes), compared]


def make(work: Work, block: Block) -> None:
    """Make a block's files; see ``wukong.evaluate.tasks.make``. Images are compared with their pairs' captions."""
    if block.kind != "scores":
        image_text.encode(work, block)
        return
    shown = [caption.images[0] for caption in work.data.captions]
    own = [number for number, image in enumerate(shown) if image in range(*block.columns)]
    images, texts = image_text.images_of(work, block.role), image_text.texts_of(work, block.role)
    parts = [torch.empty(2, 0, 2)]
    for some in vectors.slices(len(own), 2 * _PAIRS):
        numbers = own[some]
        pairs, place = torch.tensor([number // 2 for number in numbers]).unique(return_inverse=True)
        held = torch.cat([images[i : i + 1] for i in (shown[number] for number in numbers)])
        asked = concatenate([vectors.block(texts, slice(2 * pair, 2 * pair + 2)) for pair in pairs.tolist()])
        found = [each.float().cpu().view(len(held), -1, 2) for each in work.models[block.role].similarity(held, asked)]
        parts.append(torch.stack([each[torch.arange(len(held)), place] for each in found]))
    by_image, by_text = torch.cat(parts, 1)
    scores = {"captions": torch.tensor(own, dtype=torch.int64), "by_image": by_image, "by_text": by_text}
    work.files.below(block.role).write(block.name, scores)


def _compared(data: WordOrderData, role: str, sizes: Sizes) -> list[Block]:
    """Return the blocks that compare images with captions."""
    return [Block("scores", role, (0, len(data.captions)), images) for images in cut(len(data), sizes.images)]


def measure(work: Work, role: str) -> Outcome:
    """Measure the text, image and group score; see ``wukong.evaluate.tasks.Measure``."""
    data: WordOrderData = work.data
    image_text.refuse_equal(work, role)
    scores = _similarities(work, role)
    right = scored(scores)
    order = sorted(range(len(data.pair_ids)), key=lambda pair: data.pair_ids[pair])
    answered = _answers(data, right).ordered(order, [data.pair_ids[pair] for pair in order])
    return Outcome(
        data.name,
        data.title,
        "word_order",
        data.split,
        data.digest,
        work.protocol.name,
        {"images": len(data), "pairs": len(data.pair_ids), **image_text.captions_cut(work, role)},
        EVALUATORS["word_order"].main,
        answered.intervals(),
        # Token-wise, a group has eight similarities, which hang together in a way that no chance is known for.
        {name: value for name, value in CHANCE.items() if name != "group_score" or not work.models[role].token_wise},
        examples=[
            _query(data, scores, pair)
            for pair in examples.chosen(scores.text_to_image[:, 0, 0] > scores.text_to_image[:, 1, 0])
        ],
        answers=answered,
    )


def scored(similarities: Scores) -> dict[str, Tensor]:
    """Compute which pairs are right, bool [pairs], by result; a caption or picture that is only equal is wrong.

    Args:
        similarities: of each pair's images and captions in both directions, [pairs, 2, 2].
    """
    by_image, by_text = similarities.image_to_text, similarities.text_to_image
    text = (by_image[:, 0, 0] > by_image[:, 0, 1]) & (by_image[:, 1, 1] > by_image[:, 1, 0])
    image = (by_text[:, 0, 0] > by_text[:, 1, 0]) & (by_text[:, 1, 1] > by_text[:, 0, 1])
    return {"group_score": text & image, "text_score": text, "image_score": image}


def _similarities(work: Work, role: str) -> Scores:
    """Return the similarities of each pair's images and captions in both directions, [pairs, 2, 2]."""
    made = [work.files.below(role).read(block.name) for block in _compared(work.data, role, work.sizes)]
    order = torch.cat([each["captions"] for each in made]).argsort()
    by_image, by_text = (torch.cat([each[side] for each in made])[order] for side in ("by_image", "by_text"))
    found = Scores(by_image.view(-1, 2, 2), by_text.view(-1, 2, 2))
    for each in found:
        refuse_not_a_number(each.flatten(1), "pair", "similarity")
    return found


def _answers(data: WordOrderData, right: dict[str, Tensor]) -> Answers:
    """Answers: each pair is a query; pairs that have a caption or a picture in common are one unit."""
    texts = [caption.text for caption in data.captions]
    pictures = [caption.images[0] for caption in data.captions]
    each, pairs = np.arange(len(texts)), np.arange(len(data.pair_ids))
    # The second picture is linked with the first caption too, so that a pair is one.
    linked = np.concatenate([each, 2 * pairs]), np.array([*pictures, *pictures[1::2]])
    units, identities = answers.units_of(texts, data.image_ids, *linked)
    results = {name: values.numpy().astype(np.float64) for name, values in right.items()}
    shown = tuple((data.image_ids[a], data.image_ids[b]) for a, b in zip(pictures[::2], pictures[1::2], strict=True))
    return Answers(
        tuple(data.pair_ids), units[: len(texts) : 2], -np.ones_like(pairs), results, identities[::2][pairs], shown
    )


def _query(data: WordOrderData, scores: Scores, pair: int) -> Query:
    """Search both pictures of a pair by its first caption, for the page."""
    captions = data.captions[2 * pair : 2 * pair + 2]
    found = scores.text_to_image[pair, :, 0]
    own = bool(found[0] > found[1])
    candidates = [
        Candidate(data.image_ids[caption.images[0]], caption.text, right)
        for caption, right in zip(captions, (True, False), strict=True)
    ]
    return Query(captions[0].text, 0 if own else 1, tuple(candidates if own else reversed(candidates)))
