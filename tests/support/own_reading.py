"""An intake for receivers that read by themselves: a real log's writer in memory, and what reached it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from emp_pipe.component import Arrival
from emp_pipe.errors import ErrorKind, LogError


class KeptIntake:
    """Durable at once, unless `refusing`; keeps rows and checkpoints as a log does, over several runs of a receiver."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.checkpoints: dict[str, bytes] = {}
        self.dead: list[Any] = []
        self.arrivals: list[Arrival] = []
        self.refusing = 0
        self.admitting = True
        self.changed = asyncio.Event()

    def submit(self, arrival: Arrival) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.refusing:
            self.refusing -= 1
            future.set_exception(LogError(ErrorKind.LOG_FULL))
            return future
        self.arrivals.append(arrival)
        if arrival.batch is not None:
            self.rows += [json.loads(line) for line in arrival.batch.to_json_lines().splitlines()]
        self.dead += arrival.dead
        self.checkpoints.update(arrival.checkpoints)
        future.set_result(None)
        self.changed.set()
        return future

    async def wait_admitting(self) -> None:
        return

    async def checkpoint_get(self, name: str) -> bytes | None:
        return self.checkpoints.get(name)

    def messages(self) -> list[str]:
        return [row["message"] for row in self.rows]

    async def until(self, what: Callable[[], Any], patience_s: float = 20.0) -> None:
        """Wait until something holds of what was kept."""
        async with asyncio.timeout(patience_s):
            while not what():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.05)
                self.changed.clear()


@contextlib.asynccontextmanager
async def reading(receiver: Any, intake: KeptIntake) -> AsyncIterator[None]:
    """Run a receiver, and stop it in order."""
    started = asyncio.Event()
    task = asyncio.create_task(receiver.run(intake, started))
    await started.wait()
    try:
        yield
    finally:
        await receiver.stop(receiver.context.clock.monotonic_s() + 5.0)
        await asyncio.wait_for(task, 10.0)
