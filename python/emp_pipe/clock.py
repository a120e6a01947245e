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


class SteadyClock:
    """Another clock's time as it was when this one was made, and from then on what has passed: a wall clock that is set changes no age."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_unix_nano = clock.unix_nano()
        self._began_monotonic_s = clock.monotonic_s()

    def unix_nano(self) -> int:
        return self._began_unix_nano + int((self._clock.monotonic_s() - self._began_monotonic_s) * 1e9)

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()

    async def sleep(self, duration_s: float) -> None:
        await self._clock.sleep(duration_s)

    def set_by_ns(self) -> int:
        """Return by how much the other clock was set since; less than a millisecond is the noise of two readings."""
        by_ns = self._clock.unix_nano() - self.unix_nano()
        return by_ns if abs(by_ns) >= 1_000_000 else 0
