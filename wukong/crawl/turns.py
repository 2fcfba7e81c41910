"""Which parts of a crawl the next download task gets."""

from collections.abc import Sequence
from typing import NamedTuple

PARTS = 4
"""The most parts of a task that downloads new ones."""

SLOW_PARTS = 16
"""The most parts of a task that downloads those that were put back, all at the same time."""


class Turn(NamedTuple):
    """The work of one download task.

    Attributes:
        parts: numbers of the parts.
        slow: whether they were put back; the task then stays with each part until it is complete.
    """

    parts: Sequence[int]
    slow: bool


class Turns:
    """Hands the parts of a crawl to tasks: new ones in the order of the plan, and those that were put back together.

    A part whose URLs wait for slow hosts is put back, so that it holds no core. Waiting costs a core nothing, so one
    task waits for many such parts. They go on as soon as there are enough for a task. When all new parts have been
    handed out, they go on as soon as a core is idle. So what is slow is begun as early as what is quick, and after the
    last new part the crawl lasts no longer than one part waits for its hosts.

    Args:
        parts: number of parts.
        cores: number of tasks that run at a time.
    """

    def __init__(self, parts: int, cores: int) -> None:
        self._parts = parts
        self._cores = cores
        self._size = max(1, min(PARTS, parts // cores))
        self._next = 0
        self._put_back: list[int] = []

    @property
    def tasks(self) -> int:
        """Number of tasks that download new parts."""
        return -(-self._parts // self._size)

    def put_back(self, part: int) -> None:
        """Take a part back that waits for slow hosts."""
        self._put_back.append(part)

    def next(self, running: int) -> Turn | None:
        """Return the work of the next task; None if there is none now, because the rest runs or no core is idle.

        Args:
            running: number of tasks that run or wait for a core.
        """
        waiting = len(self._put_back)
        if waiting < SLOW_PARTS and self._next < self._parts:
            first, self._next = self._next, min(self._next + self._size, self._parts)
            return Turn(range(first, self._next), slow=False)
        idle = self._cores - running
        if waiting >= SLOW_PARTS:
            size = SLOW_PARTS
        elif waiting and idle > 0:
            size = -(-waiting // idle)
        else:
            return None
        taken, self._put_back = self._put_back[:size], self._put_back[size:]
        return Turn(taken, slow=True)
