"""Image-text retrieval in both directions (section 5.3): queries, right answers, and which of them are found.

``task`` says which captions and images belong together, ``hits`` searches one matrix of scores. ``search`` computes
scores block by block and keeps only the best candidates of each query, so 30,000 images and 150,000 captions fit in
memory. Its ``tiles`` can be searched by many processes (``search_tile``); ``found`` joins what they have found.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from wukong.config.evaluators import CUTOFFS
from wukong.errors import DataError
from wukong.evaluate import candidates
from wukong.evaluate.best import Best
from wukong.evaluate.model import Quick
from wukong.evaluate.protocol import Ties
from wukong.evaluate.vectors import Rows, StoredTexts, slices
from wukong.evaluate.vectors import block as text_block
from wukong.model.dual import Texts
from wukong.model.similarity import Scores

_BLOCK, _BLOCK_OF_TOKENS = 2048, 512
_PAIRS = 256
"""Images and captions whose vectors stand side by side for exact scores."""
Captions: TypeAlias = Literal["distinct", "all", "first"]


class Task(NamedTuple):
    """A retrieval task: distinct images, captions, and which of them belong together.

    Attributes:
        pictures: int64 [images], the row of the first pair of each distinct image.
        texts: the captions.
        relevant: bool [texts, images], True where caption and image belong together; each caption and each image has at
            least one match.
    """

    pictures: Tensor
    texts: list[str]
    relevant: Tensor


def task(pictures: Sequence[str], captions: Sequence[str], protocol: Captions = "distinct") -> Task:
    """Build a retrieval task from pairs. An image with five captions is five pairs.

    The protocol defines which captions there are and which images are right for a caption:

    - ``distinct``: equal captions are one caption, and every image that has it is right. Use it for names and for
      captions from the web, which repeat.
    - ``all``: every pair's caption is a query of its own, and only its own image is right, even if another image has an
      equal caption (which then ties with it). This is the protocol of Flickr8K, Flickr30K, COCO and AIC-ICC with five
      captions an image.
    - ``first``: like ``all``, but only with the first caption of each image: an evaluation with one caption an image.

    Args:
        pictures: an identifier of each pair's image, for instance the digest of its bytes.
        captions: captions of the pairs.
        protocol: the protocol, see above.
    """
    if len(pictures) != len(captions):
        raise ValueError(f"{len(pictures)} pictures and {len(captions)} captions: they must be as many")
    places: dict[str, int] = {}
    firsts: list[int] = []
    owners: list[int] = []
    rows: list[int] = []
    for row, picture in enumerate(pictures):
        if picture not in places:
            places[picture] = len(places)
            firsts.append(row)
        elif protocol == "first":
            continue
        owners.append(places[picture])
        rows.append(row)
    if protocol == "distinct":
        numbers = {text: number for number, text in enumerate(dict.fromkeys(captions))}
        texts, asked = list(numbers), [numbers[caption] for caption in captions]
    else:
        texts, asked = [captions[row] for row in rows], list(range(len(rows)))
    relevant = torch.zeros(len(texts), len(firsts), dtype=torch.bool)
    relevant[torch.tensor(asked, dtype=torch.int64), torch.tensor(owners, dtype=torch.int64)] = True
    return Task(torch.tensor(firsts, dtype=torch.int64), texts, relevant)


def refuse_not_a_number(scores: Tensor, row: str, column: str) -> None:
    """Raise DataError if a score is NaN. All comparisons with NaN are false, so it would be ranked first.

    Args:
        scores: [rows, columns].
        row: what a row stands for, for the message.
        column: what a column stands for, for the message.
    """
    if (broken := scores.isnan()).any():
        first, second = broken.nonzero()[0].tolist()
        raise DataError(
            f"{int(broken.sum())} of {scores.numel()} similarities are not numbers; the first is that of {row} {first} "
            f"to {column} {second}: the weights or the features are damaged; train again, or delete the features"
        )


def chance(relevant_counts: Sequence[int], candidates: int, cutoffs: Sequence[int] = CUTOFFS) -> dict[int, float]:
    """Compute the expected Recall@K if the candidates are in random order.

    It is one minus the probability that none of the first K candidates is relevant.

    Args:
        relevant_counts: number of relevant candidates of each query.
        candidates: number of candidates, the same for all queries.
        cutoffs: the values of K.
    """

    def miss(count: int, k: int) -> float:
        return comb(candidates - count, min(k, candidates)) / comb(candidates, min(k, candidates))

    return {k: 1 - sum(miss(count, k) for count in relevant_counts) / max(1, len(relevant_counts)) for k in cutoffs}


@dataclass(frozen=True)
class Pairs:
    """Which captions and images belong together. A caption may have several images and an image several captions.

    Attributes:
        text: int64 [pairs], numbers of captions, ascending.
        image: int64 [pairs], numbers of images.
        texts: number of captions.
        images: number of images.
    """

    text: Tensor
    image: Tensor
    texts: int
    images: int

    @classmethod
    def of(cls, images_of_texts: Sequence[Sequence[int]], images: int, every_image: bool = True) -> "Pairs":
        """Make the pairs from the numbers of the images of each caption.

        Args:
            images_of_texts: the numbers of each caption's images.
            images: number of images.
            every_image: whether each image must have a caption; False for text-to-image retrieval only, where images
                without a caption are candidates too.

        Raises:
            DataError: a caption has no image, an image has no caption though it must, or there is no such image.
        """
        wanted = [(text, image) for text, own in enumerate(images_of_texts) for image in sorted(set(own))]
        if empty := [text for text, own in enumerate(images_of_texts) if not own]:
            raise DataError(f"{len(empty)} captions have no image, the first is caption {empty[0]}: nothing is right")
        if strange := [pair for pair in wanted if not 0 <= pair[1] < images]:
            raise DataError(
                f"caption {strange[0][0]} belongs to image {strange[0][1]}, and there are {images} images: images are "
                "missing, or the captions are of another set"
            )
        if every_image and (alone := set(range(images)) - {image for _, image in wanted}):
            raise DataError(f"{len(alone)} images have no caption, the first is image {min(alone)}: nothing is right")
        table = torch.tensor(wanted, dtype=torch.int64).reshape(-1, 2)
        return cls(table[:, 0].contiguous(), table[:, 1].contiguous(), len(images_of_texts), images)

    def turned(self) -> "Pairs":
        """Return the pairs with images as captions and captions as images."""
        order = (self.image * self.texts + self.text).argsort()
        return Pairs(self.image[order], self.text[order], self.images, self.texts)

    def block(self, texts: slice, images: slice, device: torch.device | None = None) -> Tensor:
        """Return the pairs of some captions and images as bool [captions, images]."""
        bounds = torch.searchsorted(self.text, torch.tensor([texts.start, texts.stop]))
        row, column = (part[int(bounds[0]) : int(bounds[1])] for part in (self.text, self.image))
        inside = (column >= images.start) & (column < images.stop)
        is_right = torch.zeros(texts.stop - texts.start, images.stop - images.start, dtype=torch.bool, device=device)
        is_right[(row[inside] - texts.start).to(device), (column[inside] - images.start).to(device)] = True
        return is_right


def hits(
    scores: Tensor,
    right: Tensor,
    ties: Ties = "against",
    ids: Sequence[str] | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
) -> Tensor:
    """Count the right candidates among the first K of each query, from one matrix of scores.

    Equal scores rank as ``ties`` says: wrong ones before right ones (``against``), by their order (``first``, as
    Chinese-CLIP sorts), as ``torch.topk`` leaves them (``topk``, CLIP_benchmark), or the larger id first (``id``, MTEB,
    whose trec_eval compares ids as text and scores as float32).

    Args:
        scores: float32 [queries, candidates].
        right: bool [queries, candidates].
        ties: the rule for equal scores.
        ids: the candidates' ids, for the rule ``id``.
        cutoffs: the values of K.

    Returns:
        int64 [queries, cutoffs].

    Raises:
        DataError: a score is NaN.
    """
    refuse_not_a_number(scores, "query", "candidate")
    if ties == "topk":
        return _topk_hits(scores, right, cutoffs)
    best = Best(len(scores), max(cutoffs), scores.device)
    best.add(slice(0, len(scores)), scores, right, _places(ties, ids, scores.shape[1], scores.device))
    return best.found(cutoffs)


def _topk_hits(scores: Tensor, right: Tensor, cutoffs: Sequence[int]) -> Tensor:
    # One call for each K: torch.topk may order equal scores differently for another K.
    first = [scores.topk(min(k, scores.shape[1]), 1).indices for k in cutoffs]
    return torch.stack([right.gather(1, each).sum(1) for each in first], 1).cpu()


def _places(ties: Ties, ids: Sequence[str] | None, candidates: int, device: torch.device) -> Tensor | None:
    """Return the place of each candidate among equal scores, the highest first; None if being right decides."""
    if ties == "against":
        return None
    if ties == "first":
        return torch.arange(candidates - 1, -1, -1, device=device)
    if ids is None or len(ids) != candidates:
        raise ValueError(f"ties by id need the ids of the {candidates} candidates")
    places = torch.empty(candidates, dtype=torch.int64)
    places[torch.tensor(sorted(range(candidates), key=ids.__getitem__), dtype=torch.int64)] = torch.arange(candidates)
    return places.to(device)


class Found(NamedTuple):
    """How many right candidates are among the first K of each query.

    Attributes:
        text_to_image: int64 [texts, cutoffs].
        image_to_text: int64 [images, cutoffs]; None for text-to-image retrieval only.
        cutoffs: the values of K.
    """

    text_to_image: Tensor
    image_to_text: Tensor | None
    cutoffs: tuple[int, ...]


class Tile(NamedTuple):
    """Some captions and images whose scores are computed at a time.

    Attributes:
        texts: the captions.
        images: the images.
        direction: what is searched. The rule ``topk`` needs all candidates of a query at once, so its tiles have all
            images or all captions, and search one of both.
    """

    texts: slice
    images: slice
    direction: Literal["both", "text_to_image", "image_to_text"] = "both"


def tiles(texts: int, images: int, ties: Ties, *, both: bool, side: int, captions: int | None = None) -> list[Tile]:
    """Divide all scores into tiles of ``side`` images and as many captions, or ``captions``; for ``topk`` of about."""
    if ties != "topk":
        return [Tile(column, row) for column in slices(texts, captions or side) for row in slices(images, side)]
    step = max(1, side * side // max(texts, images))
    searched = [Tile(column, slice(0, images), "text_to_image") for column in slices(texts, step)]
    turned = [Tile(slice(0, texts), row, "image_to_text") for row in slices(images, step)] if both else []
    return [*searched, *turned]


@torch.inference_mode()
def search_tile(
    tile: Tile,
    images: Rows,
    texts: Texts | StoredTexts,
    pairs: Pairs,
    similarity: Callable[[Tensor, Texts], Scores],
    ties: Ties = "against",
    *,
    both: bool = True,
    image_ids: Sequence[str] | None = None,
    text_ids: Sequence[str] | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
    block: int | None = None,
    device: torch.device | str | None = None,
    quick: Quick | None = None,
) -> dict[str, Tensor]:
    """Find the best candidates of a tile; for the arguments and errors see ``search``.

    With ``quick``, scores that may be among a query's best are computed again exactly (``wukong.evaluate.candidates``).
    The rule ``topk`` does not use it.

    Returns:
        What ``found`` joins: by direction int64 [queries, K], the best candidates, or for the rule ``topk`` how many
        right ones are among the first.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    block = block or _block_of(texts)
    if ties == "topk":
        hits = _whole_rows(tile, images, texts, pairs, similarity, cutoffs, block, where)
        return {tile.direction: hits}
    image_places = _places(ties, image_ids, pairs.images, where)
    text_places = _places(ties, text_ids, pairs.texts, where) if both else None
    # What is read from files is read once.
    held, asked = images[tile.images], text_block(texts, tile.texts)
    of_text = Best(len(asked.vectors), max(cutoffs), where)
    of_image = Best(len(held), max(cutoffs), where)
    error: float | None = None
    for row in slices(len(held), block):
        shown = held[row].to(where)  # once, because the vectors of images are the larger ones
        for column in slices(len(asked.vectors), block):
            part = Texts(*(each.to(where) for each in text_block(asked, column)))
            whole = Tile(_moved(column, tile.texts), _moved(row, tile.images))
            sides = [_Side(of_text, column, True), _Side(of_image, row, False)][: 1 + both]
            side = min(len(shown), len(part.counted))
            first = None if quick is None else candidates.first(side, side, max(cutoffs), error)
            scores = _scores(shown, part, whole, similarity if quick is None or first is None else quick.rough)
            if quick is not None and first is not None:
                error = _decide(scores, shown, part, sides, first, quick, error)
            right = pairs.block(whole.texts, whole.images, where)
            of_text.add(
                column, scores.text_to_image.T, right, None if image_places is None else image_places[whole.images]
            )
            if both:
                places = None if text_places is None else text_places[whole.texts]
                of_image.add(row, scores.image_to_text, right.T, places)
    best = {"text_to_image": of_text.keys.cpu()}
    return best | ({"image_to_text": of_image.keys.cpu()} if both else {})


