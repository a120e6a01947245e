"""The one clock: wall time for records, monotonic time for waits; a fake one in tests makes interleavings repeatable.

Nothing else in emp-pipe calls `time.time`, `time.monotonic` or `asyncio.sleep` where behaviour depends on it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What a component asks for the time and for a pause."""

    def unix_nano(self) -> int: ...
    def monotonic_s(self) -> float: ...
    async def sleep(self, duration_s: float) -> None: ...


class SystemClock:
    """The machine's clock."""

    def unix_nano(self) -> int:
        return time.time_ns()

    def monotonic_s(self) -> float:
        return time.monotonic()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)
