"""The circuit breaker: after repeated failures nothing is sent but one probe at a time, so that a dead destination costs almost nothing.

closed → (failures in a row) → open → (wait over) → half open, one probe → closed, or open again for longer.
A refused key opens it at once and at the slow pace. A pure state machine; `gate.py` asks it.
"""

from __future__ import annotations

from enum import StrEnum

from emp_pipe.delivery.backoff import Backoff


class BreakerState(StrEnum):
    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Breaker:
    """Says whether an attempt may be made. `open_until_s` is the time of the next probe while it is not closed."""

    def __init__(self, backoff: Backoff, *, threshold: int = 5) -> None:
        self._backoff = backoff
        self._threshold = threshold
        self.state = BreakerState.CLOSED
        self.failures_in_row = 0
        self.open_until_s = float("-inf")
        self.openings = 0
        """How often in a row it opened without a success in between."""
        self._opened_at_s = float("-inf")

    def may_try(self, now_s: float) -> bool:
        """Return whether an attempt may begin now; the one that is allowed when the wait is over is the probe (so ask once, and go)."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.HALF_OPEN or now_s < self.open_until_s:
            return False
        self.state = BreakerState.HALF_OPEN
        return True

    def succeeded(self) -> None:
        self.state = BreakerState.CLOSED
        self.failures_in_row = 0
        self.openings = 0

    def failed(self, *, now_s: float, started_s: float, slow: bool) -> None:
        """Count a failure; `slow`: only a change at the other side helps, so probe at the slowest pace."""
        self.failures_in_row += 1
        if self.state is not BreakerState.CLOSED and started_s < self._opened_at_s:
            return  # begun before it opened: nothing new
        if slow or self.state is BreakerState.HALF_OPEN or self.failures_in_row >= self._threshold:
            self.openings += 1
            self.state = BreakerState.OPEN
            self._opened_at_s = now_s
            self.open_until_s = now_s + (self._backoff.most_s if slow else self._backoff.wait_s(self.openings))

    def abandoned(self) -> None:
        """The probe was given up before it had an answer: the next one may go at once."""
        if self.state is BreakerState.HALF_OPEN:
            self.state = BreakerState.OPEN

    def probe_now(self, now_s: float) -> None:
        """Let the next probe go without further wait."""
        self.open_until_s = min(self.open_until_s, now_s)
