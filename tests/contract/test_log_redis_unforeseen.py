"""What nobody foresaw on the way to Redis and back: it is said, and ends no task that everything later depends on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, DeadLetter, DeadReason, ReceiverBooks
from tests.contract.conftest import group
from tests.contract.redis_logs import Make, check_books, logs_of, read, until
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock
from tests.support.redis_server import RedisServer, needs_redis

pytestmark = needs_redis


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(appendfsync="always") as started:
        yield started


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def make(server: RedisServer, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Make]:
    async with logs_of(server.url, clock, tmp_path) as one:
        yield one


async def test_an_answer_that_cannot_be_taken_in_ends_nothing_but_its_own_operation(make: Make, monkeypatch: Any, caplog: Any) -> None:
    log = make()
    await log.open([group("a")])
    appended, broken = log.shard.effects.appended, ["once"]

    def breaks(*arguments: Any) -> list[int]:
        if broken:
            raise KeyError(broken.pop())
        return appended(*arguments)

    monkeypatch.setattr(log.shard.effects, "appended", breaks)
    books = [ReceiverBooks("r", received=1, appended=1)]
    with pytest.raises(LogError) as error:
        await log.append(Append([block([1])], books=books))
    assert error.value.kind is ErrorKind.LOG_IO
    assert error.value.fields["unknown"], "it took effect: nobody may take it for undone"
    async with asyncio.timeout(30):
        await log.wait_admitting()
        await log.append(Append([block([2])], books=books))
    assert delivered(await read(log, "a")) == [1, 2], "what our memory lacked was not loaded anew"
    assert await log.receiver_books() == [ReceiverBooks("r", received=2, appended=2)]
    await check_books(log)
    assert "KeyError" in caplog.text


async def test_a_way_to_redis_that_breaks_as_nobody_foresaw_is_tried_again(make: Make, monkeypatch: Any) -> None:
    log = make()
    await log.open([group("a")])
    link = log.shard.link
    send, broken = link.send, [True]

    async def breaks(commands: Any, *, durable: bool = False) -> Any:
        if durable and broken:
            broken.clear()
            raise TypeError("what no client should raise")
        return await send(commands, durable=durable)

    monkeypatch.setattr(link, "send", breaks)
    async with asyncio.timeout(30):
        await log.append(Append([block([1])]))
    assert not broken
    assert delivered(await read(log, "a")) == [1]
    await check_books(log)


async def test_a_beat_or_a_renewal_that_fails_as_nobody_foresaw_is_not_the_last(make: Make, monkeypatch: Any) -> None:
    log = make(lease_s=2.0)
    await log.open([group("a")])
    lease, share = log.shard.lease, log.share
    failed: list[str] = []

    def once(what: str, works: Any) -> Any:
        async def breaks(*arguments: Any) -> Any:
            if what not in failed:
                failed.append(what)
                raise ValueError(what)
            return await works(*arguments)

        return breaks

    monkeypatch.setattr(lease, "ask", once("lease", lease.ask))
    monkeypatch.setattr(share, "_beat", once("beat", share._beat))
    await until(lambda: len(failed) == 2)
    share.replicas = []
    renewed_s = lease.renewed_s
    await until(lambda: share.replicas and lease.renewed_s > renewed_s)
    await log.append(Append([block([1])]))
    assert delivered(await read(log, "a")) == [1]


@pytest.mark.parametrize(("broken", "failure"), [("settle", KeyError), ("_expire", ValueError)])
async def test_upkeep_that_fails_as_nobody_foresaw_is_said_and_not_the_last(
    make: Make, clock: ManualClock, monkeypatch: Any, caplog: Any, broken: str, failure: type[Exception]
) -> None:
    log = make(dead_max_age_s=60.0)
    await log.open([group("a")])
    await log.append(Append([], dead=[DeadLetter("a", DeadReason.REFUSED, "no", b"x")]))
    shard = log.shard
    of = shard if broken == "settle" else shard.space
    works, failed = getattr(of, broken), list[str]()

    def breaks() -> Any:
        task = asyncio.current_task()
        if not failed and task is not None and task.get_name().endswith("upkeep"):
            failed.append(broken)
            raise failure(broken)
        return works()

    monkeypatch.setattr(of, broken, breaks)

    async def a_second_goes_by() -> bool:
        clock.advance(1.0)
        await asyncio.sleep(0.01)
        return not await log.dead_letters()

    async with asyncio.timeout(30):
        while not await a_second_goes_by():
            pass
    assert failed
    assert "upkeep failed; it is tried again" in caplog.text
    assert failure.__name__ in caplog.text
    await check_books(log)
