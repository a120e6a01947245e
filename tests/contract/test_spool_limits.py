"""A log in Redis with a spool: what stays back-pressure, starts without Redis, and what an earlier life left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import DeadLetter, DeadReason
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.spooled_log import Central

pytestmark = needs_redis


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(appendfsync="always") as started:
        yield started


@pytest.fixture
async def central(server: RedisServer, tmp_path: Path) -> AsyncIterator[Central]:
    one = Central(server, tmp_path)
    await one.start()
    yield one
    await one.stop()


# what stays back-pressure


async def test_a_full_redis_is_back_pressure_and_nothing_is_spooled(tmp_path: Path) -> None:
    with RedisServer(maxmemory_bytes=16 << 20) as server:
        central = Central(server, tmp_path, {"after_s": 10})
        await central.start()
        assert (await central.fill(padding_bytes=500_000))[1] is ErrorKind.LOG_FULL
        assert central.log.says.spooled_records == 0
        assert not central.log.admitting
        await central.stop()


async def test_a_full_spool_is_back_pressure_until_it_drains(server: RedisServer, tmp_path: Path) -> None:
    central = Central(server, tmp_path, {"max_bytes": 100_000})
    await central.start()
    server.kill()
    assert (await central.fill(padding_bytes=5_000))[1] is ErrorKind.LOG_FULL
    assert not central.log.admitting
    assert "spool" in central.log.usage().reason
    server.start()
    waiting = asyncio.ensure_future(central.log.wait_admitting())
    await central.until(waiting.done)
    await central.until_drained()
    assert await central.everything() == central.acked
    await central.stop()


async def test_dead_letters_alone_fill_a_spool_too(server: RedisServer, tmp_path: Path) -> None:
    central = Central(server, tmp_path, {"max_bytes": 100_000})
    await central.start()
    server.kill()
    letter = DeadLetter("forward", DeadReason.FRAME_INVALID, "torn", bytes(5_000))
    kept, why = await central.fill(letter=letter)
    assert why is ErrorKind.LOG_FULL
    assert 10 < kept < 20, "what dead letters take was not counted"
    await central.stop()


# starting without Redis


async def test_a_start_without_redis_takes_into_the_spool_and_reads_when_redis_comes(server: RedisServer, tmp_path: Path) -> None:
    server.kill()
    central = Central(server, tmp_path)
    await central.start()
    assert central.log.admitting
    await central.append(1)
    assert await central.log.read("a", 1 << 20) == []
    waiting = asyncio.ensure_future(central.log.wait_readable("a"))
    await asyncio.sleep(0)
    assert not waiting.done()
    server.start()
    await central.until(waiting.done)
    await central.until_drained()
    assert await central.everything() == [1]
    await central.check_books()
    await central.stop()


async def test_a_start_without_redis_and_without_a_spool_takes_nothing_until_redis_comes(server: RedisServer, tmp_path: Path) -> None:
    server.kill()
    central = Central(server, tmp_path)
    await central.start(enabled=False)
    assert not central.log.admitting
    assert "no connection to Redis" in central.log.usage().reason
    with pytest.raises(LogError) as refused:
        await central.append(1)
    assert refused.value.kind is ErrorKind.LOG_FULL, "nothing was tried: a receiver holds it and stops reading"
    server.start()
    waiting = asyncio.ensure_future(central.log.wait_admitting())
    await central.until(waiting.done)
    await central.append(2)
    assert await central.everything() == [2]
    assert not (tmp_path / "spool").exists()
    await central.stop()


async def test_a_start_without_redis_can_be_stopped(server: RedisServer, tmp_path: Path) -> None:
    server.kill()
    central = Central(server, tmp_path)
    await central.start()
    waiting = asyncio.ensure_future(central.log.wait_readable("a"))
    await asyncio.sleep(0)
    await central.stop()
    with pytest.raises(LogError) as refused:
        await waiting
    assert refused.value.kind is ErrorKind.LOG_CLOSED


def spoil_groups(central: Central, text: str) -> str:
    """Let what stands there for a group be something else; return what stood there."""
    with Redis(port=central.server.port, decode_responses=True) as redis:
        key = f"{{{central.prefix}.0}}:groups"
        before = str(redis.hget(key, "a"))
        redis.hset(key, "a", text)
    return before


async def test_a_log_that_another_program_has_written_to_ends_the_start_and_is_not_waited_for_in_silence(central: Central) -> None:
    await central.stop()
    spoil_groups(central, "not ours")
    with pytest.raises(LogError, match="another program"):
        await central.start()


async def test_a_log_that_comes_late_and_cannot_be_opened_is_said_loudly_and_tried_again(
    central: Central, caplog: pytest.LogCaptureFixture
) -> None:
    await central.stop()
    before = spoil_groups(central, "not ours")
    central.server.kill()
    await central.start()
    central.server.start()
    await central.until(lambda: any(record.levelname == "ERROR" and "another program" in record.message for record in caplog.records))
    assert "another program" in central.log.away
    await central.append(1)
    spoil_groups(central, before)
    await central.until_drained()
    assert await central.everything() == [1]


# what an earlier life left


async def test_a_spool_whose_setting_was_turned_off_drains_and_takes_nothing_new(
    central: Central, caplog: pytest.LogCaptureFixture
) -> None:
    central.server.kill()
    await central.append(1)
    await central.stop()
    central.server.start()
    await central.start(enabled=False)
    assert "1 appends of an earlier run" in caplog.text
    await central.until(lambda: central.log.says.state == "off")
    await central.append(2)
    assert await central.everything() == [1, 2]
    central.server.kill()
    await central.until(lambda: bool(central.log.away))
    with pytest.raises(LogError):
        await central.append(3)
    await central.check_books()


async def test_a_spool_of_another_prefix_drains_into_this_one_and_that_is_said(central: Central, caplog: pytest.LogCaptureFixture) -> None:
    central.server.kill()
    await central.append(1)
    await central.stop()
    central.server.start()
    before, central.prefix = central.prefix, "another"
    await central.start()
    await central.until_drained()
    assert await central.everything() == [1]
    assert before in caplog.text
