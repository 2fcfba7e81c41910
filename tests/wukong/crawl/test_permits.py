"""Permits for hosts: never more holders than the limit, also if requests are lost or repeated, and no deadlock."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wukong.crawl.permits import Ledger, LedgerError, Permits

HOSTS = "abc"
requests = st.tuples(st.sampled_from("123456"), st.sets(st.sampled_from(HOSTS)), st.sets(st.sampled_from(HOSTS)))


@given(st.integers(1, 3), st.lists(requests, max_size=40))
def test_no_host_has_more_holders_than_the_limit(limit: int, asked: list[tuple[str, set[str], set[str]]]) -> None:
    ledger = Ledger(limit)
    held: dict[str, set[str]] = {}
    for holder, claimed, wanted in asked:
        kept = claimed & held.get(holder, set())  # a process tells the truth
        granted = ledger.exchange(holder, kept, sorted(wanted))
        assert ledger.exchange(holder, kept | set(granted), []) == []  # repeating it changes nothing
        held[holder] = kept | set(granted)
        for host in HOSTS:
            assert sum(host in hosts for hosts in held.values()) <= limit
        for host in wanted - set(granted):  # and nothing is refused without need
            assert sum(host in hosts for hosts in held.values()) == limit


def test_a_restarted_ledger_recovers_its_state() -> None:
    ledger = Ledger(1)
    ledger.exchange("1", [], ["a"])
    restarted = Ledger(1)
    restarted.exchange("1", ["a"], [])
    assert restarted.exchange("2", [], ["a", "b"]) == ["b"]


def test_many_processes_share_hosts_within_the_limit_and_all_finish() -> None:
    limit, ledger, using, most = 2, Ledger(2), dict.fromkeys(HOSTS, 0), dict.fromkeys(HOSTS, 0)

    async def process(number: int) -> None:
        async def exchange(held: list[str], wanted: list[str]) -> list[str]:
            await asyncio.sleep(0.001)
            return ledger.exchange(str(number), held, wanted)

        permits, pace = Permits(exchange), random.Random(number)

        async def ask(host: str) -> None:
            for _ in range(3):
                await permits.acquire(host)
                using[host] += 1
                most[host] = max(most[host], using[host])
                await asyncio.sleep(pace.random() / 500)
                using[host] -= 1
                permits.release(host)

        await asyncio.gather(*map(ask, HOSTS))
        await permits.close()

    async def all_of_them() -> None:
        await asyncio.gather(*map(process, range(8)))

    asyncio.run(asyncio.wait_for(all_of_them(), 60))
    assert most == dict.fromkeys(HOSTS, limit)
    assert ledger.exchange("new", [], list(HOSTS)) == list(HOSTS)


def test_waiting_tasks_fail_if_the_ledger_cannot_be_reached() -> None:
    async def broken(held: list[str], wanted: list[str]) -> list[str]:
        raise ConnectionError("the ledger is gone")

    async def wait() -> None:
        await Permits(broken).acquire("a")

    with pytest.raises(LedgerError, match="the ledger is gone"):
        asyncio.run(asyncio.wait_for(wait(), 120))


def test_a_permit_granted_after_cancellation_is_released() -> None:
    ledger = Ledger(1)
    ledger.exchange("other", [], ["a"])

    async def scene() -> None:
        async def exchange(held: list[str], wanted: list[str]) -> list[str]:
            return ledger.exchange("me", held, wanted)

        permits = Permits(exchange)
        waiting = asyncio.create_task(permits.acquire("a"))
        await asyncio.sleep(0.05)
        permits.release("a")
        with pytest.raises(asyncio.CancelledError):
            await waiting
        ledger.exchange("other", [], [])
        await permits.close()

    asyncio.run(asyncio.wait_for(scene(), 10))
    assert ledger.exchange("third", [], ["a"]) == ["a"]
