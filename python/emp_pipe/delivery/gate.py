"""When an attempt may begin: the adaptive limit, the breaker and the pause that the destination asked for, in one place.

`await gate.enter(order)`, then exactly one of `succeeded`, `failed`, `refused` (the destination is well, the data is not) or `abandoned`.
Those who wait enter in the order of the log, so a retry goes before what is new; a probe is whoever has been tried least, so that one
poisoned request cannot keep the breaker open. `run` owns the gate's only timer. Read next: `attempts.py`.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, field

from emp_pipe.clock import Clock
from emp_pipe.delivery.adaptive import AdaptiveLimit
from emp_pipe.delivery.breaker import Breaker, BreakerState


@dataclass(slots=True)
class Pass:
    """The right to make one attempt, and when it began."""

    started_s: float
    used_up: bool


@dataclass(order=True, slots=True)
class _Waiter:
    order: int
    attempts: int = field(compare=False)
    entered: asyncio.Future[Pass] = field(compare=False)


class Gate:
    """Admits attempts; see the module's head."""

    def __init__(self, clock: Clock, limit: AdaptiveLimit, breaker: Breaker) -> None:
        self._clock = clock
        self.adaptive = limit
        self.breaker = breaker
        self.in_flight = 0
        self.successes = 0
        self.paused_until_s = float("-inf")
        self._waiters: list[_Waiter] = []
        self._recovered: asyncio.Future[None] | None = None
        self._timer_wanted = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def saturated(self) -> bool:
        """The limit is used up: what is new would wait."""
        return self.in_flight >= self.adaptive.limit or self.breaker.state is not BreakerState.CLOSED

    async def enter(self, order: int, attempts: int) -> Pass:
        """Return when an attempt may begin; low `order` first."""
        now_s = self._clock.monotonic_s()
        if not self._waiters and self._admits(now_s):
            return self._admit(now_s)
        waiter = _Waiter(order, attempts, asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiters, waiter)
        self._wake()
        try:
            return await waiter.entered
        except asyncio.CancelledError:
            if waiter.entered.done() and not waiter.entered.cancelled():
                self.abandoned()  # admitted and cancelled in the same moment
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
                heapq.heapify(self._waiters)
            raise

    def succeeded(self, attempt: Pass, size_bytes: int) -> None:
        self._left()
        self.successes += 1
        self.adaptive.succeeded(
            now_s=self._clock.monotonic_s(), started_s=attempt.started_s, size_bytes=size_bytes, used_up=attempt.used_up
        )
        self._answered()
        self._wake()

    def refused(self) -> None:
        """The destination answered and does not want this data: nothing against sending other data."""
        self._left()
        self._answered()
        self._wake()

    def failed(self, attempt: Pass, *, slow: bool, pause_s: float | None, lost: bool = False) -> None:
        """`lost`: there was no connection, or it ended."""
        now_s = self._clock.monotonic_s()
        self._left()
        learn = self.adaptive.lost if lost else self.adaptive.failed
        learn(now_s=now_s, started_s=attempt.started_s)
        self.breaker.failed(now_s=now_s, started_s=attempt.started_s, slow=slow)
        if pause_s:
            self.paused_until_s = max(self.paused_until_s, now_s + pause_s)
        self._wake()

    def abandoned(self) -> None:
        """Cancelled before there was an answer: nothing is learnt from it."""
        self._left()
        self.breaker.abandoned()
        self._wake()

    async def rest(self, wait_s: float) -> None:
        """Return after a wait between two tries, at once when a destination that was thought dead has answered another."""
        if self._recovered is None or self._recovered.done():
            self._recovered = asyncio.get_running_loop().create_future()
        sleep = asyncio.ensure_future(self._clock.sleep(wait_s))
        try:
            await asyncio.wait([sleep, self._recovered], return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()

    def probe_now(self) -> None:
        """Try a destination that is thought dead once more without waiting (a drain does)."""
        self.breaker.probe_now(self._clock.monotonic_s())
        self._wake()

    async def run(self) -> None:
        """Wake those who wait when a pause is over; ends by cancellation."""
        while True:
            await self._timer_wanted.wait()
            self._timer_wanted.clear()
            wait_s = max(self.paused_until_s, self._opens_at_s()) - self._clock.monotonic_s()
            if wait_s > 0:
                await self._sleep_unless_changed(wait_s)
            self._wake()

    async def _sleep_unless_changed(self, wait_s: float) -> None:
        """Sleep until the pause is over, or until a new pause has been set meanwhile."""
        waits = [asyncio.ensure_future(self._clock.sleep(wait_s)), asyncio.ensure_future(self._timer_wanted.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _opens_at_s(self) -> float:
        return float("-inf") if self.breaker.state is BreakerState.CLOSED else self.breaker.open_until_s

    def _admits(self, now_s: float) -> bool:
        return self.in_flight < self.adaptive.limit and now_s >= self.paused_until_s and self.breaker.may_try(now_s)

    def _admit(self, now_s: float) -> Pass:
        self.in_flight += 1
        return Pass(now_s, self.in_flight >= self.adaptive.limit)

    def _left(self) -> None:
        self.in_flight -= 1

    def _answered(self) -> None:
        """The destination lives."""
        if self.breaker.state is not BreakerState.CLOSED and self._recovered is not None and not self._recovered.done():
            self._recovered.set_result(None)
        self.breaker.succeeded()

    def _next_waiter(self) -> _Waiter | None:
        """Return who is first, after those who were cancelled meanwhile are gone."""
        while self._waiters and self._waiters[0].entered.done():
            heapq.heappop(self._waiters)
        return self._waiters[0] if self._waiters else None

    def _wake(self) -> None:
        now_s = self._clock.monotonic_s()
        while self._next_waiter() is not None and self._admits(now_s):
            if self.breaker.state is BreakerState.CLOSED:
                waiter = heapq.heappop(self._waiters)
            else:
                waiter = min(self._waiters, key=lambda one: (one.entered.done(), one.attempts, one.order))
                self._waiters.remove(waiter)
                heapq.heapify(self._waiters)
            waiter.entered.set_result(self._admit(now_s))
        if self._waiters and (now_s < self.paused_until_s or now_s < self._opens_at_s()):
            self._timer_wanted.set()
