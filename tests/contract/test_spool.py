"""The promises of a log in Redis with a spool: what was acknowledged while Redis was away gets there, once, and the books say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from emp_pipe.buffers.redis import RedisConfig, RedisLog, build
from emp_pipe.buffers.redis_spool import SpooledLog
from emp_pipe.component import Context
from emp_pipe.log.protocol import Append, ReceiverBooks
from emp_pipe.self_metrics import Metrics
from tests.contract.conftest import group
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock
from tests.support.redis_server import RedisServer, needs_redis

pytestmark = needs_redis
PATIENCE_S = 30.0


@dataclass
class Central:
    """One central's log, which can be killed and started again on the same disk and the same Redis."""

    server: RedisServer
    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)
    clock: ManualClock = field(default_factory=ManualClock)
    prefix: str = field(default_factory=lambda: f"test-{token_hex(4)}")
    log: SpooledLog = field(init=False)
    acked: list[int] = field(default_factory=list)

    def make(self, **spool: Any) -> SpooledLog:
        settings = {"enabled": True, "min_free_bytes": 0, "after_s": 0.5, "retry_max_s": 0.1, **self.settings, **spool}
        config = RedisConfig(
            url=self.server.url, prefix=self.prefix, connect_timeout_s=1, timeout_s=1, patience_s=0.5, lease_s=1, spool=settings
        )
        self.log = build("redis", config, Context(self.clock, Metrics(), self.directory, "m1", "run"))
        return self.log

    async def start(self, **spool: Any) -> SpooledLog:
        log = self.make(**spool)
        await log.open([group("a")])
        return log

    async def stop(self) -> None:
        await self.log.close(self.clock.monotonic_s() + PATIENCE_S)

    async def append(self, *numbers: int, **more: Any) -> None:
        """Append one block, and remember that it was acknowledged."""
        one = more.pop("block", None) or block(numbers)
        books = [ReceiverBooks("forward", received=len(numbers), appended=len(numbers))]
        await self.log.append(Append([one], books=books, **more))
        self.acked += numbers

    @property
    def remote(self) -> RedisLog:
        assert isinstance(self.log.remote, RedisLog)
        return self.log.remote

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.01)
                self.clock.advance(0.05)

    async def until_drained(self) -> None:
        await self.until(lambda: self.log.says.state == "idle")

    async def everything(self) -> list[int]:
        """Read and end all that the group holds."""
        found: list[int] = []
        while self.log.usage().groups[0].held_blocks:
            async with asyncio.timeout(PATIENCE_S):
                await self.log.wait_readable("a")
                deliveries = await self.log.read("a", 1 << 30)
            found += delivered(deliveries)
            await self.log.commit("a", acks=deliveries)
        return found

    async def check_books(self) -> None:
        """Both equations hold, and every acknowledged record is counted once over both stores."""
        receivers = await self.log.receiver_books()
        for books in [*receivers, *await self.log.group_books()]:
            assert books.balanced, books
        assert sum(books.appended for books in receivers) == len(self.acked), "a record is counted twice, or not at all"


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


async def test_while_redis_is_here_nothing_goes_to_the_spool(central: Central) -> None:
    await central.append(1)
    assert central.log.says.state == "idle"
    assert await central.everything() == [1]
    assert central.log.says.spooled_records == 0


async def test_what_comes_while_redis_is_away_is_acknowledged_from_the_spool_and_drains_in_order(central: Central) -> None:
    await central.append(1)
    central.server.kill()
    await central.append(2)
    await central.append(3)
    assert central.log.says.state == "spooling"
    await central.check_books()
    central.server.start()
    await central.until_drained()
    await central.check_books()
    assert await central.everything() == [1, 2, 3]
