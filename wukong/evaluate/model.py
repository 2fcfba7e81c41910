"""What an evaluation needs of a model: the interface, this project's models behind it, and checks of their vectors."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple
from typing import Protocol as Interface

import torch
from PIL import Image
from torch import Tensor, nn

from wukong.data import images
from wukong.data.tokenizer import Tokenizer
from wukong.errors import DataError
from wukong.evaluate import best_words
from wukong.evaluate.protocol import Protocol
from wukong.evaluate.vectors import Rows, slices
from wukong.model.dual import Texts
from wukong.model.image_encoder import ImageEncoder
from wukong.model.saved_model import SavedModel
from wukong.model.similarity import Scores, token_similarity_of_pairs

_SAME = 1e-6
_MAX_UNKNOWN = 0.5


class CollapsedError(DataError):
    """All vectors of a kind are equal, so that every ranking of them would be an accident."""


class Quick(NamedTuple):
    """How many similarities in both directions are computed in less time (``wukong.evaluate.candidates``).

    Attributes:
        rough: computes those of a block roughly, as ``Model.similarity``.
        of_pairs: computes those of each image with the text in its place exactly, [pairs].
    """

    rough: Callable[[Tensor, Texts], Scores]
    of_pairs: Callable[[Tensor, Texts], Scores]


class Model(Interface):
    """A model that can be evaluated. Whoever wraps a foreign model gives these members.

    A model may also have ``count_cut``, with the arguments of ``encode_texts``: how many of the texts are longer than
    what it reads of them, or None. Where it has, results say how many captions were cut. And it may have ``quick``, a
    ``Quick`` or None.
    """

    @property
    def name(self) -> str:
        """How reports call it, for instance its URI."""
        ...

    @property
    def digest(self) -> str:
        """What identifies weights and vocabulary; embedded classes are cached by it."""
        ...

    @property
    def token_wise(self) -> bool:
        """Whether images and texts have one vector for each token (FILIP) or one vector (CLIP)."""
        ...

    @property
    def scale(self) -> float:
        """The factor on similarities before a softmax."""
        ...

    def encode_images(self, pictures: Sequence[Image.Image], protocol: Protocol) -> Tensor:
        """Encode RGB images, transformed as the protocol says: unit vectors, float32 [images, (tokens,) d]."""
        ...

    def encode_texts(self, texts: Sequence[str], protocol: Protocol) -> Texts:
        """Encode texts, cut and cased as the protocol says: unit vectors, and which tokens count."""
        ...

    def similarity(self, image: Tensor, text: Texts) -> Scores:
        """Compute the similarities of encoded images and texts in both directions, [images, texts]."""
        ...

    def image_to_text(self, image: Tensor, text: Texts) -> Tensor:
        """Compute s^I alone, float32 [images, texts], for classification; ``best_words.exact`` is a quick way to."""
        ...

    def rough_image_to_text(self, image: Tensor, text: Texts) -> Tensor | None:
        """Compute s^I roughly and in less time, as ``best_words.rough`` does; None where that is not quicker."""
        ...


class OwnModel:
    """A model of this project, from ``wukong.load``, behind the interface ``Model``.

    Args:
        saved: the model with its image tower.
        name: how reports call it.

    Raises:
        DataError: tokenizer and text encoder have different vocabularies.
    """

    def __init__(self, saved: SavedModel, name: str) -> None:
        refuse_other_vocabulary(saved)
        self._saved = saved
        self.name = name
        self.token_wise = saved.model.token_wise
        self.scale = float(saved.model.scale.detach())
        self.digest = _digest(saved)

    @property
    def saved(self) -> SavedModel:
        """The model itself, for what the interface does not have."""
        return self._saved

    def encode_images(self, pictures: Sequence[Image.Image], protocol: Protocol) -> Tensor:
        """Encode RGB images; see ``Model``.

        Raises:
            DataError: a vector is not finite.
        """
        if protocol.transform == "model":
            return self._saved.encode_image(list(pictures))
        size = self._saved.model.settings.image.image_size
        # A square of the encoder's size passes through either of the model's own views unchanged.
        return self._saved.encode_image([square(picture, size, protocol) for picture in pictures])

    def share_tower(self, other: "OwnModel") -> None:
        """Take another model's image tower in the place of the own one if they are equal, bit by bit."""
        tower = other._saved.model.image
        if tower is not None and self._tower_digest is not None and self._tower_digest == other._tower_digest:
            self._saved.model.image = tower

    def has_tower(self, tower: ImageEncoder) -> bool:
        """Whether this model's image tower is a given one: equal settings and weights, bit by bit."""
        return self._tower_digest == _digest_of_tower(tower)

    @cached_property
    def _tower_digest(self) -> str | None:
        """SHA-256 over the image tower's settings and weights; None where it is not in memory."""
        tower = self._saved.model.image
        return None if tower is None else _digest_of_tower(tower)

    def run_tower(self, pixels: Tensor) -> Tensor:
        """Compute the image tower's features of uint8 images [images, 3, size, size], for ``encode_features``."""
        model = self._saved.model
        if model.image is None:
            raise ValueError("the model was loaded without its image tower")
        with torch.inference_mode():
            return model.select(model.image(pixels.to(self._saved.device, non_blocking=True)))

    def encode_features(self, features: Tensor) -> Tensor:
        """Encode features that the model's image tower gave before, [images, ...], as ``encode_images`` the images.

        Raises:
            DataError: a vector is not finite.
        """
        with torch.inference_mode():
            vectors = self._saved.model.embed_features(features.float().to(self._saved.device)).float().cpu()
        refuse_not_finite(vectors, "image")
        return vectors

    def encode_texts(self, texts: Sequence[str], protocol: Protocol) -> Texts:
        """Encode texts; see ``Model``. A model that reads fewer tokens than the protocol's context cuts at its own.

        Raises:
            DataError: a vector is not finite, or most words are unknown to the vocabulary.
        """
        tokenizer = self._saved.tokenizer
        return self.encode_ids(token_ids(tokenizer, [protocol.written(text) for text in texts], protocol.context))

    def count_cut(self, texts: Sequence[str], protocol: Protocol) -> int:
        """Count the texts that ``encode_texts`` cuts."""
        tokenizer = self._saved.tokenizer
        return tokens_cut(tokenizer, [protocol.written(text) for text in texts], protocol.context)

    def encode_ids(self, cut: Sequence[Sequence[int]]) -> Texts:
        """Encode texts that ``token_ids`` has cut, as ``encode_texts`` does.

        Raises:
            DataError: a vector is not finite.
        """
        tokenizer, parts = self._saved.tokenizer, []
        for start in range(0, len(cut), 256):
            ids = tokenizer.collate(cut[start : start + 256])
            with torch.inference_mode():
                vectors, counted = self._saved.model.embed_text(ids.to(self._saved.device))
            parts.append(Texts(vectors.float().cpu(), counted.cpu()))
        joined = concatenate(parts)
        refuse_not_finite(joined.vectors, "text")
        return joined

    def similarity(self, image: Tensor, text: Texts) -> Scores:
        """Compute the similarities in both directions; see ``Model``."""
        return self._saved.model.similarity(image, text)

    def image_to_text(self, image: Tensor, text: Texts) -> Tensor:
        """Compute s^I alone; see ``Model``."""
        if self.token_wise and self._saved.device.type == "cpu":
            return best_words.exact(image, text, self._saved.model.settings.match_text_cls)
        there = Texts(*(each.to(self._saved.device) for each in text))
        return self.similarity(image.to(self._saved.device), there).image_to_text.float().cpu()

    def rough_image_to_text(self, image: Tensor, text: Texts) -> Tensor | None:
        """Compute s^I roughly; see ``Model``."""
        if self.quick is not None:
            return self._rough(image, text).image_to_text.cpu()
        if not self.token_wise or self._saved.device.type != "cpu" or not best_words.rough_is_quicker():
            return None
        return best_words.rough(image, text, self._saved.model.settings.match_text_cls)

    @property
    def quick(self) -> Quick | None:
        """How many token-wise similarities are computed in less time; None where nothing is quicker."""
        if not self.token_wise or not best_words.half_is_quicker(self._saved.device):
            return None
        return Quick(self._rough, self._of_pairs)

    def _rough(self, image: Tensor, text: Texts) -> Scores:
        # Of unit vectors no number leaves the range of float16, whose step is an eighth of bfloat16's.
        half = Texts(text.vectors.to(self._saved.device, torch.float16), text.counted.to(self._saved.device))
        return Scores(*(each.float() for each in self.similarity(image.to(self._saved.device, torch.float16), half)))

    def _of_pairs(self, image: Tensor, text: Texts) -> Scores:
        return token_similarity_of_pairs(image, *text, self._saved.model.settings.match_text_cls)


