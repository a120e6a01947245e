"""What the tests of the writer before a log share: arrivals, and a log whose appends are held back."""

from __future__ import annotations

import asyncio
from typing import Any

from emp_pipe.component import Arrival
from emp_pipe.log.protocol import Append, Appended, Log
from tests.support.blocks import batch


def arrival(*numbers: int, **settings: Any) -> Arrival:
    return Arrival("forward", batch=batch(numbers), received=len(numbers), **settings)


class Gate:
    """Holds appends of a log back until `open`, and counts them; `error` makes the next ones fail."""

    def __init__(self, log: Log) -> None:
        self._append = log.append
        self._open = asyncio.Event()
        self.waiting = 0
        self.appends: list[Append] = []
        self.error: Exception | None = None
        log.append = self._gated  # type: ignore[method-assign]

    def open(self) -> None:
        self._open.set()

    async def _gated(self, append: Append) -> Appended:
        self.waiting += 1
        self.appends.append(append)
        await self._open.wait()
        self.waiting -= 1
        if self.error is not None:
            raise self.error
        return await self._append(append)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
