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
from wukong.evaluate.protocol import Ties
from wukong.evaluate.vectors import Rows, StoredTexts, slices
from wukong.evaluate.vectors import block as text_block
from wukong.model.dual import Texts
from wukong.model.similarity import Scores

_BLOCK, _BLOCK_OF_TOKENS = 2048, 512
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


class _Best:
    """The best candidates of each query, of all blocks added so far, in an order without ties.

    A candidate is one integer: its score's bits in an order that integers compare as floats do, then its place among
    equal scores, then whether it is right. So the best K of two blocks are exactly the best K of both together.
    """

    def __init__(self, queries: int, kept: int, device: torch.device | None = None) -> None:
        self.keys = torch.full((queries, kept), torch.iinfo(torch.int64).min, device=device)

    def add(self, rows: slice, scores: Tensor, right: Tensor, places: Tensor | None) -> None:
        """Add candidates: float32 scores [rows, candidates], which are right, and places of equal ones."""
        kept = self.keys.shape[1]
        scores = scores.contiguous()
        # Only candidates that reach the worst one held can be among the best of all.
        least = _score_of(self.keys[rows, -1])
        if least.isneginf().any():
            least = scores.topk(min(kept, scores.shape[1]), 1).values[:, -1]
        row, column = (scores >= least[:, None]).nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(scores))
        if not len(row):
            return
        is_right = right[row, column]
        position = (~is_right).long() if places is None else places[column]
        keys = torch.full((len(scores), int(counts.max())), torch.iinfo(torch.int64).min, device=scores.device)
        before = (counts.cumsum(0) - counts)[row]
        keys[row, torch.arange(len(row), device=row.device) - before] = _keys(scores[row, column], is_right, position)
        self.join(rows, keys)

    def join(self, rows: slice, keys: Tensor) -> None:
        """Add the best candidates that another has found, of some queries."""
        self.keys[rows] = torch.cat([self.keys[rows], keys], 1).topk(self.keys.shape[1], 1).values

    def found(self, cutoffs: Sequence[int]) -> Tensor:
        """Count the right candidates among the first K, int64 [queries, cutoffs]."""
        held = self.keys > torch.iinfo(torch.int64).min
        right = ((self.keys & 1).bool() & held).cumsum(1)
        return torch.stack([right[:, min(k, right.shape[1]) - 1] for k in cutoffs], 1).cpu()


def _keys(scores: Tensor, right: Tensor, place: Tensor) -> Tensor:
    bits = (scores + 0.0).contiguous().view(torch.int32)  # -0.0 becomes 0.0, its equal
    return (_ordered(bits).long() << 32) | (place << 1) | right.long()


def _score_of(keys: Tensor) -> Tensor:
    """Return the scores of candidates; minus infinity where there is none."""
    scores = _ordered((keys >> 32).to(torch.int32)).view(torch.float32)
    return scores.masked_fill(keys == torch.iinfo(torch.int64).min, -torch.inf)


def _ordered(bits: Tensor) -> Tensor:
    """Turn a float's bits into an integer in the floats' order, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


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
    best = _Best(len(scores), max(cutoffs), scores.device)
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


def tiles(texts: int, images: int, ties: Ties, *, both: bool, side: int) -> list[Tile]:
    """Divide all scores of captions and images into tiles of about ``side`` captions and images."""
    if ties != "topk":
        return [Tile(column, row) for column in slices(texts, side) for row in slices(images, side)]
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
) -> dict[str, Tensor]:
    """Find the best candidates of a tile; for the arguments and errors see ``search``.

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
    of_text = _Best(len(asked.vectors), max(cutoffs), where)
    of_image = _Best(len(held), max(cutoffs), where)
    for column in slices(len(asked.vectors), block):
        for row in slices(len(held), block):
            scores = _scores(held, asked, row, column, similarity, where, tile)
            whole = _moved(column, tile.texts), _moved(row, tile.images)
            right = pairs.block(*whole, where)
            of_text.add(column, scores.text_to_image.T, right, None if image_places is None else image_places[whole[1]])
            if both:
                places = None if text_places is None else text_places[whole[0]]
                of_image.add(row, scores.image_to_text, right.T, places)
    best = {"text_to_image": of_text.keys.cpu()}
    return best | ({"image_to_text": of_image.keys.cpu()} if both else {})


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
    queries, candidates = (tile.texts, tile.images) if by_text else (tile.images, tile.texts)
    pairs = pairs if by_text else pairs.turned()
    parts = []
    for part in slices(queries.stop - queries.start, max(1, block * block // (candidates.stop - candidates.start))):
        asked = _moved(part, queries)
        rows = []
        for some in slices(candidates.stop, block):
            row, column = (some, asked) if by_text else (asked, some)
            scores = _scores(images, texts, row, column, similarity, device)
            rows.append(scores.text_to_image.T if by_text else scores.image_to_text)
        parts.append(_topk_hits(torch.cat(rows, 1), pairs.block(asked, candidates, device), cutoffs))
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
    best = {direction: _Best(count, max(cutoffs)) for direction, count in counts.items()}
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


def _scores(
    images: Rows,
    texts: Texts | StoredTexts,
    row: slice,
    column: slice,
    similarity: Callable[[Tensor, Texts], Scores],
    device: torch.device,
    inside: Tile | None = None,
) -> Scores:
    """Compute the scores of a block, float32 [images, texts]; those of a tile if ``inside``.

    Raises:
        DataError: a score is NaN.
    """
    part = Texts(*(each.to(device) for each in text_block(texts, column)))
    scored = similarity(images[row].to(device), part)
    for scores in scored[: 1 if scored.image_to_text is scored.text_to_image else 2]:
        if scores.isnan().any():
            first, second = scores.isnan().nonzero()[0].tolist()
            image = row.start + first + (inside.images.start if inside else 0)
            caption = column.start + second + (inside.texts.start if inside else 0)
            raise DataError(
                f"the similarity of image {image} and caption {caption} is not a number: the weights or the features "
                "are damaged"
            )
    return Scores(scored.image_to_text.float(), scored.text_to_image.float())
