"""Fit the taggers of person names: write ``lists/taggers.safetensors``, which the library ships.

The loss is the CRF's negative log likelihood of the labelled tags. Captions are varied while they are read
(``augment.py``), and word-list features are left out at random, so that names on no list are found too. The weights are
an exponential moving average over the last two thirds of the steps. The taggers differ in size and seed.

The same captions, lists and settings give the same bytes on one machine with one version of torch; another processor or
version may round differently. It takes about 12 minutes on two cores, and needs the extras ``curate`` and ``train``:

    python -m tools.name_tagger.fit benchmarks/curate/names/captions/train

``benchmarks/curate/names/held_out.py`` fits on all files but one and measures on that one.
"""

import argparse
import logging
import multiprocessing
import os
import random
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tools.name_tagger import augment, captions
from tools.name_tagger.augment import NamePool
from tools.name_tagger.captions import Labelled
from tools.name_tagger.torch_tagger import TorchTagger, exported
from wukong.curate.names import normalized, tagger, word_lists
from wukong.curate.names.tagger import BEGINS, ENDS, INSIDE, OUTSIDE, SINGLE, Floats
from wukong.curate.names.word_lists import KINDS, MARKS, NameWords, Occurrences
from wukong.errors import DataError, WukongError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitSettings:
    """How taggers are fitted; the defaults are those of the shipped weights.

    Attributes:
        hidden: number of states in each direction, of each tagger. The first reads every caption, so it is small.
        epochs: passes over the captions.
        batch_size: captions a step.
        learning_rate: the highest, after 100 steps; it then decreases linearly.
        dropout: see ``TorchTagger``.
        decay: the decay of the moving average of the weights.
        max_length: longer captions are left out, in characters.
        joined: probability that another caption is joined to a caption.
        nameless: captions made of a dictionary word, as a share of the labelled captions.
        missing: by kinds of words, the probability that a caption has no features of them.
        missing_one: probability that an occurrence of a word has no features.
    """

    hidden: tuple[int, ...] = (48, 64, 64)
    epochs: int = 16
    batch_size: int = 64
    learning_rate: float = 5e-3
    dropout: float = 0.3
    decay: float = 0.995
    max_length: int = 60
    joined: float = 0.15
    nameless: float = 0.25
    missing: tuple[tuple[tuple[str, ...], float], ...] = (
        (("person",), 0.15),
        (("dictionary name",), 0.15),
        (("brand",), 0.2),
        (("place", "word", "rare word"), 0.1),
    )
    missing_one: float = 0.08


@dataclass(frozen=True)
class Encoder:
    """Turns captions into tensors.

    Attributes:
        rows: by character, the index of its vector.
        unknown: that of a character without a vector.
        words: the words whose features are computed.
    """

    rows: Mapping[str, int]
    unknown: int
    words: NameWords

    def batch(
        self, some: Sequence[Labelled], settings: FitSettings, generator: random.Random
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The arguments of ``TorchTagger.loss`` for some captions, with features left out at random."""
        # One newline or more after each text keeps words from being found across texts.
        length = max(len(text) for text, _ in some) + 1
        together = "".join(text.ljust(length, "\n") for text, _ in some)
        ids = torch.tensor([self.rows.get(character, self.unknown) for character in together]).reshape(-1, length)
        occurrences = self._left_out(self.words.find(together), length, len(some), settings, generator)
        marks = torch.from_numpy(word_lists.marks(occurrences, len(together))).reshape(-1, length, len(MARKS))
        inside, tags = torch.zeros(ids.shape), torch.full(ids.shape, OUTSIDE)
        for row, (text, names) in enumerate(some):
            inside[row, : len(text)] = 1
            for start, end in names:
                tags[row, start:end] = INSIDE
                tags[row, start], tags[row, end - 1] = (BEGINS, ENDS) if end - start > 1 else (SINGLE, SINGLE)
        return ids[:, :-1], marks[:, :-1], inside[:, :-1], tags[:, :-1]

    @staticmethod
    def _left_out(
        found: Occurrences, length: int, texts: int, settings: FitSettings, generator: random.Random
    ) -> Occurrences:
        """Words without some kinds in some texts, and some words without any."""
        missing = np.array(
            [
                sum(
                    1 << KINDS.index(k)
                    for kinds, share in settings.missing
                    if generator.random() < share
                    for k in kinds
                )
                for _ in range(texts)
            ],
            np.uint8,
        )
        kinds = found.kinds & ~missing[found.start // length]
        kinds[np.random.default_rng(generator.getrandbits(32)).random(len(kinds)) < settings.missing_one] = 0
        return Occurrences(kinds, found.start, found.end)


def fit_tagger(some: Sequence[Labelled], settings: FitSettings, hidden: int, seed: int) -> dict[str, Floats]:
    """Fit one tagger.

    Args:
        some: the captions to fit on.
        settings: see there.
        hidden: number of states in each direction.
        seed: the seed of the weights and of the variation of captions.

    Returns:
        The weights by the names that ``tagger.Tagger`` takes, float32.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    generator = random.Random(seed)
    rows, vectors = tagger.characters()
    encoder = Encoder(rows, len(vectors) - 1, word_lists.load())
    some = [Labelled(normalized(text), names) for text, names in some]
    words = augment.nameless_words()
    pool = NamePool([text[start:end] for text, names in some for start, end in names])
    model = TorchTagger(vectors, hidden, settings.dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=1e-2)
    steps = settings.epochs * (int(len(some) * (1 + settings.nameless)) // settings.batch_size + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, step / 100) * max(0.02, 1 - step / steps)
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.decay))
    step = 0
    for epoch in range(settings.epochs):
        model.train()
        total, batches = 0.0, _epoch(some, words, pool, settings, generator)
        for each in batches:
            optimizer.zero_grad()
            loss = model.loss(*encoder.batch(each, settings, generator))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
            step += 1
            if step > steps / 3:
                average.update_parameters(model)
        log.info("tagger %d: epoch %d of %d, loss %.3f", seed, epoch + 1, settings.epochs, total / len(batches))
    return exported(average.module)