def square(picture: Image.Image, size: int, protocol: Protocol, view: Literal["whole", "crop"] = "crop") -> Image.Image:
    """Make the square that the image encoder reads, [size, size].

    Args:
        picture: an RGB image.
        size: length of a side in pixels.
        protocol: whether it is squashed, resized and cropped to its middle, or as the model's own view.
        view: the model's own view.
    """
    if protocol.transform == "squash":
        return picture.resize((size, size), Image.Resampling.BICUBIC)
    return images.evaluation_view(picture, size, view if protocol.transform == "model" else "crop")


def concatenate(parts: Sequence[Texts]) -> Texts:
    """Join encoded texts of different padded lengths; the padding does not count."""
    if parts[0].vectors.ndim == 2:
        length = max(part.counted.shape[1] for part in parts)
        padded = [torch.nn.functional.pad(part.counted, (0, length - part.counted.shape[1])) for part in parts]
        return Texts(torch.cat([part.vectors for part in parts]), torch.cat(padded))
    length = max(part.vectors.shape[1] for part in parts)
    total = sum(len(part.vectors) for part in parts)
    vectors = parts[0].vectors.new_zeros(total, length, parts[0].vectors.shape[2])
    counted = parts[0].counted.new_zeros(total, length)
    start = 0
    for part in parts:
        end, width = start + len(part.vectors), part.vectors.shape[1]
        vectors[start:end, :width], counted[start:end, :width] = part
        start = end
    return Texts(vectors, counted)


