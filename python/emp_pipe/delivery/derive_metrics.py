"""What the loop of a deriver counts, by component; the gauges are there while it runs."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Histogram

from emp_pipe.self_metrics import ComponentGauges, Metrics

_TICK_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_Labels = ("component",)


class DeriveMetrics:
    """The counters of one deriver."""

    def __init__(self, metrics: Metrics, component: str) -> None:
        self._component = component
        self._gauges = ComponentGauges(metrics, component)
        self.commits: Counter = metrics.counter(
            "deriver_commits", unit="commits", help="Commits of acks, outputs and state.", labels=_Labels
        ).labels(component)
        self.tick_s: Histogram = metrics.histogram(
            "deriver_tick", unit="seconds", help="How long a tick took.", labels=_Labels, buckets=_TICK_BUCKETS_S
        ).labels(component)
        self._failures = metrics.counter(
            "deriver_failures",
            unit="failures",
            help="Commits that are repeated, and derivers that began anew from their last commit.",
            labels=("component", "kind"),
        )
        self._outputs = metrics.counter(
            "deriver_output_records", unit="records", help="Records derived, by their topic.", labels=("component", "topic")
        )
        self._unread = metrics.counter(
            "deriver_unread_records", unit="records", help="Records derived for a topic that nobody reads.", labels=("component", "topic")
        )
        self._dead = metrics.counter(
            "deriver_dead_records", unit="records", help="Records of blocks that became dead letters.", labels=_Labels
        ).labels(component)

    def open(self, *, held_blocks: Callable[[], float], held_bytes: Callable[[], float]) -> None:
        """Say where the gauges' values are read."""
        for name, unit, help_text, read in (
            ("deriver_held_blocks", "blocks", "Blocks that were taken in and have not ended.", held_blocks),
            ("deriver_held_bytes", "bytes", "Payload of the blocks that were taken in and have not ended.", held_bytes),
        ):
            self._gauges.add(name, unit=unit, help=help_text, read=read)

    def close(self) -> None:
        """The loop has ended: there are no gauges any more. The counters stay, for a total does not go back."""
        self._gauges.close()

    def failed(self, kind: str) -> None:
        self._failures.labels(self._component, kind).inc()

    def filed(self, topic: str, records: int) -> None:
        self._outputs.labels(self._component, topic).inc(records)

    def unread(self, topic: str, records: int) -> None:
        self._unread.labels(self._component, topic).inc(records)

    def dead(self, records: int) -> None:
        self._dead.inc(records)
