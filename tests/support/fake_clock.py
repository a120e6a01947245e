"""Virtual time: an event loop in which a wait of an hour takes no time, and the clock that goes with it.

`run_virtual(main, seed)` runs a coroutine function with a `VirtualClock` and a seeded `Random`; what happens is decided by the two, so a
seed that fails, fails again. Work that would go to a thread runs at once. Sockets are not for this loop: it never waits for them.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

_T = TypeVar("_T")
_MOST_VIRTUAL_S = 7 * 86_400.0


class _InstantSelector(selectors.SelectSelector):
    """Turns a wait into a jump of the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits and nothing will happen: a deadlock")
        self._loop.now_s += max(timeout, 0.0)
        if self._loop.now_s > _MOST_VIRTUAL_S:
            raise RuntimeError("a week of virtual time went by")
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is `now_s`."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_InstantSelector(self))
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., _T], *args: Any) -> asyncio.Future[_T]:  # type: ignore[override]
        future: asyncio.Future[_T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class VirtualClock:
    """A Clock on the running VirtualLoop; wall time begins in November 2023 and can be moved on its own with `wall_offset_s`."""

    START_UNIX_NANO = 1_700_000_000_000_000_000

    def __init__(self) -> None:
        self.wall_offset_s = 0.0

    def unix_nano(self) -> int:
        return self.START_UNIX_NANO + int((self.monotonic_s() + self.wall_offset_s) * 1e9)

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


def run_virtual(main: Callable[[VirtualClock, Random], Awaitable[_T]], seed: int = 0) -> _T:
    """Return what `main(clock, random)` returns. The seed is printed, so that pytest shows it when the test fails."""
    print(f"seed {seed}")
    loop = VirtualLoop()

    async def go() -> _T:
        return await main(VirtualClock(), Random(seed))

    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(go())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
