"""Training pairs whose image features are stored."""

from collections.abc import Generator, Sequence
from contextlib import closing

import torch
from torch import Tensor

from wukong.data import feature_files
from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError, StorageError
from wukong.store import damage, storage
from wukong.train.batches import Batch, ahead
from wukong.train.corpus import Corpus
from wukong.train.pairs import Kept, Loaded, Pairs
from wukong.train.stream import Piece, Sample

_BLOCK_BYTES = 2 << 20
"""Bytes to fill when a file of features is read, if the piece has fewer."""
_KEPT_FEATURES = 1 << 30
"""Most bytes that a worker keeps of files of features beyond the pieces in use. Where its lanes have many shards and
views, less is read at a time, so that all of them have room."""
_KEY_BYTES = 80
"""Bytes of a key in memory."""
_AHEAD, _AHEAD_BYTES = 4, 512 << 20
"""Most batches of stored features that are made before they are needed, and their bytes; one is in any case."""


class FeaturePairs(Pairs):
    """Pairs with stored features of their images; each epoch chooses one of the views at random for each pair.

    Args:
        corpus: the pairs.
        tokenizer: the captions' tokenizer.
        prefix: URI of the features stage's output.
        views: numbers of the views to choose from.
        max_lost_shards: number of shards that may be missing or damaged.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: Tokenizer, prefix: str, views: Sequence[int], max_lost_shards: int = 0
    ) -> None:
        super().__init__(corpus.rows, corpus.digest, tokenizer, max_lost_shards)
        self._corpus, self._prefix, self._views = corpus, prefix, tuple(views)
        self._blocks: Kept[tuple[int, list[str], Tensor]] = Kept(_KEPT_FEATURES)

    def load(self, piece: Piece) -> Loaded:  # noqa: D102 - as in Pairs
        rows, keys, captions, several = self.read_table(self._corpus, piece)
        views = [self._view(piece.shard, rows, keys, view) for view in self._views]
        return self.loaded(piece, keys, captions, torch.stack(views), several=several)

    def _view(self, shard: int, rows: list[int], keys: list[str], view: int) -> Tensor:
        """Read the features of one view of a shard's pairs at some rows, float16 [pairs, ...]."""
        uri = storage.join(self._prefix, feature_files.path_of(self._corpus.split, self._corpus.names[shard], view))
        first, stop = rows[0], rows[-1] + 1
        if (kept := self._blocks.take(uri)) is not None and kept[0] <= first and stop <= kept[0] + len(kept[1]):
            first, stored, values = kept
        else:
            room = _KEPT_FEATURES // (self.shards_in_use * len(self._views))
            stored, values = feature_files.read_rows(uri, first, stop, min(_BLOCK_BYTES, room))
        if stop < first + len(stored):
            self._blocks.keep(uri, (first, stored, values), values.nbytes + _KEY_BYTES * len(stored))
        within = [row - first for row in rows]
        if [stored[row] for row in within] != keys:
            raise DataError(
                f"{uri} has the features of other pairs than {self._corpus.uri(shard, '.parquet')}: "
                f"{damage.remedy(uri)}"
            )
        values = values[within]
        finite = torch.isfinite(values).flatten(1).all(1)
        if not finite.all():
            key = keys[int((~finite).nonzero()[0])]
            raise DataError(f"the image features of the pair {key} in {uri} are not finite: {damage.remedy(uri)}")
        return values

    def sample(self, count: int, view: int = 0) -> Tensor:
        """Read features of one view of the first pairs, float16 [pairs, ...].

        Shards hold pairs in random order, so the first pairs are a random sample.

        Args:
            count: number of pairs; fewer if the corpus has fewer.
            view: number of the view.

        Raises:
            DataError: more shards are lost than may be.
        """
        values: list[Tensor] = []
        left = count
        for shard, rows in enumerate(self.rows):
            if rows and left:
                try:
                    taken, keys, *_ = self.read_table(self._corpus, Piece(shard, 0, min(rows, left)))
                    values.append(self._view(shard, taken, keys, view))
                    left -= len(taken)
                except (DataError, StorageError) as error:
                    self.lose(shard, error)
        if not values:
            raise DataError(f"none of the {len(self.rows)} shards can be read; the log says why")
        return torch.cat(values)

    def assemble(self, steps: Generator[list[Sample[Loaded]]], _share: int) -> Generator[Batch]:  # noqa: D102
        def batches() -> Generator[Batch]:
            with closing(steps):
                for samples in steps:
                    yield self.batch(samples, _chosen_views(samples))

        return ahead(batches(), _AHEAD, _AHEAD_BYTES)


def _chosen_views(samples: Sequence[Sample[Loaded]]) -> Tensor:
    """Return the features of one view of each sample, float16 [samples, ...]."""
    by_piece: dict[int, list[int]] = {}
    for number, sample in enumerate(samples):
        by_piece.setdefault(id(sample.piece), []).append(number)
    features = torch.empty(0)
    for numbers in by_piece.values():
        chosen = [samples[number] for number in numbers]
        stored = chosen[0].piece.pictures
        assert isinstance(stored, Tensor)  # noqa: S101 - for mypy
        views, rows = [sample.drawn % len(stored) for sample in chosen], [sample.row for sample in chosen]
        if not len(features):
            features = torch.empty(len(samples), *stored.shape[2:], dtype=stored.dtype)
        features[numbers] = stored[views, rows]
    return features
