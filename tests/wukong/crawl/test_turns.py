"""Which parts the tasks of a crawl get, and in which order."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.crawl.turns import PARTS, SLOW_PARTS, Turns


def drained(turns: Turns) -> list[int]:
    taken: list[int] = []
    while (turn := turns.next(running=0)) is not None:
        taken += turn.parts
    return taken


@pytest.mark.parametrize(("parts", "cores"), [(0, 4), (1, 4), (7, 2), (8, 2), (100, 3), (1000, 64)])
def test_every_part_is_handed_out_once_in_order(parts: int, cores: int) -> None:
    turns = Turns(parts, cores)
    assert drained(turns) == list(range(parts))
    assert Turns(parts, cores).tasks >= min(parts, cores), "every core has work"
    assert Turns(parts, cores).tasks * PARTS >= parts


def test_what_was_put_back_goes_on_when_a_task_is_full_or_a_core_idle() -> None:
    turns = Turns(100, 4)
    turns.next(0)
    for number in range(SLOW_PARTS - 1):
        turns.put_back(number)
    assert turns.next(0) == (range(4, 8), False), "new parts first"
    turns.put_back(99)
    assert turns.next(3) == ([*range(SLOW_PARTS - 1), 99], True)
    while (turn := turns.next(4)) is not None:
        assert not turn.slow
    for number in range(6):
        turns.put_back(number)
    assert turns.next(4) is None, "no core is idle, and more may come"
    assert turns.next(2) == ([0, 1, 2], True), "two idle cores share them"
    assert turns.next(3) == ([3, 4, 5], True)
    assert turns.next(0) is None


@given(st.integers(0, 300), st.integers(1, 20), st.data())
def test_none_is_lost_whatever_is_put_back(parts: int, cores: int, data: st.DataObject) -> None:
    slow = data.draw(st.sets(st.integers(0, max(0, parts - 1)), max_size=parts))
    turns, seen = Turns(parts, cores), Counter[int]()
    running = 0
    while (turn := turns.next(running)) is not None or running:
        if turn is None:
            running = 0
            continue
        assert len(turn.parts) <= (SLOW_PARTS if turn.slow else PARTS) or running < cores
        running += 1
        for number in turn.parts:
            seen[number] += 1
            if number in slow and not turn.slow:
                turns.put_back(number)
    assert seen == {number: 1 + (number in slow) for number in range(parts)}
