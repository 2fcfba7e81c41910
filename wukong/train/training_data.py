"""The input of a training run: image features or images with tokenised captions, in seeded random batches."""

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
"""Number of shards that are indexed in parallel."""


@dataclass(frozen=True)
class Batch:
    """One worker's pairs of one training step.

    Attributes:
        features: image features, float [pairs, width] or [pairs, tokens, width]; or images, uint8
            [pairs, 3, size, size].
        ids: token ids, int64 [pairs, longest caption].
        captions: int64 [pairs], equal numbers for equal captions.
        rows: int64 [pairs], the row numbers of the pairs in the data set.
    """

    features: Tensor
    ids: Tensor
    captions: Tensor
    rows: Tensor


class Pictures(Dataset[Tensor]):
    """The images of pairs, read from their shards on demand, with a new random view in each epoch.

    Loader processes read, decode and augment the images. A view depends only on the image's key and the epoch, not on
    the process that computes it.

    Args:
        places: for each image: the URI of its shard's tar, its key, its offset and its size in bytes.
        tower: settings of the image encoder; ``image_size`` and ``view`` are used.
        settings: settings of the training; ``augmentations`` and ``loader_workers`` are used.
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
            generator=torch.Generator(),  # not the global generator, which dropout uses
            persistent_workers=settings.loader_workers > 0,
            multiprocessing_context="spawn" if settings.loader_workers else None,
        )

    def __getstate__(self) -> dict[str, object]:
        """Return the state for a loader process, which does not need the loader itself."""
        return {name: value for name, value in vars(self).items() if name not in {"_loader", "_order"}}

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, chosen: tuple[int, int]) -> Tensor:
        """Return one view of an image, uint8 [3, size, size]; view 0 is the evaluation view."""
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
        """Iterate over the batches of one epoch, uint8 [pairs, 3, size, size].

        Args:
            rows: for each batch, the row numbers of its images.
            epoch: number of the epoch, 0 for the first.
        """
        self._order[:] = [[(row, epoch + 1) for row in batch.tolist()] for batch in rows]
        yield from self._loader


class Pairs:
    """The pairs of a training run.

    Args:
        features: image features, float16 [views, pairs, ...], or the images.
        captions: one caption for each pair.
        tokenizer: the captions' tokenizer.
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
        """Replace a random share of the word pieces, but no special tokens, by [MASK].

        The random numbers come from torch's global generator.
        """
        chosen = (torch.rand(ids.shape) < share) & ~torch.isin(ids, self._special)
        return ids.masked_fill(chosen, self._tokenizer.mask)

    def batches(self, size: int, seed: int, epoch: int, rank: int = 0, workers: int = 1) -> Iterator[Batch]:
        """Iterate over this worker's share of each batch of one epoch.

        The order of the pairs depends only on the seed and the epoch. An incomplete last batch is left out. The shares
        of all workers, joined in rank order, are the batch that a single worker would get.

        Args:
            size: number of pairs in a batch over all workers; the number of workers must divide it.
            seed: seed of the run.
            epoch: number of the epoch, 0 for the first.
            rank: rank of this worker.
            workers: number of workers.
        """
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(self), generator=generator)
        share = size // workers
        starts = range(rank * share, len(self) - size + 1 + rank * share, size)
        batches = [order[start : start + share] for start in starts]
        if isinstance(self.features, Pictures):
            features = self.features.batches(batches, epoch)
        else:
            stored = self.features
            views = torch.randint(len(stored), (len(self),), generator=generator)
            features = (stored[views[rows], rows].float() for rows in batches)
        for rows, inputs in zip(batches, features, strict=True):
            ids = self._tokenizer.collate([self._ids[row] for row in rows.tolist()])
            yield Batch(inputs, ids, self._numbers[rows], rows)


def matching(urls: Sequence[str], patterns: Sequence[str]) -> list[bool]:
    """Return, for each URL, whether it matches one of the shell patterns."""
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
    """Read the pairs of a split with their image features.

    Args:
        pairs_prefix: URI of the filter stage's output.
        features_prefix: URI of the features stage's output.
        split: ``train`` or a hold-out's name.
        shard_names: names of the shards, for instance ``00000``.
        views: numbers of the views.
        sources: shell patterns; only pairs whose URL matches one of them are read.

    Returns:
        The rows (key, url, caption, sha256) and the features, float16 [views, rows, ...], in the same order.

    Raises:
        DataError: a pair has no features, or no pair matches.
    """
    table = _rows(pairs_prefix, split, shard_names, sources)
    keys, features = read_views(features_prefix, split, shard_names, views)
    places = {key: place for place, key in enumerate(keys)}
    try:
        rows = [places[key] for key in table["key"].to_pylist()]
    except KeyError as error:
        raise DataError(
            f"{features_prefix} has no features for the pair {error} of {split}: delete it and run again"
        ) from None
    return table, features[:, rows]


def load_pictures(
    pairs_prefix: str, split: str, shard_names: Sequence[str], tower: ImageEncoder, settings: Training
) -> tuple[pa.Table, Pictures]:
    """Read the pairs of a split, and find their images in the shards.

    Args:
        pairs_prefix: URI of the filter stage's output.
        split: for instance ``train``.
        shard_names: names of the shards, for instance ``00000``.
        tower: settings of the image encoder, see ``Pictures``.
        settings: settings of the training; ``sources`` selects pairs by their URL, for the others see ``Pictures``.

    Returns:
        The rows (key, url, caption, sha256) and their images, in the same order.

    Raises:
        DataError: a shard lacks an image or is damaged, or no pair matches.
    """
    table = _rows(pairs_prefix, split, shard_names, settings.sources)
    places: dict[str, tuple[str, str, int, int]] = {}
    with ThreadPoolExecutor(_READERS) as readers:
        tars = [storage.join(pairs_prefix, split, f"{shard}.tar") for shard in shard_names]
        for index in readers.map(_index, tars):
            places |= index
    try:
        chosen = [places[key] for key in table["key"].to_pylist()]
    except KeyError as error:
        raise DataError(
            f"the shards of {split} below {pairs_prefix} lack the picture {error}: delete them and run the filter again"
        ) from None
    return table, Pictures(chosen, tower, settings)


def _index(tar_uri: str) -> dict[str, tuple[str, str, int, int]]:
    """Return the place of each image in a tar by its key, as ``Pictures`` takes it."""
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
        raise DataError(f"no pair of {split} comes from {', '.join(sources)}: correct these patterns on its URL")
    return table.take(pa.array(chosen, pa.int64()))
