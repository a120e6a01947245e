"""What the delivery loop counts, by component; the gauges are there while it runs, and asked for when somebody reads
`/metrics`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter

from emp_pipe.log.protocol import DeadReason
from emp_pipe.self_metrics import ComponentGauges, Metrics


class DeliveryMetrics:
    """The counters of one exporter."""

    def __init__(self, metrics: Metrics, component: str) -> None:
        self._component = component
        self._gauges = ComponentGauges(metrics, component)
        signal = ("component", "signal")
        self._sent_records = metrics.counter("exporter_sent_records", unit="records", help="Records delivered.", labels=signal)
        self._sent_bytes = metrics.counter("exporter_sent_bytes", unit="bytes", help="Payload bytes delivered.", labels=signal)
        self._rejected = metrics.counter(
            "exporter_rejected_records", unit="records", help="Records refused by the destination in a partial success.", labels=signal
        )
        self._skipped = metrics.counter(
            "exporter_skipped_records", unit="records", help="Records left out by `only` or `except`.", labels=signal
        )
        self._dead = metrics.counter(
            "exporter_dead_records", unit="records", help="Records that became dead letters.", labels=("component", "signal", "reason")
        )
        self._truncated = metrics.counter(
            "exporter_truncated_values",
            unit="values",
            help="Values shortened or left out to fit the destination.",
            labels=("component", "limit"),
        )
        self._retries = metrics.counter(
            "exporter_retries", unit="attempts", help="Attempts that failed and are repeated.", labels=("component", "kind")
        )
        self.attempts: Counter = metrics.counter("exporter_attempts", unit="attempts", help="Requests sent.", labels=("component",)).labels(
            component
        )
        self._by_signal: dict[str, tuple[Counter, Counter]] = {}

    def open(self, **read: Callable[[], float]) -> None:
        """Say where the gauges' values are read."""
        for name, unit, help_text in (
            ("exporter_concurrency_limit", "requests", "Requests that may be under way at once, as learnt from the destination."),
            ("exporter_in_flight", "requests", "Requests under way."),
            ("exporter_breaker_open", "ratio", "1 while the destination is thought dead and only probed."),
            ("exporter_lag_records", "records", "Records in the buffer that this destination has not got yet."),
            ("exporter_lag_seconds", "seconds", "Age of the oldest block that this destination has not got yet."),
        ):
            self._gauges.add(name, unit=unit, help=help_text, read=read[name.removeprefix("exporter_")])

    def close(self) -> None:
        """The loop has ended: there are no gauges any more. The counters stay, for a total does not go back."""
        self._gauges.close()

    def sent(self, signal: str, records: int, size_bytes: int) -> None:
        counters = self._by_signal.get(signal)
        if counters is None:
            counters = (self._sent_records.labels(self._component, signal), self._sent_bytes.labels(self._component, signal))
            self._by_signal[signal] = counters
        counters[0].inc(records)
        counters[1].inc(size_bytes)

    def rejected(self, signal: str, records: int) -> None:
        self._rejected.labels(self._component, signal).inc(records)

    def skipped(self, signal: str, records: int) -> None:
        self._skipped.labels(self._component, signal).inc(records)

    def dead(self, signal: str, records: int, reason: DeadReason) -> None:
        self._dead.labels(self._component, signal, reason.value).inc(records)

    def truncated(self, limit: str, values: int) -> None:
        self._truncated.labels(self._component, limit).inc(values)

    def retried(self, kind: str) -> None:
        self._retries.labels(self._component, kind).inc()
