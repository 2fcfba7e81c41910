"""Vectors of the texts and pictures that are sent: checks of them, and the model's work in threads."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from wukong.crawl.uploads import Limits, RefusedError, UploadDecoder
from wukong.errors import DataError
from wukong.evaluate.model import OwnModel
from wukong.runtime.language import _
from wukong.serve.batcher import Batcher

BATCH = 32
"""The most texts of a batch."""
_FULL_REQUESTS = 4
"""So many requests with the most texts may wait at a time."""

P = ParamSpec("P")
T = TypeVar("T")


def shown(address: str) -> str:
    """Return what clients may see of an address: of a path of this machine the last part alone."""
    is_local = address.startswith("file:") or ":/" not in address
    return address.rstrip("/").rpartition("/")[2] if is_local else address


class Embedder:
    """Encodes what is sent. The model has one thread for texts and one for pictures.

    Args:
        model: the model, with its image tower.
        limits: what a request may hold.
    """

    def __init__(self, model: OwnModel, limits: Limits) -> None:
        self.limits = limits
        self.model = model
        self._decoder = UploadDecoder(limits)
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="texts")
        self._pictures = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._embed = Batcher(self._embedded, self._texts, BATCH, _FULL_REQUESTS * limits.inputs)
        self._asked_of_pictures = self._sent = 0

    @property
    def model_name(self) -> str:
        """What clients see of the model's address."""
        return shown(self.model.name)

    def close(self) -> None:
        """End the threads and the child process."""
        for pool in (self._texts, self._pictures):
            pool.shutdown(cancel_futures=True)
        self._decoder.__exit__(None, None, None)

    async def embed_texts(self, texts: Sequence[str], *, cut: bool) -> tuple[Tensor, int]:
        """Encode texts as ``SavedModel.encode_text`` does, each to one vector.

        Args:
            texts: the texts, as they are.
            cut: whether the model may read only the beginning of a text that is too long for it.

        Returns:
            Unit vectors, float32 [texts, d], and how many tokens the model reads.

        Raises:
            RefusedError: (422) a text has nothing that the model can read, or is too long; (503) too many wait.
        """
        most = self.model.saved.tokenizer.max_tokens
        names = [f"input {number}" for number in range(len(texts))]
        lengths = await asyncio.to_thread(self.lengths, texts, texts, names)
        for number, length in enumerate(lengths):
            if length > most and not cut:
                raise RefusedError(
                    422,
                    _(
                        "input {number} has {length} tokens and the model reads {most}: shorten it, or send "
                        '"truncate_prompt_tokens": -1 to have it cut'
                    ).format(number=number, length=length, most=most),
                )
        vectors = await self._embed.all(texts)
        return torch.stack(vectors), sum(min(length, most) for length in lengths)

    async def embed_pictures(self, files: Sequence[bytes]) -> Tensor:
        """Encode the bytes of pictures' files, each to one vector: unit vectors, float32 [pictures, d].

        Each is first made what a crawl would have stored of it (``UploadDecoder``).

        Raises:
            RefusedError: one cannot be used (``UploadDecoder.decode``), or too many wait (503).
        """
        decoded = []
        for number, file in enumerate(files):
            try:
                decoded.append(await self._decoder.decode(file))
            except RefusedError as error:
                raise RefusedError(
                    error.status, _("picture {number}: {error}").format(number=number, error=error.text)
                ) from error
        return await self._of_pictures(lambda: self.model.saved.encode_image(decoded))

    def lengths(self, texts: Sequence[str], forms: Sequence[str], names: Sequence[str]) -> list[int]:
        """Return how many tokens each text has, with [CLS] and [SEP].

        Args:
            texts: the texts, as they were sent.
            forms: what the model reads of each.
            names: what each is called in a message.

        Raises:
            RefusedError: (422) a text has too many characters, or nothing that the model can read.
        """
        for name, text in zip(names, texts, strict=True):
            if len(text) > self.limits.characters:
                raise RefusedError(
                    422,
                    _("{name} has {count} characters: give at most {characters}").format(
                        name=name, count=len(text), characters=self.limits.characters
                    ),
                )
        tokenizer = self.model.saved.tokenizer
        special = {tokenizer.cls, tokenizer.sep}
        for name, ids in zip(names, tokenizer.encode(forms), strict=True):
            words = set(ids) - special
            if not words:
                raise RefusedError(422, _("there is nothing to read in {name}: give a word").format(name=name))
            if words == {tokenizer.unknown}:
                raise RefusedError(
                    422,
                    _("the model's vocabulary knows none of the characters of {name}: give another").format(name=name),
                )
        return tokenizer.lengths(forms)

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Hold one of the places of requests whose pictures are received and decoded.

        Raises:
            RefusedError: (503) none is free.
        """
        if self._sent >= self.limits.uploads:
            raise RefusedError(503, _("too many pictures are sent at this moment: try again in a second"))
        self._sent += 1
        try:
            yield
        finally:
            self._sent -= 1

    def _embedded(self, texts: Sequence[str]) -> list[Tensor]:
        return list(self.model.saved.encode_text(texts, strict=False).vectors)

    async def _of_pictures(self, work: Callable[[], T]) -> T:
        if self._asked_of_pictures >= self.limits.waiting:
            raise RefusedError(503, _("too many requests wait at this moment: try again in a second"))
        self._asked_of_pictures += 1
        try:
            return await self._in(self._pictures, work)
        except DataError as error:
            raise RefusedError(422, str(error)) from error
        finally:
            self._asked_of_pictures -= 1

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: work(*arguments, **named))
