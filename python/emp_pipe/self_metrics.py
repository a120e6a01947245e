"""emp-pipe's own metrics: declared with their unit and help text, kept by prometheus_client, served at `/metrics`.

Names are `emp_pipe_<what>_<unit>`; labels come from a short list (`component`, `signal`, `topic`, `group`, `reason`, `peer` never: it is
unbounded). One `Metrics` per process (or per test); no global registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_PREFIX = "emp_pipe"
_M = TypeVar("_M", Counter, Gauge, Histogram)


class Metrics:
    """Where components declare what they count. Declaring the same metric twice returns the first one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._declared: dict[str, Counter | Gauge | Histogram] = {}

    def counter(self, name: str, *, unit: str, help: str, labels: Sequence[str] = ()) -> Counter:
        return self._declare(Counter, name, unit, help, labels)

    def gauge(self, name: str, *, unit: str, help: str, labels: Sequence[str] = ()) -> Gauge:
        return self._declare(Gauge, name, unit, help, labels)

    def histogram(self, name: str, *, unit: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float]) -> Histogram:
        return self._declare(Histogram, name, unit, help, labels, buckets=tuple(buckets))

    def _declare(self, kind: type[_M], name: str, unit: str, help: str, labels: Sequence[str], **more: object) -> _M:
        known = self._declared.get(name)
        if known is None:
            known = kind(f"{_PREFIX}_{name}", help, labelnames=tuple(labels), unit=unit, registry=self.registry, **more)  # type: ignore[arg-type]
            self._declared[name] = known
        if not isinstance(known, kind):
            raise TypeError(f"metric {name} was declared as a {type(known).__name__}")
        return known

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
