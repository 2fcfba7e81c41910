"""A limit on the memory that the bodies of answers take in a process."""

import asyncio
import re
from collections import deque

from wukong.crawl.transport import Response, Watcher

USUAL_BYTES = 2**20
"""A request begins with room for so many bytes, so most requests never ask for more."""


class NoRoomError(Exception):
    """There is no room for the rest of a body: the request is given up, and sent again when there is.

    Attributes:
        size: bytes to wait for.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Room:
    """Bytes that all requests of a process share. Who asks for them first gets them first.

    Nobody who holds bytes waits for more: a request that grows beyond what it holds gets more at once or gives up all
    of it. So requests never wait for each other without end.

    Args:
        size: number of bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, wanted: int) -> "Held":
        """Wait until there are so many bytes, at most all of them, and hold them."""
        wanted = min(wanted, self.size)
        if self._waiting or wanted > self._free:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((wanted, turn))
            try:
                await turn
            except asyncio.CancelledError:
                self.give_back(wanted if turn.done() and not turn.cancelled() else 0)
                raise
        else:
            self._free -= wanted
        return Held(self, wanted)

    def grow(self, more: int) -> bool:
        """Take so many bytes at once, or none and return False; those who wait come first."""
        if self._waiting or more > self._free:
            return False
        self._free -= more
        return True

    def give_back(self, size: int) -> None:
        """Give bytes to those who wait for them."""
        self._free += size
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled():
                if wanted > self._free:
                    return
                self._free -= wanted
                turn.set_result(None)
            self._waiting.popleft()


class Held:
    """The bytes that one request holds."""

    def __init__(self, room: Room, size: int) -> None:
        self._room = room
        self.size = size

    def grow(self, size: int) -> bool:
        """Hold at least so many bytes, at most all; return False, and hold as many as before, if there is no room."""
        size = min(size, self._room.size)
        if size > self.size:
            if not self._room.grow(size - self.size):
                return False
            self.size = size
        return True

    def shrink(self, size: int) -> None:
        """Hold at most so many bytes, and give the others back."""
        if size < self.size:
            self._room.give_back(self.size - size)
            self.size = size

    def release(self) -> None:
        """Give all bytes back; may be called again."""
        self.shrink(0)


def within(held: Held, max_bytes: int, watch: Watcher | None) -> Watcher:
    """Return a watcher that also takes room for a body: for its length if that is known, or else for ``max_bytes``.

    Args:
        held: what the request holds.
        max_bytes: limit on the bytes of the body.
        watch: another watcher, which is called first.

    The watcher raises NoRoomError if there is no room.
    """

    def watcher(response: Response) -> None:
        if watch is not None:
            watch(response)
        length, received = response.headers.get("content-length", ""), len(response.body)
        known = re.fullmatch("[0-9]{1,20}", length) is not None and "content-encoding" not in response.headers
        needed = max(received, min(int(length), max_bytes) if known else 0)
        if needed > held.size:
            # Who comes a second time, or does not know how much is to come, asks for the most.
            size = needed if known and held.size <= USUAL_BYTES else max_bytes
            if not held.grow(size):
                raise NoRoomError(size)

    return watcher
