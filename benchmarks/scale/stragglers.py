"""What slow parts cost a crawl, by a simulated clock, and what its driver holds at a million parts.

    python benchmarks/scale/stragglers.py [--parts-a-core 400] [--cores 2 16 64] [--driver 1660000]

0.5 % of the parts wait 60 times as long for their hosts as a part works. Wall times are in the time that a part works:

- spread: parts that hold their core while they wait, taken as they finish, the slow ones at equal distances; what the
  others are compared with;
- in order: the same, but results are awaited in order with a window of 4 tasks a core;
- put back: ``wukong.crawl.turns``, with the slow parts spread, at random, first, and last. A slow part is put back
  after twice the time of a part's work, goes on from the beginning of its wait, and takes half a part's work to store
  and read again.

The last column compares the longest of these four with ``spread``. The driver's state is measured with made-up records.
"""

import argparse
import heapq
import random
import resource
import time
from collections import deque
from collections.abc import Iterator, Sequence

from wukong.crawl.download import AT_ONCE
from wukong.crawl.downloaded import Downloaded
from wukong.crawl.turns import Turn, Turns

SHARE, WAIT = 0.005, 59.0  # with its work, a slow part takes 60 times the time of another
PATIENCE, AGAIN = 2.0, 0.5
WINDOW = 4


def slow_parts(parts: int, where: str) -> set[int]:
    count = round(parts * SHARE)
    if where == "spread":
        return {parts * (2 * number + 1) // (2 * count) for number in range(count)}
    if where == "random":
        return set(random.Random(1).sample(range(parts), count))
    return set(range(count)) if where == "first" else set(range(parts - count, parts))


def one_by_one(parts: int, cores: int, slow: set[int], *, in_order: bool) -> float:
    """Wall time of tasks of one part that hold their core."""
    free, ends, now = [0.0] * cores, [0.0] * parts, 0.0
    window: list[float] | deque[float] = deque()
    for number in range(parts):
        if len(window) == WINDOW * cores:  # the driver submits the next when it has taken one
            now = max(now, window.popleft() if in_order else heapq.heappop(window))
        start = max(now, heapq.heappop(free))
        ends[number] = start + 1 + (WAIT if number in slow else 0)
        heapq.heappush(free, ends[number])
        if in_order:
            window.append(ends[number])
        else:
            window = list(window)
            heapq.heappush(window, ends[number])
    return max(ends)


def seconds_of(turn: Turn, slow: set[int]) -> tuple[float, list[int]]:
    """Time of a task, and the parts that it puts back. Its parts share the core, and wait at the same time."""
    if turn.slow:
        return len(turn.parts) * AGAIN + WAIT, []
    slots, core = [0.0] * AT_ONCE, 0.0
    for number in turn.parts:
        core = max(core, heapq.heappop(slots)) + 1
        heapq.heappush(slots, core + (PATIENCE + AGAIN if number in slow else 0))
    return max(slots), [number for number in turn.parts if number in slow]


def put_back(parts: int, cores: int, slow: set[int]) -> float:
    """Wall time with ``Turns``: tasks wait for a core in the order in which they were submitted."""
    turns, queue, running, now = Turns(parts, cores), deque[Turn](), [], 0.0
    while True:
        while len(queue) + len(running) <= WINDOW * cores:
            turn = turns.next(len(queue) + len(running))
            if turn is None:
                break
            queue.append(turn)
        while queue and len(running) < cores:
            seconds, waiting = seconds_of(queue.popleft(), slow)
            heapq.heappush(running, (now + seconds, waiting))
        if not running:
            return now
        now, waiting = heapq.heappop(running)
        for number in waiting:
            turns.put_back(number)


def compare(cores: Sequence[int], parts_a_core: int) -> None:
    print("| cores | parts | spread | in order | put back: spread | random | first | last | most / spread |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number in cores:
        parts = number * parts_a_core
        spread = one_by_one(parts, number, slow_parts(parts, "spread"), in_order=False)
        ordered = one_by_one(parts, number, slow_parts(parts, "spread"), in_order=True)
        ours = [put_back(parts, number, slow_parts(parts, where)) for where in ("spread", "random", "first", "last")]
        shown = [f"{wall:.0f}" for wall in (spread, ordered, *ours)]
        print(f"| {number} | {parts} | {' | '.join(shown)} | {max(ours) / spread:.2f} |")


def made_up_record(number: int) -> dict[str, object]:
    digest = f"{number:064x}"
    described = [
        {"path": f"parts/{number:05d}{suffix}", "rows": 900, "bytes": 31_000_000 + number, "sha256": digest}
        for suffix in (".tar", ".parquet")
    ]
    return {
        "described": described,
        "urls": 1000,
        "requested": 1000,
        "transient": 60,
        "statuses": {"success": 900, "http_error": 40, "timeout": 60},
        "examples": {"timeout": [f"http://h{number}.test/1.jpg", "timed out"]},
        "slow_hosts": {f"h{number * 20 + host}.test": 30.0 for host in range(20)},
    }


def planned(parts: int) -> Iterator[tuple[str, int, int, str, str]]:
    for number in range(parts):
        yield f"plan/{number // 500:05d}.parquet", number % 500, 1000, f"{number:020x}", f"{number + 1:020x}"


def drive(parts: int) -> None:
    def resident() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    Downloaded([("", 0, 0, "", "")]).index()  # Arrow imports what it needs
    before, started = resident(), time.monotonic()
    held, turns = Downloaded(planned(parts)), Turns(parts, 64)
    while (turn := turns.next(0)) is not None:
        for number in turn.parts:
            held.add(number, made_up_record(number))
    held.index()
    described = sum(1 for _ in held.described())
    print(
        f"driver: {parts:,} parts, {described:,} files: {resident() - before:.0f} MiB more than the imports' "
        f"{before:.0f} MiB, {time.monotonic() - started:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts-a-core", type=int, default=400)
    parser.add_argument("--cores", type=int, nargs="+", default=[2, 16, 64])
    parser.add_argument("--driver", type=int, default=1_660_000, help="parts of made-up records; 0 for none")
    options = parser.parse_args()
    compare(options.cores, options.parts_a_core)
    if options.driver:
        drive(options.driver)


if __name__ == "__main__":
    main()
