"""Whose clock is wrong: the age of the youngest record of each source, reported, and by setting corrected.

A record cannot be younger than its arrival: a negative age is a clock that runs ahead, to within the network's delay. A clock that is
behind looks like data that was held back, so it is judged only by setting, and only when not one record of a minute was younger.
"""

from __future__ import annotations

from collections import OrderedDict

from emp_pipe.logs import RateLimitedLogger
from emp_pipe.self_metrics import Metrics

_MOST_SOURCES = 1024
_AHEAD_LIMIT_NS = 2_000_000_000
_WINDOW_S = 60.0
_NEVER = 1 << 62


class ClockSkew:
    """A bounded table of sources. `seen` is called with the least age of some of a source's records, as often as one likes."""

    def __init__(
        self, receiver: str, metrics: Metrics, log: RateLimitedLogger, *, behind_s: float | None, correct: bool, prefix: str = "forward"
    ) -> None:
        """`prefix`: what the metric's name begins with."""
        self.correct = correct
        self._receiver = receiver
        self._log = log
        advice = "set up time synchronisation there"
        self._advice = f"{advice}, or `correct_clock_skew`" if prefix == "forward" else advice
        self._behind_ns = None if behind_s is None else int(behind_s * 1e9)
        self._ahead = metrics.gauge(
            f"{prefix}_clock_ahead",
            unit="seconds",
            help="How far the clock that runs most ahead of ours is, of all sources.",
            labels=("component",),
        ).labels(receiver)
        self._sources: OrderedDict[str, _Source] = OrderedDict()

    def seen(self, address: str, least_age_ns: int, now_s: float) -> None:
        source = self._sources.get(address)
        if source is None:
            source = self._sources[address] = _Source(now_s)
            if len(self._sources) > _MOST_SOURCES:
                self._sources.popitem(last=False)
        self._sources.move_to_end(address)
        source.least_age_ns = min(source.least_age_ns, least_age_ns)
        if least_age_ns < -_AHEAD_LIMIT_NS:
            self._found(address, source, least_age_ns, "ahead")
        if now_s - source.since_s >= _WINDOW_S:
            if self._behind_ns is not None and source.least_age_ns > self._behind_ns:
                self._found(address, source, source.least_age_ns, "behind")
            elif source.least_age_ns >= -_AHEAD_LIMIT_NS:
                source.correction_ns = 0
            source.since_s, source.least_age_ns = now_s, _NEVER

    def correction_ns(self, address: str) -> int:
        """What to add to the times of a source: 0 unless its clock is wrong and correction is set."""
        source = self._sources.get(address)
        return source.correction_ns if self.correct and source is not None else 0

    def publish(self) -> None:
        self._ahead.set(max((-source.least_age_ns for source in self._sources.values() if source.least_age_ns < 0), default=0) / 1e9)

    def _found(self, address: str, source: _Source, age_ns: int, which: str) -> None:
        source.correction_ns = min(source.correction_ns, age_ns) if which == "ahead" else age_ns
        what = "its records are corrected" if self.correct else self._advice
        self._log.warning(
            f"skew {address}", "the clock of %s is %.1f s %s of ours; %s", address or "a local peer", abs(age_ns) / 1e9, which, what
        )


class _Source:
    __slots__ = ("correction_ns", "least_age_ns", "since_s")

    def __init__(self, now_s: float) -> None:
        self.since_s = now_s
        self.least_age_ns = _NEVER
        self.correction_ns = 0
