"""OTLP in and out again is lossless: what the official classes wrote comes out as it was, in both encodings, for all three signals.

Random messages have every field that the classes know and fields that none knows yet; the examples are those of the protocol's own
repository (trace, metrics of every kind, logs, events), in our words.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
    Summary,
    SummaryDataPoint,
)
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from emp_pipe._core import Normalizer, OtlpDecoder
from tests.support.otlp_json import to_json
from tests.support.otlp_messages import messages
from tests.support.otlp_rows import any_value, attributes

NOW = 1_800_000_000_000_000_000
CLASSES: dict[str, tuple[Any, Any, Any, Any]] = {
    "logs": (ExportLogsServiceRequest, ResourceLogs, ScopeLogs, LogRecord),
    "traces": (ExportTraceServiceRequest, ResourceSpans, ScopeSpans, Span),
    "metrics": (ExportMetricsServiceRequest, ResourceMetrics, ScopeMetrics, Metric),
}
NAMES = {
    "logs": ("resource_logs", "scope_logs", "log_records"),
    "traces": ("resource_spans", "scope_spans", "spans"),
    "metrics": ("resource_metrics", "scope_metrics", "metrics"),
}


def rows_of(signal: str, request: Any) -> list[tuple[bytes, ...]]:
    """Every row with all that encloses it, in an order of no meaning: a request may be grouped anew."""
    of_resource, of_scope, of_row = NAMES[signal]
    rows = []
    for resource in getattr(request, of_resource):
        for scope in getattr(resource, of_scope):
            found = list(getattr(scope, of_row))
            outer, inner = type(resource)(), type(scope)()
            outer.CopyFrom(resource)
            outer.ClearField(of_scope)
            outer.resource.SetInParent()
            inner.CopyFrom(scope)
            inner.ClearField(of_row)
            inner.scope.SetInParent()
            rows += [tuple(part.SerializeToString(deterministic=True) for part in (outer, inner, row)) for row in found]
    return sorted(rows)


def through(signal: Any, request: Any, encoding: Any) -> Any:
    """The request that comes out of a block of the batch that a request in an encoding gave."""
    data = to_json(request) if encoding == "json" else request.SerializeToString()
    read = OtlpDecoder(Normalizer(unfold=False), signal=signal).decode(data, encoding=encoding, now_unix_nano=NOW)
    assert read.rejected == [], read.rejected[0].detail
    cls = CLASSES[signal][0]
    if read.batch is None:
        return cls()
    assert read.batch.record_count == read.received
    block = read.batch.to_block("zstd", topic=signal, block_id="b")
    assert block.records == read.received
    return cls.FromString(block.payload("none"))


def usual(signal: str, request: Any) -> Any:
    """The request with what a valid item must have; and log records with nothing that the rules of normalisation would change."""
    for resource in getattr(request, NAMES[signal][0]):
        for scope in getattr(resource, NAMES[signal][1]):
            for row in getattr(scope, NAMES[signal][2]):
                if signal == "traces":
                    row.trace_id = row.trace_id or bytes(range(16))
                    row.span_id = row.span_id or bytes(range(8))
                if signal == "logs":
                    row.time_unix_nano = row.time_unix_nano or NOW
                    row.observed_time_unix_nano = row.observed_time_unix_nano or NOW
                    row.severity_number = row.severity_number or 9
    return request


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
@pytest.mark.parametrize("signal", ["logs", "traces", "metrics"])
def test_random_requests_come_out_as_they_came(signal: str, encoding: str) -> None:
    cls = CLASSES[signal][0]

    @given(messages(cls, depth=9, unknown=encoding == "protobuf"))
    def check(request: Any) -> None:
        usual(signal, request)
        assert rows_of(signal, through(signal, request, encoding)) == rows_of(signal, request)

    check()


@pytest.mark.parametrize("signal", ["logs", "traces", "metrics"])
def test_the_bytes_of_a_random_row_come_out_as_they_came(signal: str) -> None:
    request, resource, scope, row = CLASSES[signal]

    @given(messages(row, depth=6))
    def check(message: Any) -> None:
        one = scope(scope=InstrumentationScope(), **{NAMES[signal][2]: [message]})
        whole = usual(signal, request(**{NAMES[signal][0]: [resource(resource=Resource(), **{NAMES[signal][1]: [one]})]}))
        data = whole.SerializeToString()
        read = OtlpDecoder(Normalizer(unfold=False), signal=signal).decode(data, now_unix_nano=NOW)  # type: ignore[arg-type]

        assert read.batch is not None
        assert read.batch.to_block("none", topic=signal, block_id="b").payload("none") == data

    check()


@pytest.mark.parametrize("signal", ["logs", "traces", "metrics"])
def test_json_with_white_space_is_json_without_it(signal: str) -> None:
    @given(messages(CLASSES[signal][0], depth=7, unknown=False))
    def check(request: Any) -> None:
        usual(signal, request)
        decoder = OtlpDecoder(Normalizer(unfold=False), signal=signal)  # type: ignore[arg-type]
        payloads = []
        for compact in (True, False):
            read = decoder.decode(to_json(request, compact=compact), encoding="json", now_unix_nano=NOW)
            payloads.append(read.batch and read.batch.to_block("none", topic=signal, block_id="b").payload("none"))
        assert payloads[0] == payloads[1]

    check()


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_the_json_that_we_write_reads_back_as_what_it_was_written_from(signal: str) -> None:
    cls = CLASSES[signal][0]

    @given(messages(cls, depth=7, unknown=False))
    def check(request: Any) -> None:
        usual(signal, request)
        decoder = OtlpDecoder(Normalizer(unfold=False), signal=signal)  # type: ignore[arg-type]
        read = decoder.decode(request.SerializeToString(), now_unix_nano=NOW)
        if read.batch is None:
            return
        again = cls()
        for line in read.batch.to_json_lines().splitlines():
            one = decoder.decode(line, encoding="json", now_unix_nano=NOW)
            assert one.rejected == [], one.rejected[0].detail
            assert one.batch is not None
            again.MergeFromString(one.batch.to_block("none", topic=signal, block_id="b").payload("none"))
        assert rows_of(signal, again) == rows_of(signal, request)

    check()


def test_mutated_requests_never_panic_and_items_never_vanish() -> None:
    @given(
        st.sampled_from(list(CLASSES)).flatmap(lambda signal: st.tuples(st.just(signal), messages(CLASSES[signal][0], depth=6))), st.data()
    )
    def check(one: Any, data: st.DataObject) -> None:
        signal, request = one
        for encoding in ("protobuf", "json"):
            text = bytearray(to_json(request) if encoding == "json" else request.SerializeToString())
            for _ in range(data.draw(st.integers(0, 3))):
                if text:
                    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
            try:
                read = OtlpDecoder(Normalizer(), signal=signal).decode(bytes(text), encoding=encoding, now_unix_nano=NOW)  # type: ignore[arg-type]
            except ValueError:
                continue
            kept = read.batch.record_count if read.batch is not None else 0
            assert read.received == kept + read.rejected_items

    check()


RESOURCE = Resource(attributes=attributes({"service.name": "billing"}))
SCOPE = InstrumentationScope(name="acme.instruments", version="2.1.0", attributes=attributes({"built.by": "acme"}))
BEGAN, ENDED = 1_544_712_660_000_000_000, 1_544_712_661_000_000_000


def example_trace() -> Any:
    span = Span(
        trace_id=bytes.fromhex("5b8efff798038103d269b633813fc60c"),
        span_id=bytes.fromhex("eee19b7ec3c1b174"),
        parent_span_id=bytes.fromhex("eee19b7ec3c1b173"),
        trace_state="ot=th:e666,vendor=a",
        flags=257,
        name="charge a card",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=BEGAN,
        end_time_unix_nano=ENDED,
        attributes=attributes({"card.kind": "debit"}),
        events=[Span.Event(time_unix_nano=BEGAN + 5, name="retried", attributes=attributes({"attempt": 2}), dropped_attributes_count=1)],
        links=[
            Span.Link(trace_id=bytes(range(16)), span_id=bytes(range(8)), trace_state="a=b", flags=1, attributes=attributes({"l": True}))
        ],
        status=Status(code=Status.STATUS_CODE_ERROR, message="declined"),
        dropped_attributes_count=1,
        dropped_events_count=2,
        dropped_links_count=3,
    )
    return ExportTraceServiceRequest(
        resource_spans=[
            ResourceSpans(resource=RESOURCE, scope_spans=[ScopeSpans(scope=SCOPE, spans=[span], schema_url="s")], schema_url="r")
        ]
    )


def example_logs() -> Any:
    row = LogRecord(
        time_unix_nano=BEGAN,
        observed_time_unix_nano=BEGAN + 10,
        severity_number=10,  # type: ignore[arg-type]
        severity_text="Information",
        trace_id=bytes.fromhex("5b8efff798038103d269b633813fc60c"),
        span_id=bytes.fromhex("eee19b7ec3c1b174"),
        flags=1,
        body=any_value("A record of ours"),
        attributes=attributes(
            {"text": "some text", "truth": True, "whole": 10, "broken": 637.704, "list": ["many", "values"], "map": {"a": {"b": "c"}}}
        ),
    )
    return ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=RESOURCE, scope_logs=[ScopeLogs(scope=SCOPE, log_records=[row])])])


def example_events() -> Any:
    rows = [
        LogRecord(
            time_unix_nano=BEGAN,
            observed_time_unix_nano=BEGAN,
            severity_number=9,  # type: ignore[arg-type]
            event_name="browser.page_view",
            attributes=attributes({"url": "https://example.com"}),
            body=any_value({"type": 0, "title": "Start", "referrer": None}),
        )
    ]
    return ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=RESOURCE, scope_logs=[ScopeLogs(scope=SCOPE, log_records=rows)])])


def example_metrics() -> Any:
    times = {"start_time_unix_nano": BEGAN, "time_unix_nano": ENDED, "attributes": attributes({"queue": "mail"})}
    number = NumberDataPoint(as_double=5.0, **times)  # type: ignore[arg-type]
    number.exemplars.add(time_unix_nano=BEGAN, as_int=3, trace_id=bytes(range(16)), span_id=bytes(range(8)))
    buckets = ExponentialHistogramDataPoint.Buckets
    metrics = [
        Metric(
            name="sent", unit="1", description="Letters sent", sum=Sum(data_points=[number], aggregation_temporality=1, is_monotonic=True)
        ),  # type: ignore[arg-type]
        Metric(name="waiting", unit="1", gauge=Gauge(data_points=[NumberDataPoint(as_int=0, **times)]), metadata=attributes({"m": 1})),  # type: ignore[arg-type]
        Metric(
            name="sizes",
            unit="By",
            histogram=Histogram(
                aggregation_temporality=1,  # type: ignore[arg-type]
                data_points=[HistogramDataPoint(count=2, sum=2.0, bucket_counts=[1, 1], explicit_bounds=[1.0], min=0.0, max=2.0, **times)],  # type: ignore[arg-type]
            ),
        ),
        Metric(
            name="delays",
            unit="s",
            exponential_histogram=ExponentialHistogram(
                aggregation_temporality=2,  # type: ignore[arg-type]
                data_points=[
                    ExponentialHistogramDataPoint(
                        count=3,
                        sum=10.0,
                        scale=-1,
                        zero_count=1,
                        positive=buckets(offset=-2, bucket_counts=[0, 2, 2**40]),
                        negative=buckets(offset=1, bucket_counts=[]),
                        min=0.0,
                        max=5.0,
                        zero_threshold=0.5,
                        **times,  # type: ignore[arg-type]
                    )
                ],
            ),
        ),
        Metric(
            name="old",
            summary=Summary(
                data_points=[
                    SummaryDataPoint(
                        count=4,
                        sum=8.5,
                        quantile_values=[SummaryDataPoint.ValueAtQuantile(quantile=0.5, value=2.0)],
                        **times,  # type: ignore[arg-type]
                    )
                ]
            ),
        ),
    ]
    return ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=RESOURCE, scope_metrics=[ScopeMetrics(scope=SCOPE, metrics=metrics)])]
    )


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
@pytest.mark.parametrize(
    ("signal", "example"),
    [("traces", example_trace), ("logs", example_logs), ("logs", example_events), ("metrics", example_metrics)],
    ids=["trace", "logs", "events", "metrics"],
)
def test_the_protocols_examples_come_out_as_they_came(signal: str, example: Any, encoding: str) -> None:
    request = example()

    assert through(signal, request, encoding) == request
