"""What arrived at the end of a chain, and what it must be by what was acknowledged at its beginning and by the books on the way."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.chaos.fleet import Books
from tests.support.otlp_endpoint import Received
from tests.support.otlp_sender import HALF, OtlpSender


class Sink:
    """What arrived, and how often."""

    def __init__(self) -> None:
        self.spans: Counter[tuple[bytes, bytes]] = Counter()
        self.logs: Counter[int] = Counter()
        self.streams: Counter[int] = Counter()
        self.calls = 0

    def take(self, received: Received) -> None:
        assert received.status == 200
        message: Any = received.message
        if received.signal == "traces":
            rows = [span for resource in message.resource_spans for scope in resource.scope_spans for span in scope.spans]
            self.spans.update((span.trace_id, span.span_id) for span in rows)
        elif received.signal == "logs":
            rows = [row for resource in message.resource_logs for scope in resource.scope_logs for row in scope.log_records]
            self.logs.update(pair.value.int_value for row in rows for pair in row.attributes if pair.key == "sequence")
        else:
            for metric in (one for resource in message.resource_metrics for scope in resource.scope_metrics for one in scope.metrics):
                for point in metric.sum.data_points:
                    if metric.name == "chaos.done":
                        self.streams[next(pair.value.int_value for pair in point.attributes if pair.key == "stream")] += point.as_int
                    elif metric.name == "traces.span.metrics.calls":
                        self.calls += point.as_int


class Accepted(Sink):
    """What a destination accepted that is told to refuse now and then."""

    def take(self, received: Received) -> None:
        if received.status == 200:
            super().take(received)


def of_receivers(books: Books, signal: str) -> int:
    """Return how many records of a signal the edge's receivers appended: each has its own."""
    return sum(terms["appended"] for name, terms in books.receivers.items() if name.endswith(f"/{signal}"))


def assert_logs(sender: OtlpSender, sink: Sink, appended: int) -> None:
    acked = sender.keys("logs")
    lost = acked.keys() - sink.logs.keys()
    assert not lost, f"{len(lost)} acknowledged logs never arrived, such as {sorted(lost)[:5]}"
    assert sink.logs.total() == appended, "edge → central → backend repeated or lost a log"


def assert_metrics(sender: OtlpSender, sink: Sink, appended: int) -> None:
    assert sink.streams.total() == appended, "the deltas that arrived are not the sum of those that the edge took"
    for stream, least in sender.keys("metrics").items():
        assert sink.streams[stream] >= least, f"stream {stream}: {least} acknowledged, {sink.streams[stream]} arrived"


def assert_traces(sender: OtlpSender, sink: Sink, appended: int, sampling: Books) -> None:
    assert sink.calls == appended, "RED counted other spans than the edge took"
    kept = {key: _is_kept(*key) for key in sender.keys("traces")}
    lost = [key for key, keep in kept.items() if keep and not sink.spans[key[:2]]]
    assert not lost, f"{len(lost)} acknowledged spans of kept traces never arrived"
    strange = [key for key, keep in kept.items() if not keep and sink.spans[key[:2]]]
    assert not strange, f"{len(strange)} spans of dropped traces arrived"
    twice = [key for key in sender.keys("traces", once=True) if sink.spans[key[:2]] > 1]
    assert not twice, f"{len(twice)} spans were sent twice"
    assert {True, False} == set(kept.values())
    sampled = sampling.groups["traces.in", "tail_sample"]
    assert sampled["appended"] == sampling.groups["traces.in", "red_metrics"]["acked"] == appended
    assert sink.spans.total() == sampled["acked"] == appended - sampled["skipped"], "the sampler's books do not say what it sent"


def _is_kept(trace_id: bytes, span_id: bytes, failed: bool) -> bool:
    return failed or int.from_bytes(trace_id[-7:], "big") >= HALF
