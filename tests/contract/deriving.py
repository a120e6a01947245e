"""A deriver under test: its loop over a log that can be made to fail at any call, and what came out of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

from emp_pipe.component import Context, Wiring
from emp_pipe.delivery.derive import DeriveLoop
from emp_pipe.log.protocol import Delivery, Log, Topic
from tests.contract.conftest import DEADLINE_S, OpenLog, group
from tests.support.blocks import delivered
from tests.support.context import make_context
from tests.support.deriver import Passing, PassingConfig

GROUPS = group("passing", Topic.TRACES_IN), group("out", Topic.TRACES)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class Meddling:
    """A log that does something before or after calls of the loop."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.before: Callable[[str], None] = lambda call: None
        self.after: Callable[[str], None] = lambda call: None
        self.committed: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def read(self, group: str, max_bytes: int, owner: str = "") -> list[Delivery]:
        self.before("read")
        return await self._log.read(group, max_bytes, owner)

    async def commit(self, group: str, **parts: Any) -> None:
        self.committed.append([output.block_id for output in parts["outputs"]])
        self.before("commit")
        await self._log.commit(group, **parts)
        self.after("commit")


class Subject:
    """A deriver of tests, its loop, and what came out of it."""

    def __init__(self, opened: OpenLog, deriver: Passing, log: Any, context: Context) -> None:
        self.opened = opened
        self.deriver = deriver
        self.log = log
        self.context = context
        self.loop = DeriveLoop(deriver, log, context, random=random.Random(1))
        self.out: list[int] = []

    async def until_out(self, count: int) -> list[int]:
        """Read the outputs until there are so many rows, and return all in order."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.out) < count:
                await self.opened.log.wait_readable("out")
                deliveries = await self.opened.log.read("out", 1 << 30)
                self.out += delivered(deliveries)
                await self.opened.log.commit("out", acks=deliveries)
        return self.out

    def metric(self, name: str, **labels: str) -> float:
        value = self.context.metrics.registry.get_sample_value(f"emp_pipe_{name}", {"component": self.deriver.id, **labels})
        return 0.0 if value is None else value

    async def stop(self) -> None:
        await self.loop.stop(self.context.clock.monotonic_s() + DEADLINE_S)

    async def drain(self) -> bool:
        return await self.loop.drain(self.context.clock.monotonic_s() + DEADLINE_S)


def passing(opened: OpenLog, *, deriver: type[Passing] = Passing, log: Any = None, **settings: Any) -> Subject:
    context = replace(make_context(), wiring=Wiring(codec="none"))  # the loop's clock runs, the log's stands still
    return Subject(opened, deriver("passing", PassingConfig(**settings), context), log or Meddling(opened.log), context)


@contextlib.asynccontextmanager
async def running(subject: Subject) -> AsyncIterator[Subject]:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(subject.loop.run())
        await asyncio.sleep(0)
        try:
            yield subject
        finally:
            await subject.stop()


async def append(opened: OpenLog, numbers: Sequence[int], **settings: Any) -> None:
    await opened.append(*numbers, topic=Topic.TRACES_IN, **settings)


async def fill(opened: OpenLog) -> int:
    """Append until the log is full; return how many rows there are."""
    written = 0
    while opened.log.admitting:
        await append(opened, [written], padding_bytes=9_000)
        written += 1
    assert written > 30
    return written
