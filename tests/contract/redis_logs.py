"""Several logs on one Redis, as several processes would have them: for tests of what only a log in Redis promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from emp_pipe.buffers.redis import RedisConfig, RedisLog
from emp_pipe.component import Context
from emp_pipe.errors import LogError
from emp_pipe.log.protocol import Append, ChunkKey, ReceiverBooks
from emp_pipe.self_metrics import Metrics
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock

Make = Callable[..., RedisLog]


@asynccontextmanager
async def logs_of(url: str, clock: ManualClock, directory: Path, **common: Any) -> AsyncIterator[Make]:
    """Make logs of one prefix; closed at the end, whatever became of them."""
    made: list[RedisLog] = []
    prefix = f"test-{token_hex(4)}"

    def one(**settings: Any) -> RedisLog:
        config = RedisConfig(**{"url": url, "prefix": prefix, "connect_timeout_s": 1, **common, **settings})
        made.append(RedisLog("redis", config, Context(clock, Metrics(), directory, "m1", "run")))
        return made[-1]

    yield one
    for log in made:
        await log.close(clock.monotonic_s() + 1)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (what it waits for happens at the server)
            await asyncio.sleep(0.01)


async def read(log: RedisLog, name: str) -> list[Any]:
    async with asyncio.timeout(30):
        await log.wait_readable(name)
        return await log.read(name, 1 << 30)


async def check_books(log: RedisLog) -> None:
    for books in [*await log.receiver_books(), *await log.group_books()]:
        assert books.balanced, books
    held = {(books.topic, books.group): books.held for books in await log.group_books()}
    for usage in log.usage().groups:
        assert usage.held_records == sum(held[topic.value, usage.spec.name] for topic in usage.spec.topics)


async def send(log: RedisLog, numbers: range) -> None:
    """Append one block a number as a sender does: what was not acknowledged is sent again, and a receiver knows it by its chunk."""
    for number in numbers:
        chunk = ChunkKey("peer", str(number).encode())
        while True:
            try:
                if not await log.seen([chunk]):
                    await log.append(Append([block([number])], books=[ReceiverBooks("r", 1, 1)], chunks=[chunk]))
                break
            except LogError:
                await asyncio.sleep(0.02)


async def take(log: RedisLog, name: str, count: int) -> list[int]:
    """Read and ack until so many records have come; return them."""
    found: list[int] = []
    async with asyncio.timeout(90):
        while len(found) < count:
            await log.wait_readable(name)
            deliveries = await log.read(name, 20_000)
            try:
                await log.commit(name, acks=deliveries)
            except LogError:  # another owned the shard meanwhile; whoever cannot end what was delivered gives it back
                log.defer(deliveries)
                continue
            found += delivered(deliveries)
    return found
