"""Promises of the decoder of OTLP requests: the good items are kept as they came, the bad ones are set aside, each with its place."""

from __future__ import annotations

import gzip
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from emp_pipe import _core

NOW = 1_700_000_000_000_000_000
TRACE, SPAN = bytes(range(1, 17)), bytes(range(1, 9))


def decode(signal: Any, data: bytes, normalizer: _core.Normalizer | None = None, **how: Any) -> _core.OtlpRead:
    limits = {"max_inflated_bytes": how.pop("max_inflated_bytes")} if "max_inflated_bytes" in how else {}
    decoder = _core.OtlpDecoder(normalizer or _core.Normalizer(), signal=signal, **limits)
    return decoder.decode(data, now_unix_nano=NOW, **how)


def request_of(read: _core.OtlpRead) -> bytes:
    assert read.batch is not None
    return read.batch.to_block("none", topic=read.batch.signal, block_id="b").payload("none")


def log(body: str, **fields: Any) -> LogRecord:
    return LogRecord(time_unix_nano=NOW, observed_time_unix_nano=NOW, severity_number=9, body=AnyValue(string_value=body), **fields)


def span(**fields: Any) -> Span:
    return Span(**{"trace_id": TRACE, "span_id": SPAN, "name": "work", "start_time_unix_nano": NOW, **fields})


def gauge(name: str, points: list[NumberDataPoint]) -> Metric:
    return Metric(name=name, gauge=Gauge(data_points=points))


def logs_request(rows: list[LogRecord]) -> ExportLogsServiceRequest:
    return ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(resource=Resource(), scope_logs=[ScopeLogs(scope=InstrumentationScope(), log_records=rows)])]
    )


def spans_request(rows: list[Span]) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=Resource(), scope_spans=[ScopeSpans(scope=InstrumentationScope(), spans=rows)])]
    )


def metrics_request(rows: list[Metric]) -> ExportMetricsServiceRequest:
    return ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=Resource(), scope_metrics=[ScopeMetrics(scope=InstrumentationScope(), metrics=rows)])]
    )


