"""The log's books and fill as metrics: every term of both equations in `log/protocol.py`, so that a scrape can check the balance.

The log is asked just before a scrape; these totals are rows of the log and go on counting across restarts.
Not here: components' own counters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from emp_pipe.clock import Clock
from emp_pipe.log.protocol import GroupBooks, Log, ReceiverBooks, Usage
from emp_pipe.self_metrics import Metrics


class LogMetrics(Collector):
    """A collector over a log's latest books."""

    def __init__(self, log: Log, clock: Clock, metrics: Metrics) -> None:
        self._log = log
        self._clock = clock
        self._receivers: Sequence[ReceiverBooks] = ()
        self._groups: Sequence[GroupBooks] = ()
        metrics.registry.register(self)

    async def refresh(self) -> None:
        """Ask the log for its books."""
        self._receivers = await self._log.receiver_books()
        self._groups = await self._log.group_books()

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield self._receiver_records()
        yield from self._group_records()
        yield from self._fill(self._log.usage())

    def _receiver_records(self) -> Metric:
        family = CounterMetricFamily(
            "emp_pipe_receiver_records",
            "What became of records: received = appended + invalid + refused + dropped + duplicate.",
            labels=["component", "outcome"],
        )
        for books in self._receivers:
            for outcome in ("received", "appended", "invalid", "refused", "dropped", "duplicate"):
                family.add_metric([books.receiver, outcome], getattr(books, outcome))
        return family

    def _group_records(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "emp_pipe_group_records",
            "What became of a topic's records in a group: appended = acked + dead + dropped + skipped + held.",
            labels=["topic", "group", "outcome", "reason"],
        )
        held = GaugeMetricFamily("emp_pipe_group_held_records", "Records that a group still holds.", labels=["topic", "group"])
        for books in self._groups:
            for outcome in ("appended", "acked", "dead", "skipped"):
                family.add_metric([books.topic, books.group, outcome, ""], getattr(books, outcome))
            for reason, records in sorted(books.dropped.items()):
                family.add_metric([books.topic, books.group, "dropped", reason], records)
            held.add_metric([books.topic, books.group], books.held)
        yield family
        yield held

    def _fill(self, usage: Usage) -> Iterator[Metric]:
        yield GaugeMetricFamily("emp_pipe_buffer_held_bytes", "What the buffer holds.", value=usage.held_bytes)
        yield GaugeMetricFamily("emp_pipe_buffer_limit_bytes", "What the buffer may hold.", value=usage.limit_bytes)
        yield GaugeMetricFamily("emp_pipe_buffer_dead_bytes", "What dead letters take.", value=usage.dead_bytes)
        yield from self._dead(usage)
        yield GaugeMetricFamily("emp_pipe_buffer_admitting", "1: receivers may append; 0: they wait.", value=float(usage.admitting))
        yield GaugeMetricFamily(
            "emp_pipe_buffer_oldest_age_seconds", "Age of the oldest block held.", value=self._age_s(usage.oldest_append_unix_nano)
        )
        lag_bytes = GaugeMetricFamily("emp_pipe_group_lag_bytes", "Bytes that a group has not ended yet.", labels=["group"])
        lag_records = GaugeMetricFamily("emp_pipe_group_lag_records", "Records that a group has not ended yet.", labels=["group"])
        lag_seconds = GaugeMetricFamily("emp_pipe_group_lag_seconds", "Age of a group's oldest block.", labels=["group"])
        for group in usage.groups:
            lag_bytes.add_metric([group.spec.name], group.held_bytes)
            lag_records.add_metric([group.spec.name], group.held_records)
            lag_seconds.add_metric([group.spec.name], self._age_s(group.oldest_append_unix_nano))
        yield lag_bytes
        yield lag_records
        yield lag_seconds

    @staticmethod
    def _dead(usage: Usage) -> Iterator[Metric]:
        by = ["component", "reason"]
        letters = GaugeMetricFamily("emp_pipe_dead_letters", "Dead letters that are kept.", labels=by)
        records = GaugeMetricFamily("emp_pipe_dead_letter_held_records", "Records in dead letters that are kept.", labels=by)
        size = GaugeMetricFamily("emp_pipe_dead_letter_held_bytes", "What dead letters take.", labels=by)
        for count in usage.dead:
            labels = [count.component, count.reason.value]
            letters.add_metric(labels, count.letters)
            records.add_metric(labels, count.records)
            size.add_metric(labels, count.size_bytes)
        yield from (letters, records, size)
        yield GaugeMetricFamily(
            "emp_pipe_dead_letter_limit_bytes", "What dead letters may take before the oldest are deleted.", value=usage.dead_limit_bytes
        )

    def _age_s(self, append_unix_nano: int | None) -> float:
        if append_unix_nano is None:
            return 0.0
        return max(self._clock.unix_nano() - append_unix_nano, 0) / 1e9
