"""A central's log in Redis with a spool, for tests: it can be stopped and started again on the same disk and the same Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from emp_pipe.buffers.redis import RedisConfig, build
from emp_pipe.buffers.redis_spool import SpooledLog
from emp_pipe.component import Context
from emp_pipe.errors import ErrorKind, LogError
from emp_pipe.log.protocol import Append, DeadLetter, ReceiverBooks
from emp_pipe.self_metrics import Metrics
from tests.contract.conftest import group
from tests.support.blocks import block, delivered
from tests.support.manual_clock import ManualClock
from tests.support.redis_server import RedisServer

PATIENCE_S = 30.0


@dataclass
class Central:
    """One central's log, which can be killed and started again on the same disk and the same Redis."""

    server: RedisServer
    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)
    clock: ManualClock = field(default_factory=ManualClock)
    prefix: str = field(default_factory=lambda: f"test-{token_hex(4)}")
    url: str = ""
    shards: int = 1
    log: SpooledLog = field(init=False)
    acked: list[int] = field(default_factory=list)

    def make(self, **spool: Any) -> SpooledLog:
        settings = {"enabled": True, "min_free_bytes": 0, "after_s": 0.5, "retry_max_s": 0.1, **self.settings, **spool}
        config = RedisConfig(
            shards=self.shards,
            url=self.url or self.server.url,
            prefix=self.prefix,
            connect_timeout_s=1,
            timeout_s=1,
            patience_s=0.5,
            lease_s=1,
            spool=settings,
        )
        self.log = build("redis", config, Context(self.clock, Metrics(), self.directory, "m1", "run"))
        return self.log

    async def start(self, **spool: Any) -> SpooledLog:
        log = self.make(**spool)
        await log.open([group("a")])
        return log

    async def stop(self) -> None:
        await self.log.close(self.clock.monotonic_s() + 2)

    async def append(self, *numbers: int, **more: Any) -> None:
        """Append one block, and remember that it was acknowledged."""
        one = more.pop("block", None) or block(numbers)
        books = [ReceiverBooks("forward", received=len(numbers), appended=len(numbers))]
        await self.log.append(Append([one], books=books, **more))
        self.acked += numbers

    async def fill(self, padding_bytes: int = 0, letter: DeadLetter | None = None) -> tuple[int, ErrorKind]:
        """Append until it is refused; return how much was taken, and why no more."""
        for number in range(200):
            try:
                if letter is not None:
                    await self.log.append(Append([], dead=[letter]))
                else:
                    await self.append(number, block=block([number], padding_bytes=padding_bytes))
            except LogError as error:
                return number, error.kind
        raise AssertionError("nothing was refused")

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
