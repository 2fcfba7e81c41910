"""What a training run reads: image features or pictures beside tokenised captions, dealt out in seeded batches."""

import fnmatch
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wukong import storage
from wukong.config import ImageEncoder, Training
from wukong.data import images, shards
from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError
from wukong.train.features import read_views

_READERS = 8
"""Shards that are searched for pictures at a time."""


@dataclass(frozen=True)
class Batch:
    """Some pairs of one step.

    Attributes:
        features: float [pairs, width] or [pairs, tokens, width], or uint8 pictures [pairs, 3, size, size].
        ids: token ids, int64 [pairs, longest].
        captions: int64 [pairs], equal for equal captions.
        rows: int64 [pairs], which of all pairs they are.
    """

    features: Tensor
    ids: Tensor
    captions: Tensor
    rows: Tensor


class Pictures(Dataset[Tensor]):
    """The pictures of pairs, read from their shards when they are asked for, a new random view in each epoch.

    Reading, decoding and augmenting happen in processes of their own. A view depends on its picture's key and the epoch
    alone, not on who computes it.

    Args:
        places: of each picture: URI of its shard's tar, key, offset and bytes.
        tower: ``image_size`` and ``view``.
        settings: ``augmentations`` and ``loader_workers``.
    """

    def __init__(self, places: Sequence[tuple[str, str, int, int]], tower: ImageEncoder, settings: Training) -> None:
        self._places = list(places)
        self._tower = tower
        self._augmentations = settings.augmentations
        self._order: list[list[tuple[int, int]]] = []
        self._loader = DataLoader(
            self,
            batch_sampler=self._order,
            num_workers=settings.loader_workers,
            collate_fn=torch.stack,
            generator=torch.Generator(),  # not the global one, which dropout draws from
            persistent_workers=settings.loader_workers > 0,
            multiprocessing_context="spawn" if settings.loader_workers else None,
        )

    def __getstate__(self) -> dict[str, object]:
        """What a loader process needs, which is not the loader."""
        return {name: value for name, value in vars(self).items() if name not in {"_loader", "_order"}}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, chosen: tuple[int, int]) -> Tensor:
        """One view of a picture, uint8 [3, size, size]; view 0 is the evaluation view."""
        row, view = chosen
        uri, key, offset, size = self._places[row]
        with storage.open_input(uri) as stream:
            stream.seek(offset)
            picture = images.decode(stream.read(size), f"{key}.jpg of {uri}")
        side = self._tower.image_size
        if view and self._augmentations:
            shown = images.augmented_view(picture, side, images.view_seed(key, view), self._augmentations)
        else:
            shown = images.evaluation_view(picture, side, self._tower.view)
        return images.to_tensor([shown])[0]

    def batches(self, rows: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        """The pictures of each batch in turn, uint8 [pairs, 3, size, size]; one epoch at a time.

        Args:
            rows: of each batch, which pictures.
            epoch: 0 for the first.
        """
        self._order[:] = [[(row, epoch + 1) for row in batch.tolist()] for batch in rows]
        yield from self._loader


class Pairs:
    """The pairs of a training run.

    Args:
        features: float16 [views, pairs, ...], or the pictures.
        captions: one a pair.
        tokenizer: of the captions.
    """

    def __init__(self, features: Tensor | Pictures, captions: Sequence[str], tokenizer: Tokenizer) -> None:
        self.features = features
        self.captions = list(captions)
        self._tokenizer = tokenizer
        self._ids = tokenizer.encode(captions)
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        self._special = torch.tensor([tokenizer.pad, tokenizer.cls, tokenizer.sep])
        self._numbers = torch.tensor([numbers[caption] for caption in captions])

    def __len__(self) -> int:
        return len(self.captions)

    def mask_tokens(self, ids: Tensor, share: float) -> Tensor:
        """Replace a random share of the word pieces, never a special token, by [MASK] (torch's global generator)."""
        chosen = (torch.rand(ids.shape) < share) & ~torch.isin(ids, self._special)
        return ids.masked_fill(chosen, self._tokenizer.mask)

    def batches(self, size: int, seed: int, epoch: int, rank: int = 0, workers: int = 1) -> Iterator[Batch]:
        """This worker's share of each batch of one epoch, in an order that seed and epoch fix; the rest is left out.

        Workers' shares laid end to end are the batch that one worker would get.

        Args:
            size: pairs a batch over all workers, which divide it.
            seed: of the run.
            epoch: 0 for the first.
            rank: this worker's.
            workers: how many there are.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self), generator=generator)
        share = size // workers
        starts = range(rank * share, len(self) - size + 1 + rank * share, size)
        dealt = [order[start : start + share] for start in starts]
        if isinstance(self.features, Pictures):
            features = self.features.batches(dealt, epoch)
        else:
            stored = self.features
            views = torch.randint(len(stored), (len(self),), generator=generator)
            features = (stored[views[rows], rows].float() for rows in dealt)
        for rows, pixels in zip(dealt, features, strict=True):
            ids = self._tokenizer.collate([self._ids[row] for row in rows.tolist()])
            yield Batch(pixels, ids, self._numbers[rows], rows)


def matching(urls: Sequence[str], patterns: Sequence[str]) -> list[bool]:
    """Tell which URLs match one of some shell patterns."""
    match = re.compile("|".join(map(fnmatch.translate, patterns))).match
    return [match(url) is not None for url in urls]


def load(
    pairs_prefix: str,
    features_prefix: str,
    split: str,
    shard_names: Sequence[str],
    views: Sequence[int],
    sources: Sequence[str] = ("*",),
) -> tuple[pa.Table, Tensor]:
    """Read the pairs of a split whose URL matches, with their features.

    Args:
        pairs_prefix: URI of the filter stage.
        features_prefix: URI of the features stage.
        split: ``train`` or a hold-out's name.
        shard_names: for instance ``00000``.
        views: which views.
        sources: shell patterns on the URL.

    Returns:
        The rows (key, url, caption, sha256) and the features, float16 [views, rows, ...], in the same order.

    Raises:
        DataError: a pair has no features, or no pair is left.
    """
    table = _rows(pairs_prefix, split, shard_names, sources)
    keys, features = read_views(features_prefix, split, shard_names, views)
    places = {key: place for place, key in enumerate(keys)}
    try:
        rows = [places[key] for key in table["key"].to_pylist()]
    except KeyError as error:
        raise DataError(
            f"{features_prefix} has no features of the pair {error} of {split}: delete it and run again"
        ) from None
    return table, features[:, rows]


def load_pictures(
    pairs_prefix: str, split: str, shard_names: Sequence[str], tower: ImageEncoder, settings: Training
) -> tuple[pa.Table, Pictures]:
    """Read the pairs of a split whose URL matches, and find their pictures in the shards.

    Args:
        pairs_prefix: URI of the filter stage.
        split: for instance ``train``.
        shard_names: for instance ``00000``.
        tower: what size of pictures it reads, and what it sees of them.
        settings: ``sources`` and what ``Pictures`` reads.

    Returns:
        The rows as ``load`` gives them, and their pictures in the same order.

    Raises:
        DataError: a shard lacks a picture or is damaged, or no pair is left.
    """
    table = _rows(pairs_prefix, split, shard_names, settings.sources)
    places: dict[str, tuple[str, str, int, int]] = {}
    with ThreadPoolExecutor(_READERS) as readers:
        tars = [storage.join(pairs_prefix, split, f"{shard}.tar") for shard in shard_names]
        for found in readers.map(_places, tars):
            places |= found
    try:
        chosen = [places[key] for key in table["key"].to_pylist()]
    except KeyError as error:
        raise DataError(
            f"the shards of {split} below {pairs_prefix} lack the picture {error}: delete them and run the filter again"
        ) from None
    return table, Pictures(chosen, tower, settings)


def _places(tar_uri: str) -> dict[str, tuple[str, str, int, int]]:
    return {
        member.key: (tar_uri, member.key, member.offset, member.size)
        for member in shards.members(tar_uri)
        if member.suffix == "jpg"
    }


def _rows(pairs_prefix: str, split: str, shard_names: Sequence[str], sources: Sequence[str]) -> pa.Table:
    columns = ["key", "url", "caption", "sha256"]
    table = pa.concat_tables(
        storage.read_table(storage.join(pairs_prefix, split, f"{shard}.parquet"), columns) for shard in shard_names
    )
    chosen = [place for place, wanted in enumerate(matching(table["url"].to_pylist(), sources)) if wanted]
    if not chosen:
        raise DataError(f"no pair of {split} comes from {', '.join(sources)}: mend the patterns on its URL")
    return table.take(pa.array(chosen, pa.int64()))
