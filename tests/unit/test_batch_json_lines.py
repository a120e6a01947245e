"""Promises of JSON lines: logs in the fleet's names, spans and metrics as OTLP JSON, every line readable, nothing twice."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as m
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from emp_pipe import _core
from tests.support.otlp_rows import NOW, attributes, log, log_batch, span_batch


def lines(batch: _core.Batch) -> list[dict[str, Any]]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), f"a key occurs twice: {pairs}"
        return dict(pairs)

    text = batch.to_json_lines()
    assert text.endswith(b"\n")
    return [json.loads(line, object_pairs_hook=no_duplicates) for line in text.splitlines()]


def test_a_log_is_written_in_the_names_of_the_fleet() -> None:
    row = log(
        "it failed",
        time=NOW + 123_000_000,
        severity=17,
        severity_text="ERROR",
        trace_id=bytes(range(16)),
        span_id=bytes(range(8)),
        attrs={"custom": {"a": [1, None]}, "job_id": "job-1", "duration_ms": 12.5, "blob": b"\x00\xff"},
    )
    batch = log_batch(row, resource={"machine_id": "gpu-1", "worker_id": "worker-001", "service_type": "comfyui"}, tag="app.web")

    assert list(lines(batch)[0].items()) == [
        ("timestamp", "2023-11-14T22:13:20.123Z"),
        ("level", "error"),
        ("message", "it failed"),
        ("machine_id", "gpu-1"),
        ("worker_id", "worker-001"),
        ("service_type", "comfyui"),
        ("job_id", "job-1"),
        ("trace_id", "000102030405060708090a0b0c0d0e0f"),
        ("span_id", "0001020304050607"),
        ("duration_ms", 12.5),
        ("custom", {"a": [1, None]}),
        ("blob", base64.b64encode(b"\x00\xff").decode()),
        ("fluent.tag", "app.web"),
    ]


def test_a_level_of_its_own_is_kept_beside_the_standard_one() -> None:
    assert [(line["level"], line.get("severity_text")) for line in lines(log_batch(log(severity=10, severity_text="notice")))] == [
        ("info", "notice")
    ]
    assert lines(log_batch(log(severity=0, severity_text="odd")))[0]["level"] == "odd"


def test_keys_that_meet_are_told_apart_by_their_source() -> None:
    row = log("body", attrs={"message": "attribute", "host": "row", "trace_id": "trace_1712345678901_ab12cd"}, trace_id=bytes([1] * 16))
    line = lines(log_batch(row, resource={"host": "resource", "level": "odd"}))[0]

    assert (line["message"], line["attributes.message"]) == ("body", "attribute")
    assert (line["host"], line["resource.host"]) == ("row", "resource")
    assert (line["trace_id"], line["attributes.trace_id"]) == ("01" * 16, "trace_1712345678901_ab12cd")
    assert (line["level"], line["resource.level"]) == ("info", "odd")


def test_numbers_that_json_lacks_are_strings_and_big_ones_exact() -> None:
    row = log(attrs={"nan": math.nan, "inf": -math.inf, "big": 2**63 - 1, "text": 'quote " and \x01 \u2028'})
    line = lines(log_batch(row))[0]

    assert (line["nan"], line["inf"], line["big"], line["text"]) == ("NaN", "-Infinity", 2**63 - 1, 'quote " and \x01 \u2028')


def test_a_row_without_a_time_shows_when_it_was_observed() -> None:
    assert lines(log_batch(log(time=0, observed_time_unix_nano=NOW)))[0]["timestamp"] == "2023-11-14T22:13:20.000Z"
    assert "timestamp" not in lines(log_batch(log(time=0)))[0]


def otlp_json(request: Any) -> Any:
    """OTLP JSON of a request by protobuf's own converter: it writes ids in base64 and enums by name unless told otherwise."""

    def ids_in_hex(value: Any) -> Any:
        if isinstance(value, list):
            return [ids_in_hex(element) for element in value]
        if not isinstance(value, dict):
            return value
        return {
            key: base64.b64decode(inner).hex() if key in ("traceId", "spanId", "parentSpanId") else ids_in_hex(inner)
            for key, inner in value.items()
        }

    return ids_in_hex(json_format.MessageToDict(request, use_integers_for_enums=True))


