"""What a training run reads: image features or pictures beside tokenised captions, dealt out in seeded batches."""

import fnmatch
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from wukong import storage
from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError
from wukong.train.features import read_views


@dataclass(frozen=True)
class Batch:
    """Some pairs of one step.

    Attributes:
        features: float [pairs, width] or [pairs, tokens, width].
        ids: token ids, int64 [pairs, longest].
        captions: int64 [pairs], equal for equal captions.
    """

    features: Tensor
    ids: Tensor
    captions: Tensor


class Pairs:
    """The pairs of a training run.

    Args:
        features: float16 [views, pairs, ...].
        captions: one a pair.
        tokenizer: of the captions.
    """

    def __init__(self, features: Tensor, captions: Sequence[str], tokenizer: Tokenizer) -> None:
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
        views = torch.randint(len(self.features), (len(self),), generator=generator)
        share = size // workers
        for start in range(rank * share, len(self) - size + 1 + rank * share, size):
            rows = order[start : start + share]
            yield Batch(
                self.features[views[rows], rows].float(),
                self._tokenizer.collate([self._ids[row] for row in rows.tolist()]),
                self._numbers[rows],
            )


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
    columns = ["key", "url", "caption", "sha256"]
    table = pa.concat_tables(
        storage.read_table(storage.join(pairs_prefix, split, f"{shard}.parquet"), columns) for shard in shard_names
    )
    keys, features = read_views(features_prefix, split, shard_names, views)
    places = {key: place for place, key in enumerate(keys)}
    chosen = [place for place, wanted in enumerate(matching(table["url"].to_pylist(), sources)) if wanted]
    table = table.take(pa.array(chosen, pa.int64()))
    try:
        rows = [places[key] for key in table["key"].to_pylist()]
    except KeyError as error:
        raise DataError(
            f"{features_prefix} has no features of the pair {error} of {split}: delete it and run again"
        ) from None
    if not rows:
        raise DataError(f"no pair of {split} comes from {', '.join(sources)}: mend the patterns on its URL")
    return table, features[:, rows]