class _Side(NamedTuple):
    """A direction of a block: the best candidates so far, the block's queries, and whether these are texts."""

    best: Best
    queries: slice
    by_text: bool

    def of(self, scores: Scores) -> Tensor:
        """Return the block's scores, [queries, candidates]."""
        return scores.text_to_image.T if self.by_text else scores.image_to_text

    def turned(self, each: Tensor) -> Tensor:
        """Turn [images, texts] into [queries, candidates], and back."""
        return each.T if self.by_text else each


def _decide(
    scores: Scores, images: Tensor, texts: Texts, sides: Sequence[_Side], first: int, quick: Quick, error: float | None
) -> float:
    """Put exact scores in a block of rough ones wherever they may be among the best; return the largest change yet."""

    def compute(wanted: Tensor) -> float:
        changes = [0.0]
        row, column = wanted.nonzero(as_tuple=True)
        for some in slices(len(row), _PAIRS):
            i, t = row[some], column[some]
            for rough, exact in zip(
                scores, quick.of_pairs(images[i], Texts(texts.vectors[t], texts.counted[t])), strict=True
            ):
                changes.append(float((rough[i, t] - exact).abs().max()))
                rough[i, t] = exact
        return max(changes)

    def near(exact: Tensor, margin: float) -> Tensor:
        found = [each.best.may_enter(each.queries, each.of(scores), each.turned(exact), margin) for each in sides]
        return torch.stack([each.turned(one) for each, one in zip(sides, found, strict=True)]).any(0)

    wanted = torch.zeros_like(scores.image_to_text, dtype=torch.bool)
    for each in sides:
        each.turned(wanted).scatter_(1, each.of(scores).topk(first, 1).indices, True)
    if error is not None:
        wanted &= near(torch.zeros_like(wanted), 2 * error)
    return candidates.decide(wanted, compute, near, error or 0.0)


