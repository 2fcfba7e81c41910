"""Requests that wait at the same time are computed together, by one thread."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from wukong.crawl.uploads import RefusedError
from wukong.runtime.language import _

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batcher(Generic[Asked, Answer]):
    """Computes answers in batches: questions that arrive while a batch is computed form the next one.

    Args:
        compute: the function that answers a batch of questions, in their order; called in a thread of ``pool``.
        pool: the threads.
        most: the largest number of questions in a batch.
        waiting: the largest number of questions that wait; more are refused.
    """

    def __init__(
        self, compute: Callable[[Sequence[Asked]], Sequence[Answer]], pool: Executor, most: int, waiting: int
    ) -> None:
        self._compute = compute
        self._pool = pool
        self._most = most
        self._limit = waiting
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._running: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a question is answered at this moment."""
        return self._running is not None and not self._running.done()

    async def __call__(self, asked: Asked) -> Answer:
        """Wait for the answer to one question.

        Raises:
            RefusedError: (503) too many wait.
        """
        (answer,) = await self.all([asked])
        return answer

    async def all(self, asked: Sequence[Asked]) -> list[Answer]:
        """Wait for the answers to several questions; none of them waits if there is no room for all.

        Raises:
            RefusedError: (503) too many wait.
        """
        if len(self._waiting) + len(asked) > self._limit:
            raise RefusedError(503, _("too many requests wait at this moment: try again in a second"))
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in asked]
        self._waiting.extend(zip(asked, futures, strict=True))
        if not self.busy:
            self._running = asyncio.create_task(self._run())
        return await asyncio.gather(*futures)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            batch = [(asked, future) for asked, future in batch if not future.cancelled()]
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(self._pool, self._compute, [asked for asked, _ in batch])
            except Exception as error:  # noqa: BLE001 - it belongs to those who asked
                for _, future in batch:
                    if not future.cancelled():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.cancelled():
                    future.set_result(answer)
