"""emp-pipe's own metrics: declared with their unit and help text, kept by prometheus_client, served at `/metrics`.

Names are `emp_pipe_<what>_<unit>`; labels come from a short list (`component`, `signal`, `topic`, `group`, `reason`, `peer` never: it is
unbounded). One `Metrics` per process (or per test); no global registry.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_PREFIX = "emp_pipe"
_M = TypeVar("_M", Counter, Gauge, Histogram)


class Metrics:
    """Where components declare what they count. Declaring the same metric twice returns the first one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._declared: dict[str, Counter | Gauge | Histogram] = {}
        self._readers: dict[tuple[str, str], dict[ComponentGauges, Callable[[], float]]] = {}
        self._readers_lock = threading.Lock()

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


class ComponentGauges:
    """Gauges of one component that are read when somebody asks, for as long as it runs.

    What reads them holds the component: it `add`s them when it begins and `close`s them when it has ended. Several may run under one id (a
    deriver for each part of the log; one that takes another's place): a gauge is the sum of theirs."""

    def __init__(self, metrics: Metrics, component: str) -> None:
        self._metrics = metrics
        self._component = component
        self._gauges: dict[str, Gauge] = {}

    def add(self, name: str, *, unit: str, help: str, read: Callable[[], float]) -> None:
        """Declare a gauge with the label `component`, and where its value is read."""
        gauge = self._gauges[name] = self._metrics.gauge(name, unit=unit, help=help, labels=("component",))
        with self._metrics._readers_lock:
            readers = self._metrics._readers.setdefault((name, self._component), {})
            readers[self] = read
            gauge.labels(self._component).set_function(lambda: sum([one() for one in list(readers.values())]))

    def close(self) -> None:
        """Remove the gauges from the metrics, and let go of what they read."""
        with self._metrics._readers_lock:
            for name, gauge in self._gauges.items():
                readers = self._metrics._readers.get((name, self._component), {})
                if readers.pop(self, None) is not None and not readers:
                    del self._metrics._readers[name, self._component]
                    gauge.remove(self._component)
        self._gauges.clear()