def test_spans_are_lines_of_otlp_json() -> None:
    span = Span(
        trace_id=bytes(range(16)),
        span_id=bytes(range(8)),
        parent_span_id=bytes([9] * 8),
        trace_state="ot=th:e666",
        name="GET /",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=NOW,
        end_time_unix_nano=NOW + 5,
        attributes=attributes({"s": "x", "i": -7, "d": 0.5, "b": True, "raw": b"\x01", "list": [1, "two"], "map": {"k": None}}),
        events=[Span.Event(name="exception", time_unix_nano=NOW, attributes=attributes({"n": 1}))],
        links=[Span.Link(trace_id=bytes([1] * 16), span_id=bytes([2] * 8), flags=1)],
        status=Status(code=Status.STATUS_CODE_ERROR, message="boom"),
        dropped_events_count=2,
        flags=257,
    )
    batch = span_batch(span, span)

    expected = otlp_json(ExportTraceServiceRequest.FromString(span_batch(span).to_block("none", topic="t", block_id="b").payload("none")))
    assert lines(batch) == [expected, expected]


def test_metrics_are_lines_of_otlp_json() -> None:
    exemplar = m.Exemplar(time_unix_nano=3, as_double=1.5, trace_id=bytes([1] * 16), filtered_attributes=attributes({"f": 1}))
    point = {"time_unix_nano": NOW, "start_time_unix_nano": 1, "attributes": attributes({"gpu": "0"})}
    metrics = [
        m.Metric(name="g", unit="1", gauge=m.Gauge(data_points=[m.NumberDataPoint(as_double=math.inf, exemplars=[exemplar], **point)])),
        m.Metric(
            name="s", sum=m.Sum(data_points=[m.NumberDataPoint(as_int=-(2**60), **point)], is_monotonic=True, aggregation_temporality=2)
        ),
        m.Metric(
            name="h",
            histogram=m.Histogram(
                data_points=[m.HistogramDataPoint(count=3, sum=4.5, bucket_counts=[1, 2], explicit_bounds=[0.5], min=0.1, max=4.0, **point)]
            ),
        ),
        m.Metric(
            name="e",
            exponential_histogram=m.ExponentialHistogram(
                data_points=[
                    m.ExponentialHistogramDataPoint(
                        count=300,
                        scale=-3,
                        zero_count=2,
                        positive=m.ExponentialHistogramDataPoint.Buckets(offset=-5, bucket_counts=[1, 300]),
                        zero_threshold=0.25,
                        **point,
                    )
                ]
            ),
        ),
        m.Metric(
            name="q",
            summary=m.Summary(
                data_points=[
                    m.SummaryDataPoint(count=1, quantile_values=[m.SummaryDataPoint.ValueAtQuantile(quantile=0.9, value=2.0)], **point)
                ]
            ),
        ),
    ]

    def request(rows: list[m.Metric]) -> ExportMetricsServiceRequest:
        resource = Resource(attributes=attributes({"machine_id": "gpu-1"}))
        scopes = [m.ScopeMetrics(metrics=rows, schema_url="https://example.org/scope")]
        return ExportMetricsServiceRequest(resource_metrics=[m.ResourceMetrics(resource=resource, scope_metrics=scopes)])

    batch = _core.Batch.from_otlp(request(metrics).SerializeToString(), signal="metrics")
    for line, metric in zip(lines(batch), metrics, strict=True):
        expected = otlp_json(request([metric]))
        # An absent scope is written as an empty one.
        expected["resourceMetrics"][0]["scopeMetrics"][0]["scope"] = {}
        assert line == expected