def refuse_not_finite(vectors: Tensor, what: str) -> None:
    """Raise DataError if a vector is not finite; ``what`` names an item in the message."""
    broken = ~torch.isfinite(vectors.flatten(1)).all(1)
    if broken.any():
        raise DataError(_not_finite(int(broken.sum()), len(vectors), int(broken.nonzero()[0]), what))


def _not_finite(broken: int, items: int, first: int, what: str) -> str:
    return (
        f"the vectors of {broken} of {items} {what}s are not finite, the first is {what} {first}: the model's weights "
        "or the features are damaged"
    )


@dataclass(frozen=True)
class Spread:
    """How much vectors differ; that of blocks is added up.

    Attributes:
        items: number of vectors.
        total: their sum, float64 [d].
        squares: the sum of their squared lengths, a float64 scalar.
    """

    items: int
    total: Tensor
    squares: Tensor

    @classmethod
    def of(cls, vectors: Rows, what: str, counted: Tensor | None = None) -> "Spread":
        """Return the spread of vectors, or of the mean of each item's tokens; arguments as in ``refuse_collapsed``.

        Raises:
            DataError: one is not finite.
        """
        items, broken, first = len(vectors), 0, -1
        total, squares = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for rows in slices(items):
            each = vectors[rows]
            wrong = ~torch.isfinite(each.flatten(1)).all(1)
            if wrong.any():
                first = first if broken else rows.start + int(wrong.nonzero()[0])
                broken += int(wrong.sum())
            if each.ndim == 3:
                weight = torch.ones(each.shape[:2]) if counted is None else counted[rows, : each.shape[1]].float()
                each = torch.einsum("itd,it->id", each, weight) / weight.sum(1, keepdim=True)
            total = total + each.double().sum(0)
            squares = squares + each.double().square().sum()
        if broken:
            raise DataError(_not_finite(broken, items, first, what))
        return cls(items, total, squares)

    @classmethod
    def read(cls, blocks: Iterable[Mapping[str, Tensor]]) -> "Spread":
        """Add up the spreads of blocks that ``stored`` gave."""
        parts = [(int(each["items"]), each["total"], each["squares"]) for each in blocks]
        items, totals, squares = zip(*parts, strict=True)
        return cls(sum(items), torch.stack(totals).sum(0), torch.stack(squares).sum())

    def stored(self) -> dict[str, Tensor]:
        """Return it as tensors for a file."""
        return {"items": torch.tensor(self.items), "total": self.total, "squares": self.squares}

    def refuse(self, what: str) -> None:
        """Raise CollapsedError if all vectors are equal up to rounding."""
        if self.items < 2:
            return
        square = max(float(self.squares) / self.items, 1e-30)
        spread = (square - float((self.total / self.items).square().sum())) / square
        if spread < _SAME:
            raise CollapsedError(
                f"the vectors of all {self.items} items ({what}) are equal (relative variance {max(0.0, spread):.1e}): "
                "the model has collapsed, or it was given one input again and again; nothing can be ranked by them"
            )


