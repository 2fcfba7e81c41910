"""The evaluator of image-text retrieval (section 5.3)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F

from wukong.config.evaluators import EVALUATORS
from wukong.errors import DataError
from wukong.evaluate import answers, examples, retrieval, vectors
from wukong.evaluate.blocks import Block, Sizes, Work, cut
from wukong.evaluate.data_set import RetrievalData, WordOrderData
from wukong.evaluate.model import Spread, concatenate, count_cut, refuse_collapsed
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.results import Candidate, Outcome, Query
from wukong.evaluate.retrieval import Tile
from wukong.evaluate.vectors import Pieces, StoredTexts

DATA = RetrievalData
_SHOWN = 5  # images of a query
TEXTS = 4096  # captions of a block


def blocks(data: RetrievalData, protocol: Protocol, roles: Sequence[str], sizes: Sizes) -> list[list[Block]]:
    """Divide the work; see ``wukong.evaluate.tasks.blocks``.

    Raises:
        DataError: the right answers are not known, or images are missing.
    """
    both, pairs = _asked(data, protocol)
    scores = [block for role in roles for block in _tiles(role, both, pairs, protocol, sizes)]
    return [encoding_blocks(data, roles, sizes), scores]


def encoding_blocks(data: RetrievalData | WordOrderData, roles: Sequence[str], sizes: Sizes) -> list[Block]:
    """Return the blocks that encode captions and images, which ``encode`` makes."""
    texts = [Block("texts", role, rows) for role in roles for rows in _parts(len(data.captions))]
    return [*texts, *(Block("images", "", rows) for rows in cut(len(data), sizes.images))]


def make(work: Work, block: Block) -> None:
    """Make a block's files; see ``wukong.evaluate.tasks.make``."""
    if block.kind != "scores":
        encode(work, block)
        return
    model, files = work.models[block.role], work.files.below(block.role)
    both, pairs = _asked(work.data, work.protocol)
    best = retrieval.search_tile(
        Tile(slice(*block.rows), slice(*block.columns), block.direction),
        images_of(work, block.role),
        texts_of(work, block.role),
        pairs,
        model.similarity,
        work.protocol.retrieval_ties,
        both=both,
        image_ids=work.data.image_ids,
        text_ids=[str(number) for number in range(pairs.texts)],
        quick=getattr(model, "quick", None),
    )
    files.write(block.name, best)


def encode(work: Work, block: Block) -> None:
    """Encode the captions or images of a block; captions are counted that are longer than what the model reads."""
    rows = slice(*block.rows)
    if block.kind == "images":
        for role, encoded in work.encode(rows).items():
            spread = Spread.of(encoded, "image")
            work.files.below(role).write(block.name, {"vectors": encoded, **spread.stored()})
        return
    model, captions = work.models[block.role], [caption.text for caption in work.data.captions[rows]]
    texts = model.encode_texts(captions, work.protocol)._asdict()
    if (longer := count_cut(model, captions, work.protocol)) is not None:
        texts["cut"] = torch.tensor(longer)
    work.files.below(block.role).write(block.name, texts)


def _asked(data: RetrievalData, protocol: Protocol) -> tuple[bool, retrieval.Pairs]:
    """Return whether texts are searched by images too, and which captions and images belong together."""
    if not data.answered:
        raise DataError(f"{data.title}, split {data.split}: its owner keeps the right answers; measure another one")
    both = not (data.text_to_image_only or data.name in protocol.text_to_image_only)
    return both, retrieval.Pairs.of([caption.images for caption in data.captions], len(data), every_image=both)


def _parts(texts: int) -> list[tuple[int, int]]:
    # Parts of one size: a model refuses texts of which it knows few words, and a part of few texts may be of such.
    count = math.ceil(texts / TEXTS)
    edges = [texts // count * number + min(number, texts % count) for number in range(count + 1)]
    return list(pairwise(edges))


def _tiles(role: str, both: bool, pairs: retrieval.Pairs, protocol: Protocol, sizes: Sizes) -> list[Block]:
    tiles = retrieval.tiles(
        pairs.texts, pairs.images, protocol.retrieval_ties, both=both, side=sizes.side, captions=sizes.texts
    )
    return [
        Block(
            "scores", role, (each.texts.start, each.texts.stop), (each.images.start, each.images.stop), each.direction
        )
        for each in tiles
    ]


def images_of(work: Work, role: str) -> Pieces:
    """Return the vectors of all images by a model, from the files of ``encode``."""
    made = [Block("images", "", rows) for rows in cut(len(work.data), work.sizes.images)]
    files = work.files.below(role)
    return Pieces([last - first for _, _, (first, last), *_ in made], lambda n: files.read(made[n].name)["vectors"])


def texts_of(work: Work, role: str) -> StoredTexts:
    """Return all encoded captions by a model, from the files of ``encode``."""
    made = [Block("texts", role, rows) for rows in _parts(len(work.data.captions))]
    files = work.files.below(role)
    counted = [files.read(block.name)["counted"] for block in made]
    longest = max(each.shape[1] for each in counted)
    padded = torch.cat([F.pad(each, (0, longest - each.shape[1])) for each in counted])
    sizes = [last - first for _, _, (first, last), *_ in made]
    return StoredTexts(Pieces(sizes, lambda n: files.read(made[n].name)["vectors"]), padded)


def refuse_equal(work: Work, role: str) -> None:
    """Raise CollapsedError if the vectors of all images, or of all captions, are equal."""
    files, texts = work.files.below(role), texts_of(work, role)
    made = (Block("images", "", rows).name for rows in cut(len(work.data), work.sizes.images))
    Spread.read(files.read(name) for name in made).refuse("image")
    refuse_collapsed(texts.vectors, "caption", texts.counted if texts.vectors.ndim == 3 else None)


def captions_cut(work: Work, role: str) -> dict[str, int]:
    """Return the number of captions that were cut, among the sizes of a result; nothing if none is known to be."""
    files = work.files.below(role)
    made = [files.read(Block("texts", role, rows).name) for rows in _parts(len(work.data.captions))]
    longer = sum(int(each["cut"]) for each in made if "cut" in each)
    return {"captions_cut": longer} if longer else {}


def measure(work: Work, role: str) -> Outcome:
    """Measure Recall@1, @5 and @10 in each direction and their mean; see ``wukong.evaluate.tasks.Measure``."""
    data, protocol, files = work.data, work.protocol, work.files.below(role)
    both, pairs = _asked(data, protocol)
    refuse_equal(work, role)
    tiles = _tiles(role, both, pairs, protocol, work.sizes)
    hits = retrieval.found(
        ((Tile(slice(*each.rows), slice(*each.columns), each.direction), files.read(each.name)) for each in tiles),
        pairs,
        protocol.retrieval_ties,
        both=both,
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
        {"images": len(data), "captions": pairs.texts, **captions_cut(work, role)},
        EVALUATORS["retrieval"].main,
        answered.intervals(),
        chance,
        examples=_queries(work, role, examples.chosen(hits.text_to_image[:, 0] > 0)) if work.examples else (),
        answers=answered,
    )


def _queries(work: Work, role: str, numbers: Sequence[int]) -> tuple[Query, ...]:
    """Search images by some of the captions, for the report. A caption of each image stands with it."""
    if not numbers:
        return ()
    model, data, images, texts = work.models[role], work.data, images_of(work, role), texts_of(work, role)
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
