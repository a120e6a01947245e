"""How many requests may be under way to one destination: additive increase, multiplicative decrease.

The limit grows by one for each window of successes in which it was used up. It is halved on a refusal or a time-out, when the latency
has doubled, and when an answer took a quarter of the time that an attempt may take, at most once per round trip: what was sent before the
last decrease says nothing about the limit after it. A destination that works its requests off one after another, and takes those that we
have given up too, would else get the same data again and again. A connection that is lost says nothing about capacity: a few requests go
first, and with each success one more, up to where the limit was. Latency is compared with that of requests of about the same size. A pure
state machine: times come in as arguments. Read next: `gate.py`.
"""

from __future__ import annotations

_GROWTH_FACTOR = 2.0
"""The lower quartile of a window above this multiple of the usual latency is congestion."""
_GROWTH_SLACK_S = 0.01
"""Differences below it are scheduling, not queueing."""
_FIRST_STEP, _LEAST_STEP = 0.5, 0.001
"""How far one sample moves the usual latency. It follows the lower quartile, so that jitter is not taken for a queue."""
_LEAST_WINDOW = 8
_LATE_SHARE = 0.25
"""An answer that took this share of the time that an attempt may take is late: when the limit grows past it, answers come too late."""
_LATEST_SHARE = 0.75


class _Usual:
    """Follows the lower quartile of a latency, fast at first: up by a quarter of the step, down by three quarters."""

    def __init__(self, latency_s: float) -> None:
        self.latency_s = latency_s
        self._step = _FIRST_STEP

    def learn(self, latency_s: float) -> float:
        if latency_s < self.latency_s:
            self.latency_s = max(self.latency_s * (1 - 0.75 * self._step), latency_s)
        else:
            self.latency_s = min(self.latency_s * (1 + 0.25 * self._step), latency_s)
        self._step = max(self._step * 0.9, _LEAST_STEP)
        return self.latency_s


class AdaptiveLimit:
    """The number of requests that may be under way; `limit` is between 1 and `most`."""

    def __init__(self, most: int, start: int = 4, patience_s: float = float("inf")) -> None:
        """`patience_s`: the time that one attempt may take."""
        self.most = most
        self.limit = min(start, most)
        self._start = self.limit
        self._aim = 0
        """Up to here the limit grows with each success: it stood there before a connection was lost."""
        self._patience_s = patience_s
        self._late_s = patience_s * _LATE_SHARE
        self._decreased_at_s = float("-inf")
        self._usual: dict[int, _Usual] = {}
        self._ratios: list[float] = []
        self._excess_s: list[float] = []
        self._used_up = False

    def succeeded(self, *, now_s: float, started_s: float, size_bytes: int, used_up: bool) -> None:
        """Learn from a success; `used_up` says that the limit was reached while it was under way."""
        if started_s < self._decreased_at_s:
            return
        self._used_up |= used_up
        latency_s = now_s - started_s
        if latency_s >= self._late_s and self.limit > 1:
            self._decrease(now_s)
            return
        if self.limit == 1:
            # No queue of ours: so slow it is, and only what is slower is late.
            self._late_s = min(max(2 * latency_s, self._patience_s * _LATE_SHARE), self._patience_s * _LATEST_SHARE)
        if used_up and self.limit < self._aim:
            self.limit += 1
        usual_s = self._learn_latency(latency_s, size_bytes)
        self._ratios.append(latency_s / usual_s if usual_s > 0 else 1.0)
        self._excess_s.append(latency_s - usual_s)
        if len(self._ratios) < max(self.limit, _LEAST_WINDOW):
            return
        slower = _lower_quartile(self._ratios) > _GROWTH_FACTOR and _lower_quartile(self._excess_s) > _GROWTH_SLACK_S
        if slower and self.limit > 1:
            self._decrease(now_s)
            return
        if slower:
            # With one request under way there is no queue of ours: this is what the destination's latency is now.
            self._usual.clear()
        elif self._used_up:
            self.limit = min(self.limit + 1, self.most)
        self._new_window()

    def failed(self, *, now_s: float, started_s: float) -> None:
        """Learn from a refusal or a time-out."""
        if started_s >= self._decreased_at_s:
            self._decrease(now_s)

    def lost(self, *, now_s: float, started_s: float) -> None:
        """Learn from a connection that was lost, or could not be made: who comes back is met with a few requests first."""
        if started_s >= self._decreased_at_s:
            self._aim = max(self._aim, self.limit)
            self.limit = min(self.limit, self._start)
            self._begin_anew(now_s)

    def _decrease(self, now_s: float) -> None:
        self.limit = max(self.limit // 2, 1)
        self._aim = 0
        self._begin_anew(now_s)

    def _begin_anew(self, now_s: float) -> None:
        self._decreased_at_s = now_s
        self._new_window()

    def _new_window(self) -> None:
        self._ratios.clear()
        self._excess_s.clear()
        self._used_up = False

    def _learn_latency(self, latency_s: float, size_bytes: int) -> float:
        """Return the usual latency of requests of this size, the sample included."""
        size_class = max(size_bytes, 1 << 13).bit_length()
        usual = self._usual.get(size_class)
        if usual is None:
            usual = self._usual[size_class] = _Usual(latency_s)
        return usual.learn(latency_s)


def _lower_quartile(values: list[float]) -> float:
    return sorted(values)[len(values) // 4]