def refuse_collapsed(vectors: Rows, what: str, counted: Tensor | None = None) -> None:
    """Raise CollapsedError if all vectors are equal up to rounding: every ranking of them would be an accident.

    Args:
        vectors: [items, d] or [items, tokens, d].
        what: names an item in the message.
        counted: bool [items, tokens], the tokens that count; None for all.

    Raises:
        CollapsedError: all are equal.
        DataError: one is not finite.
    """
    Spread.of(vectors, what, counted).refuse(what)


def token_ids(tokenizer: Tokenizer, texts: Sequence[str], context: int | None) -> list[list[int]]:
    """Return the token ids of each text, without padding, cut to a context, or to what the tokenizer takes if less.

    Raises:
        DataError: most words are unknown to the vocabulary.
    """
    longest = _longest(tokenizer, context)
    sequences = tokenizer.encode(texts)
    refuse_unknown(sequences, tokenizer)
    return [ids if len(ids) <= longest else [*ids[: longest - 1], tokenizer.sep] for ids in sequences]


def _longest(tokenizer: Tokenizer, context: int | None) -> int:
    return min(context or tokenizer.max_tokens, tokenizer.max_tokens)


def tokens_cut(tokenizer: Tokenizer, texts: Sequence[str], context: int | None) -> int:
    """Count the texts that ``token_ids`` cuts."""
    longest = _longest(tokenizer, context)
    return sum(length > longest for length in tokenizer.lengths(texts))


def count_cut(model: Model, texts: Sequence[str], protocol: Protocol) -> int | None:
    """Count the texts that a model cuts; None of a model that does not tell."""
    count: Callable[[Sequence[str], Protocol], int | None] | None = getattr(model, "count_cut", None)
    return None if count is None else count(texts, protocol)


def refuse_unknown(sequences: Sequence[Sequence[int]], tokenizer: Tokenizer) -> None:
    """Raise DataError if more than half of all words are unknown: the vocabulary is of another language or model."""
    special = {tokenizer.cls, tokenizer.sep, tokenizer.pad}
    words = [number for ids in sequences for number in ids if number not in special]
    refuse_few_known(sum(number != tokenizer.unknown for number in words), len(words), len(sequences))


def refuse_few_known(known: int, words: int, texts: int) -> None:
    """Raise DataError if a vocabulary knows less than half of the words of some texts."""
    if not words or words - known > _MAX_UNKNOWN * words:
        raise DataError(
            f"the vocabulary knows {known} of {words} words of {texts} texts: it is the vocabulary of another language "
            "or of another model; give the model the vocab.txt it was trained with"
        )


def refuse_other_vocabulary(saved: SavedModel) -> None:
    """Raise DataError if the tokenizer is not the one that the text encoder was built with."""
    tokenizer, model = saved.tokenizer, saved.model
    if tokenizer.digest != model.vocabulary:
        raise DataError(
            f"the tokenizer has a vocabulary of {len(tokenizer)} entries (SHA-256 {tokenizer.digest[:8]}…), the text "
            f"encoder another of {model.text.tokens.num_embeddings} (SHA-256 {model.vocabulary[:8]}…): they do not "
            "belong together; give the model the vocab.txt it was trained with"
        )


def _digest(saved: SavedModel) -> str:
    """SHA-256 over a model's settings and vocabulary, and all weights that are in memory."""
    settings = saved.model.settings.model_dump_json()
    return _digest_of(saved.model, f"{settings}{saved.tokenizer.max_tokens}\n{saved.tokenizer.vocabulary}")


def _digest_of_tower(tower: ImageEncoder) -> str:
    return _digest_of(tower, json.dumps(tower.settings.of_tower()))


def _digest_of(module: nn.Module, about: str) -> str:
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