def _epoch(
    some: Sequence[Labelled], words: Sequence[str], pool: NamePool, settings: FitSettings, generator: random.Random
) -> list[list[Labelled]]:
    """The batches of one epoch: captions of about one length together, the batches in random order."""
    nameless = [augment.nameless_caption(words, generator) for _ in range(int(len(some) * settings.nameless))]
    varied = []
    for caption in [*some, *nameless]:
        made = augment.replace_names(caption, pool, generator)
        if generator.random() < settings.joined:
            other = augment.replace_names(generator.choice(some), pool, generator)
            made = augment.join(made, other, generator)
        if 0 < len(made.text) <= settings.max_length:
            varied.append(made)
    varied.sort(key=lambda made: len(made.text) + 4 * generator.random())
    batches = [varied[start : start + settings.batch_size] for start in range(0, len(varied), settings.batch_size)]
    generator.shuffle(batches)
    return batches


def fit(some: Sequence[Labelled], settings: FitSettings | None = None) -> dict[str, Floats]:
    """Fit all taggers, side by side in processes of their own.

    Args:
        some: the captions to fit on.
        settings: if absent, those of the shipped weights.

    Returns:
        The weights by the names that ``tagger.committee`` takes, float32.

    Raises:
        DataError: there is no caption, or a list or a caption has a name that was taken out.
    """
    settings = settings or FitSettings()
    if not any(caption.text for caption in some):
        raise DataError("there is no caption to fit on; give labelled captions")
    _check_removed(some)
    seeds = range(len(settings.hidden))
    context = multiprocessing.get_context("spawn")
    workers = min(len(seeds), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, context, initializer=_log_to_stderr) as pool:
        fitted = list(pool.map(partial(fit_tagger, some, settings), settings.hidden, seeds))
    return {f"{number}.{name}": value for number, weights in enumerate(fitted) for name, value in weights.items()}


def _check_removed(some: Sequence[Labelled]) -> None:
    listed = [word for name in word_lists.NAME_LISTS for word in word_lists.read_list(name)]
    labelled = [text[start:end] for text, names in some for start, end in names]
    if back := word_lists.removed([*listed, *labelled]):
        raise DataError(
            f"{', '.join(sorted(set(back)))}: taken out at a person's request (lists/removed.txt), but a list or a "
            "labelled caption has it again; take it out there"
        )


def shipped_bytes(weights: Mapping[str, Floats]) -> bytes:
    """The content of ``taggers.safetensors``: the weights as float16."""
    made: bytes = save({name: value.astype(np.float16) for name, value in weights.items()})
    return made


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)


def main() -> None:
    """Fit on the captions of a folder and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path, help="a folder of .txt files of labelled captions")
    parser.add_argument("--output", type=Path, default=tagger.WEIGHTS, help="default: %(default)s")
    options = parser.parse_args()
    _log_to_stderr()
    try:
        some = [caption for path in sorted(options.captions.glob("*.txt")) for caption in captions.read(path)]
        if not some:
            raise DataError(f"no labelled captions in {options.captions}: give a folder of .txt files")
        options.output.write_bytes(shipped_bytes(fit(some)))
    except WukongError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
