"""Training pairs whose images are decoded and augmented anew in each epoch."""

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from wukong.config.model import ImageEncoder
from wukong.config.training import Training
from wukong.data import shards
from wukong.data.tokenizer import Tokenizer
from wukong.data.views import Encoded, Loaders, Views
from wukong.errors import DataError
from wukong.store import damage
from wukong.train import stream
from wukong.train.batches import Batch
from wukong.train.corpus import Corpus
from wukong.train.pairs import Kept, Loaded, Pairs
from wukong.train.stream import Piece, Sample

log = logging.getLogger(__name__)

_KEPT_ENDS = 1 << 16
"""Most shards of which a worker keeps where its last piece ended: two numbers each."""

_Shown = tuple[Tensor, list[tuple[int, str]]]
"""The views of a batch, and the numbers of those that are broken, which are black, with what is wrong."""


class PicturePairs(Pairs):
    """Pairs with their images, which loader processes decode and augment, with a new random view in each epoch.

    A view depends only on the image's key and the epoch, not on the process that computes it.

    Args:
        corpus: the pairs.
        tokenizer: the captions' tokenizer.
        tower: settings of the image encoder; ``image_size`` and ``view`` are used.
        settings: settings of the training; ``augmentations``, ``loader_workers``, ``max_broken_pictures`` and
            ``max_lost_shards`` are used.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, tower: ImageEncoder, settings: Training) -> None:
        super().__init__(corpus.rows, corpus.digest, tokenizer, settings.max_lost_shards)
        self._corpus = corpus
        self._views = Views(tower, settings.augmentations, skip_broken=settings.max_broken_pictures > 0)
        self._workers = settings.loader_workers
        self._ends: Kept[tuple[int, int]] = Kept(_KEPT_ENDS)
        self._most_broken = settings.max_broken_pictures
        self._side = tower.image_size

    def load(self, piece: Piece) -> Loaded:  # noqa: D102 - as in Pairs
        rows, keys, captions, several = self.read_table(self._corpus, piece)
        uri = self._corpus.uri(piece.shard, ".tar")
        # Of a shard that is read in several pieces, the next begins where this one ends.
        number, start = self._ends.take(piece.shard) or (0, 0)
        if number > rows[0]:
            number, start = 0, 0
        wanted = set(rows)
        pictures: list[bytes] = []
        for member in shards.members(uri, start):
            if member.suffix == "jpg":
                if number in wanted:
                    if member.key != keys[len(pictures)]:
                        raise self._lacks(keys[len(pictures)], uri)
                    pictures.append(member.read())
                number += 1
                if number > rows[-1]:
                    if piece.stop < self.rows[piece.shard]:
                        self._ends.keep(piece.shard, (number, member.end), 1)
                    break
        if len(pictures) < len(keys):
            raise self._lacks(keys[len(pictures)], uri)
        return self.loaded(piece, keys, captions, pictures, uri, several)

    def _lacks(self, key: str, uri: str) -> DataError:
        return DataError(
            f"{uri} lacks the picture of the pair {key}, or has it in another place than its table: "
            f"{damage.remedy(uri)}"
        )

    def assemble(self, steps: Generator[list[Sample[Loaded]]], share: int) -> Generator[Batch]:  # noqa: D102
        waiting: deque[list[Sample[Loaded]]] = deque()

        def orders() -> Iterator[list[Encoded]]:
            for samples in steps:
                waiting.append(samples)
                yield [_encoded(sample) for sample in samples]

        pin, join = torch.cuda.is_available(), partial(_with_gaps, self._side)
        with closing(steps):
            for views, broken in Loaders(self._views, join, share, self._workers, pin=pin).batches(orders()):
                samples = waiting.popleft()
                for number, problem in broken:
                    log.warning("another pair takes the place of one: %s", problem)
                    samples[number], views[number] = self._stand_in(samples[number], problem)
                yield self.batch(samples, views, len(broken))

    def _stand_in(self, broken: Sample[Loaded], problem: str) -> tuple[Sample[Loaded], Tensor]:
        """Return the pair that takes the place of one whose image is broken, and its view.

        It is the next one of the corpus whose image can be decoded, counted from the broken one: first in the piece
        that was read with it, which depends on the order of the pairs alone, not on how many workers share a batch.
        """
        tried = 0
        for sample in self._followers(broken):
            view = self._views[_encoded(sample)]
            if isinstance(view, Tensor):
                return sample, view
            tried += 1
            if tried > self._most_broken:
                break
        raise DataError(
            f"{problem}; and of the {tried} pairs behind it none has an image that can be decoded, where "
            f"max_broken_pictures is {self._most_broken}: mend the shards or raise it"
        )

    def _followers(self, sample: Sample[Loaded]) -> Iterator[Sample[Loaded]]:
        """Iterate over the other pairs: of the same piece from the sample on, then of the shards from its own on."""
        piece = sample.piece
        for step in range(1, len(piece.keys)):
            yield replace(sample, row=(sample.row + step) % len(piece.keys))
        own = bisect_right(self.firsts, piece.numbers[sample.row]) - 1
        for shard in (*range(own, len(self.rows)), *range(own)):
            for start in range(0, self.rows[shard], stream.WINDOW):
                stop = min(start + stream.WINDOW, self.rows[shard])
                other = self.load_or_replace(Piece(shard, start, stop))
                yield from (replace(sample, piece=other, row=row) for row in range(len(other.keys)))


def _encoded(sample: Sample[Loaded]) -> Encoded:
    piece, row = sample.piece, sample.row
    data = piece.pictures[row]
    assert isinstance(data, bytes)  # noqa: S101 - for mypy
    return data, piece.keys[row], sample.epoch + 1, f"{piece.keys[row]}.jpg of {piece.where}"


def _with_gaps(side: int, shown: Sequence["Tensor | str"]) -> _Shown:
    """Join the views of a batch, uint8 [views, 3, side, side]; a black one keeps the place of a broken image."""
    black = torch.zeros(3, side, side, dtype=torch.uint8)
    broken = [(number, problem) for number, problem in enumerate(shown) if isinstance(problem, str)]
    return torch.stack([view if isinstance(view, Tensor) else black for view in shown]), broken