@pytest.mark.parametrize(("codec", "compress"), [("none", bytes), ("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_a_request_in_any_codec_gives_its_rows_as_they_came(codec: str, compress: Any) -> None:
    data = logs_request([log("one"), log("two", attributes=[KeyValue(key="k")])]).SerializeToString()
    read = decode("logs", compress(data), codec=codec)

    assert (read.received, read.rejected_items, read.rejected) == (2, 0, [])
    assert ExportLogsServiceRequest.FromString(request_of(read)).resource_logs[0].scope_logs[0].log_records[1].body.string_value == "two"


@pytest.mark.parametrize("signal", ["logs", "traces", "metrics"])
def test_an_empty_request_is_read_and_holds_nothing(signal: str) -> None:
    read = decode(signal, b"")

    assert (read.batch, read.received, read.rejected_items) == (None, 0, 0)


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_a_request_over_the_limit_is_too_large_before_its_memory_is_taken(codec: str) -> None:
    bomb = bytes(8 << 20)
    data = {"none": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[codec](bomb)

    with pytest.raises(_core.CoreError) as caught:
        decode("logs", data, codec=codec, max_inflated_bytes=1 << 20)
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_body_that_cannot_be_inflated_is_invalid(codec: str) -> None:
    with pytest.raises(_core.CoreError) as caught:
        decode("logs", b"this is not compressed", codec=codec)
    assert caught.value.kind == "body_invalid"


@pytest.mark.parametrize(
    ("bad", "detail"),
    [
        ({"trace_id": b""}, "trace_id is missing or all zero"),
        ({"trace_id": bytes(16)}, "trace_id is missing or all zero"),
        ({"trace_id": b"short"}, "trace id has not 16 bytes"),
        ({"trace_id": bytes(17)}, "trace id has not 16 bytes"),
        ({"span_id": b""}, "span_id is missing or all zero"),
        ({"span_id": bytes(8)}, "span_id is missing or all zero"),
        ({"span_id": bytes(16)}, "span id has not 8 bytes"),
        ({"parent_span_id": b"short"}, "span id has not 8 bytes"),
        ({"links": [Span.Link(trace_id=b"short", span_id=SPAN)]}, "trace id has not 16 bytes"),
        ({"links": [Span.Link(trace_id=TRACE, span_id=b"short")]}, "span id has not 8 bytes"),
    ],
)
def test_a_span_with_an_id_that_is_none_is_set_aside_and_its_neighbours_kept(bad: dict[str, Any], detail: str) -> None:
    first, broken, last = span(name="first"), span(**bad), span(name="last")
    data = spans_request([first, broken, last]).SerializeToString()
    read = decode("traces", data)

    assert request_of(read) == spans_request([first, last]).SerializeToString()
    assert (read.received, read.rejected_items) == (3, 1)
    [piece] = read.rejected
    assert (piece.kind, piece.records, piece.data) == ("entry_invalid", 1, broken.SerializeToString())
    assert detail in piece.detail
    at = data.index(broken.SerializeToString())
    assert at <= piece.offset < at + len(piece.data)


def test_a_root_span_has_no_parent_or_one_of_zeros() -> None:
    read = decode("traces", spans_request([span(parent_span_id=b""), span(parent_span_id=bytes(8))]).SerializeToString())

    assert (read.received, read.rejected_items) == (2, 0)


@pytest.mark.parametrize("ids", [(b"", b""), (bytes(16), bytes(8)), (TRACE, b""), (TRACE, SPAN)])
def test_a_log_record_may_belong_to_no_trace(ids: tuple[bytes, bytes]) -> None:
    rows = [log("x", trace_id=ids[0], span_id=ids[1])]
    read = decode("logs", logs_request(rows).SerializeToString())

    assert request_of(read) == logs_request(rows).SerializeToString()


@pytest.mark.parametrize("bad", [{"trace_id": b"short"}, {"span_id": b"short"}])
def test_a_log_record_with_an_id_of_the_wrong_length_is_set_aside(bad: dict[str, Any]) -> None:
    read = decode("logs", logs_request([log("a"), log("b", **bad), log("c")]).SerializeToString())

    assert request_of(read) == logs_request([log("a"), log("c")]).SerializeToString()
    assert (read.received, read.rejected_items) == (3, 1)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field, written by hand: the official classes refuse to write broken messages."""
    size, out = len(payload), bytearray([number << 3 | 2])
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(out) + bytes([size]) + payload


def nested(levels: int) -> bytes:
    """A log record whose body is an array in an array, and so on."""
    value = field(1, b"deep")
    for _ in range(levels):
        value = field(5, field(1, value))
    return field(5, value)


def scope_of(rows: list[bytes]) -> bytes:
    """A request of one resource and scope around encoded rows."""
    return field(1, field(1, b"") + field(2, field(1, b"") + b"".join(field(2, row) for row in rows)))


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(log("whole").SerializeToString()[:-1], id="truncated"),
        pytest.param(b"\x0d\x01\x02\x03\x04", id="fixed32 where a fixed64 should be"),
        pytest.param(b"\x28\x01", id="a varint where a message should be"),
        pytest.param(b"\x2a\x02\x08\x01", id="a varint where a string should be"),
        pytest.param(b"\x1a\x02\xff\xfe", id="a string that is not UTF-8"),
        pytest.param(b"\x32\x04\x0a\x02\xc3\x28", id="an attribute key that is not UTF-8"),
        pytest.param(b"\x2a\x03\x0a\x01\xff", id="a body that is not UTF-8"),
        pytest.param(b"\x00\x00", id="field number 0"),
        pytest.param(b"\x0f", id="an unknown wire type"),
        pytest.param(b"\x10" + b"\xff" * 11, id="a varint that does not end"),
        pytest.param(b"\x0c", id="a group that ends and never began"),
        pytest.param(nested(60), id="nested deeper than parsers allow"),
    ],
)
def test_a_broken_log_record_is_set_aside_with_its_place_and_its_neighbours_are_kept(broken: bytes) -> None:
    good = [log("before").SerializeToString(), log("after").SerializeToString()]
    data = scope_of([good[0], broken, good[1]])
    read = decode("logs", data)

    assert request_of(read) == scope_of(good)
    assert (read.received, read.rejected_items) == (3, 1)
    [piece] = read.rejected
    assert (piece.kind, piece.data) == ("entry_invalid", broken)
    at = data.index(field(2, broken)) + len(field(2, broken)) - len(broken)
    assert at <= piece.offset <= at + len(broken)


def test_a_value_is_kept_just_as_deep_as_the_official_parser_reads_it() -> None:
    read, kept = [], []
    for levels in range(40, 60):
        data = scope_of([nested(levels)])
        try:
            ExportLogsServiceRequest.FromString(data)
            read.append(levels)
        except DecodeError:
            pass
        if decode("logs", data).batch is not None:
            kept.append(levels)
    assert len(read) in range(1, 20), "the limit lies elsewhere"
    assert kept == read


def test_a_bad_data_point_costs_itself_and_not_its_metric() -> None:
    good = [NumberDataPoint(as_int=1, time_unix_nano=NOW), NumberDataPoint(as_int=3, time_unix_nano=NOW)]
    bad = NumberDataPoint(as_int=2)
    bad.exemplars.add(trace_id=b"short")
    read = decode("metrics", metrics_request([gauge("queue", [good[0], bad, good[1]]), gauge("other", [good[0]])]).SerializeToString())

    assert request_of(read) == metrics_request([gauge("queue", good), gauge("other", [good[0]])]).SerializeToString()
    assert (read.received, read.rejected_items) == (4, 1)
    assert read.batch is not None
    assert (len(read.batch), read.batch.record_count) == (2, 3)
    assert [(piece.data, piece.records) for piece in read.rejected] == [(bad.SerializeToString(), 1)]


def test_a_metric_without_a_point_left_is_left_out() -> None:
    bad = NumberDataPoint(as_int=2)
    bad.exemplars.add(span_id=b"short")
    read = decode("metrics", metrics_request([gauge("queue", [bad, bad])]).SerializeToString())

    assert (read.batch, read.received, read.rejected_items) == (None, 2, 2)


def test_a_metric_that_is_broken_outside_of_its_points_is_set_aside_with_all_of_them() -> None:
    broken = gauge("", [NumberDataPoint(as_int=1), NumberDataPoint(as_int=2)]).SerializeToString() + b"\x0a\x01\xff"
    data = scope_of([broken, gauge("good", [NumberDataPoint(as_int=1)]).SerializeToString()])
    read = decode("metrics", data)

    assert read.batch is not None
    assert (read.received, read.rejected_items, read.batch.record_count) == (3, 2, 1)
    assert [(piece.data, piece.records) for piece in read.rejected] == [(broken, 2)]


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        pytest.param(b"\x0a\x05\x12", 2, id="the request ends early"),
        pytest.param(b"\x08\x01", 0, id="a varint where a resource should be"),
        pytest.param(b"\x0a\x02\x10\x01", 2, id="a varint where a scope should be"),
        pytest.param(b"\x0a\x04\x12\x02\x10\x01", 4, id="a varint where a row should be"),
        pytest.param(b"\x0a\x06\x0a\x04\x0a\x02\x0a\x05", 8, id="a torn resource"),
        pytest.param(b"\x0a\x04\x12\x02\x0a\x05", 6, id="a torn scope"),
        pytest.param(b"\x0a\x03\x1a\x01\xff", 4, id="a schema URL that is not UTF-8"),
        pytest.param(b"\x00", 0, id="field number 0"),
    ],
)
@pytest.mark.parametrize("signal", ["logs", "traces", "metrics"])
def test_a_request_whose_framing_is_broken_is_refused_at_its_offset(signal: str, data: bytes, offset: int) -> None:
    with pytest.raises(_core.CoreError) as caught:
        decode(signal, data)
    assert (caught.value.kind, caught.value.offset) == ("body_invalid", offset)


@pytest.mark.parametrize("signal", ["logs", "traces", "metrics"])
def test_every_resource_gets_the_stamp_that_it_lacks_and_keeps_what_it_has(signal: str) -> None:
    one: Any
    if signal == "logs":
        one = logs_request([log("x")])
        resource = one.resource_logs[0].resource
    elif signal == "traces":
        one = spans_request([span()])
        resource = one.resource_spans[0].resource
    else:
        one = metrics_request([gauge("g", [NumberDataPoint()])])
        resource = one.resource_metrics[0].resource
    resource.attributes.append(KeyValue(key="host.name", value=AnyValue(string_value="own")))
    stamp = {"machine_id": "m7", "host.name": "stamped"}
    read = decode(signal, one.SerializeToString(), _core.Normalizer(stamp=stamp))

    columns = read.batch.to_arrow(["machine_id", "host.name"]) if read.batch is not None else None
    assert columns is not None
    assert pa.record_batch(columns).to_pylist() == [{"machine_id": "m7", "host.name": "own"}]


def test_a_halved_metric_has_half_its_points_each() -> None:
    points = [NumberDataPoint(as_int=number) for number in range(5)]
    batch = _core.Batch.from_otlp(metrics_request([gauge("queue", points)]).SerializeToString(), signal="metrics")
    block = batch.to_block("gzip", topic="metrics", block_id="b")
    assert block.records == 5
    halves = block.halve(("b.0", "b.1"))
    assert halves is not None

    requests = [ExportMetricsServiceRequest.FromString(half.payload("none")) for half in halves]
    assert requests == [metrics_request([gauge("queue", points[:2])]), metrics_request([gauge("queue", points[2:])])]
    assert [half.records for half in halves] == [2, 3]
    first = halves[0].halve(("c.0", "c.1"))
    assert first is not None
    assert first[0].halve(("d.0", "d.1")) is None
