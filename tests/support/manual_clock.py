"""A clock that a test moves by hand, for code whose threads are real: the log's."""

from __future__ import annotations

import asyncio


class ManualClock:
    """Stands still until `advance`. A sleeper wakes when the clock has passed its time."""

    def __init__(self, unix_nano: int = 1_760_000_000_000_000_000) -> None:
        self._unix_nano = unix_nano
        self._monotonic_s = 1000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def unix_nano(self) -> int:
        return self._unix_nano

    def monotonic_s(self) -> float:
        return self._monotonic_s

    async def sleep(self, duration_s: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._monotonic_s + duration_s, future))
        await future

    def set_wall(self, by_s: float) -> None:
        """Set the wall clock forward or back; no time passes."""
        self._unix_nano += int(by_s * 1e9)

    def advance(self, duration_s: float) -> None:
        self._unix_nano += int(duration_s * 1e9)
        self._monotonic_s += duration_s
        due = [sleeper for sleeper in self._sleepers if sleeper[0] <= self._monotonic_s]
        self._sleepers = [sleeper for sleeper in self._sleepers if sleeper[0] > self._monotonic_s]
        for _, future in due:
            if not future.done():
                future.set_result(None)