def _block_of(texts: Texts | StoredTexts) -> int:
    return _BLOCK if texts.vectors.ndim == 2 else _BLOCK_OF_TOKENS


def _moved(rows: slice, inside: slice) -> slice:
    return slice(inside.start + rows.start, inside.start + rows.stop)


def _whole_rows(
    tile: Tile,
    images: Rows,
    texts: Texts | StoredTexts,
    pairs: Pairs,
    similarity: Callable[[Tensor, Texts], Scores],
    cutoffs: Sequence[int],
    block: int,
    device: torch.device,
) -> Tensor:
    """Count the right candidates of a tile by ``torch.topk`` over all candidates; few queries at a time."""
    by_text = tile.direction == "text_to_image"
    queries, searched = (tile.texts, tile.images) if by_text else (tile.images, tile.texts)
    pairs = pairs if by_text else pairs.turned()
    parts = []
    for part in slices(queries.stop - queries.start, max(1, block * block // (searched.stop - searched.start))):
        asked = _moved(part, queries)
        rows = []
        for some in slices(searched.stop, block):
            row, column = (some, asked) if by_text else (asked, some)
            part_of = Texts(*(each.to(device) for each in text_block(texts, column)))
            scores = _scores(images[row].to(device), part_of, Tile(column, row), similarity)
            rows.append(scores.text_to_image.T if by_text else scores.image_to_text)
        parts.append(_topk_hits(torch.cat(rows, 1), pairs.block(asked, searched, device), cutoffs))
    return torch.cat(parts)


def found(
    searched: Iterable[tuple[Tile, Mapping[str, Tensor]]],
    pairs: Pairs,
    ties: Ties = "against",
    *,
    both: bool = True,
    cutoffs: Sequence[int] = CUTOFFS,
) -> Found:
    """Join what ``search_tile`` found in all tiles; for the arguments see ``search``."""
    counts = {"text_to_image": pairs.texts} | ({"image_to_text": pairs.images} if both else {})
    best = {direction: Best(count, max(cutoffs)) for direction, count in counts.items()}
    hits = {direction: torch.zeros(count, len(cutoffs), dtype=torch.int64) for direction, count in counts.items()}
    for tile, results in searched:
        for direction, result in results.items():
            queries = tile.texts if direction == "text_to_image" else tile.images
            if ties == "topk":
                hits[direction][queries] = result
            else:
                best[direction].join(queries, result)
    if ties != "topk":
        hits = {direction: each.found(cutoffs) for direction, each in best.items()}
    return Found(hits["text_to_image"], hits.get("image_to_text"), tuple(cutoffs))


def search(
    images: Rows,
    texts: Texts | StoredTexts,
    pairs: Pairs,
    similarity: Callable[[Tensor, Texts], Scores],
    ties: Ties = "against",
    *,
    both: bool = True,
    image_ids: Sequence[str] | None = None,
    text_ids: Sequence[str] | None = None,
    cutoffs: Sequence[int] = CUTOFFS,
    block: int | None = None,
    device: torch.device | str | None = None,
) -> Found:
    """Search images by texts and texts by images, tile by tile and in a tile block by block.

    Each block of scores is reduced to the best candidates of its queries and freed. Memory beside the vectors is a few
    blocks, and 8 bytes for each query and K; vectors in files (``wukong.evaluate.vectors``) are read tile by tile. The
    rule ``topk`` needs whole rows; then few queries are searched at a time, and the scores are computed once for each
    direction.

    Args:
        images: unit vectors, [images, (tokens,) d].
        texts: encoded captions.
        pairs: which belong together.
        similarity: computes the scores of a block, for instance ``Model.similarity``.
        ties: the rule for equal scores, see ``hits``.
        both: whether texts are searched by images too.
        image_ids: the id of each image, for the rule ``id``.
        text_ids: the id of each caption, for the rule ``id`` if ``both``.
        cutoffs: the values of K.
        block: number of images and of captions in a block; None for 2,048, or 512 with vectors of tokens, which are
            many for each.
        device: where blocks are computed; None for a GPU if there is one.

    Raises:
        DataError: a similarity is NaN; vectors are not as many as the pairs say.
    """
    if (len(images), len(texts.vectors)) != (pairs.images, pairs.texts):
        raise DataError(
            f"{len(images)} images and {len(texts.vectors)} captions are encoded, and the pairs are of {pairs.images} "
            f"images and {pairs.texts} captions: one was encoded from other data"
        )
    searched = (
        (
            tile,
            search_tile(
                tile,
                images,
                texts,
                pairs,
                similarity,
                ties,
                both=both,
                image_ids=image_ids,
                text_ids=text_ids,
                cutoffs=cutoffs,
                block=block,
                device=device,
            ),
        )
        for tile in tiles(pairs.texts, pairs.images, ties, both=both, side=4 * (block or _block_of(texts)))
    )
    return found(searched, pairs, ties, both=both, cutoffs=cutoffs)


def _scores(images: Tensor, texts: Texts, tile: Tile, similarity: Callable[[Tensor, Texts], Scores]) -> Scores:
    """Compute the scores of a tile, float32 [images, texts].

    Raises:
        DataError: a score is NaN.
    """
    scored = similarity(images, texts)
    for scores in scored[: 1 if scored.image_to_text is scored.text_to_image else 2]:
        if scores.isnan().any():
            first, second = scores.isnan().nonzero()[0].tolist()
            image, caption = tile.images.start + first, tile.texts.start + second
            raise DataError(
                f"the similarity of image {image} and caption {caption} is not a number: the weights or the features "
                "are damaged"
            )
    return Scores(scored.image_to_text.float(), scored.text_to_image.float())
