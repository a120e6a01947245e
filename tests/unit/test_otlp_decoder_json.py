"""Promises of the decoder of OTLP JSON: what the specification allows gives the same rows as protobuf, what is wrong costs its item."""

from __future__ import annotations

import json
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from emp_pipe import _core

NOW = 1_700_000_000_000_000_000
REQUESTS: dict[str, Any] = {
    "logs": ExportLogsServiceRequest,
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
}
FRAMING = {"logs": ("Logs", "logRecords"), "traces": ("Spans", "spans"), "metrics": ("Metrics", "metrics")}


def read_json(signal: Any, text: bytes, **how: Any) -> _core.OtlpRead:
    limits = {"max_inflated_bytes": how.pop("max_inflated_bytes")} if "max_inflated_bytes" in how else {}
    decoder = _core.OtlpDecoder(_core.Normalizer(unfold=False), signal=signal, **limits)
    return decoder.decode(text, encoding="json", now_unix_nano=NOW, **how)


def text_of(signal: str, items: str) -> bytes:
    """A request around the text of items."""
    name, rows = FRAMING[signal]
    return f'{{"resource{name}":[{{"resource":{{}},"scope{name}":[{{"scope":{{}},"{rows}":[{items}]}}]}}]}}'.encode()


def rows_of(signal: str, read: _core.OtlpRead) -> list[Any]:
    if read.batch is None:
        return []
    request = REQUESTS[signal].FromString(read.batch.to_block("none", topic=signal, block_id="b").payload("none"))
    if signal == "logs":
        return [row for one in request.resource_logs for scope in one.scope_logs for row in scope.log_records]
    if signal == "traces":
        return [row for one in request.resource_spans for scope in one.scope_spans for row in scope.spans]
    return [row for one in request.resource_metrics for scope in one.scope_metrics for row in scope.metrics]


def one_log(fields: dict[str, Any]) -> Any:
    known = {"timeUnixNano": str(NOW), "observedTimeUnixNano": str(NOW), "severityNumber": 9}
    read = read_json("logs", text_of("logs", json.dumps({**known, **fields})))
    assert read.rejected_items == 0, read.rejected[0].detail
    [row] = rows_of("logs", read)
    return row


@pytest.mark.parametrize("number", [str(NOW + 1), NOW + 1, f'"{NOW + 1}"'.strip('"')])
def test_a_64_bit_number_is_a_string_or_a_number(number: Any) -> None:
    assert one_log({"timeUnixNano": number}).time_unix_nano == NOW + 1


@pytest.mark.parametrize(
    ("written", "value"), [("-9223372036854775808", -(2**63)), (9223372036854775807, 2**63 - 1), ("1e3", 1000), (5.0, 5)]
)
def test_whole_numbers_are_exact_to_their_ends(written: Any, value: int) -> None:
    assert one_log({"body": {"intValue": written}}).body.int_value == value


@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_ids_are_hex_in_any_case(case: Any) -> None:
    row = one_log({"traceId": case("0a1b2c3d4e5f60718293a4b5c6d7e8f9"), "spanId": case("0a1b2c3d4e5f6071")})

    assert (row.trace_id.hex(), row.span_id.hex()) == ("0a1b2c3d4e5f60718293a4b5c6d7e8f9", "0a1b2c3d4e5f6071")


def test_an_empty_id_is_none() -> None:
    row = one_log({"traceId": "", "spanId": ""})

    assert (row.trace_id, row.span_id) == (b"", b"")


@pytest.mark.parametrize("written", [17, "17", "SEVERITY_NUMBER_ERROR"])
def test_an_enum_is_a_number_and_its_name_is_read_too(written: Any) -> None:
    assert one_log({"severityNumber": written}).severity_number == 17


@pytest.mark.parametrize("key", ["droppedAttributesCount", "dropped_attributes_count", "dropped\\u0041ttributesCount"])
def test_keys_are_camel_case_and_protobufs_own_names_are_read_too(key: str) -> None:
    [row] = rows_of("logs", read_json("logs", text_of("logs", f'{{"{key}":7}}')))

    assert row.dropped_attributes_count == 7


@pytest.mark.parametrize("written", ["-_8=", "+/8=", "-_8", "+/8"])
def test_bytes_are_base64_in_either_alphabet(written: str) -> None:
    assert one_log({"body": {"bytesValue": written}}).body.bytes_value == b"\xfb\xff"


@pytest.mark.parametrize(
    ("written", "shown"), [("NaN", "nan"), ("Infinity", "inf"), ("-Infinity", "-inf"), (1, "1.0"), ("2.5", "2.5"), (-0.0, "-0.0")]
)
def test_a_double_is_a_number_or_one_of_three_words(written: Any, shown: str) -> None:
    assert str(one_log({"body": {"doubleValue": written}}).body.double_value) == shown


def test_unknown_fields_are_ignored_whatever_they_hold() -> None:
    row = one_log({"fieldOfTomorrow": {"a": [1, {"b": None}], "c": "\\"}, "severityText": "INFO"})

    assert (row.severity_text, row.severity_number) == ("INFO", 9)


def test_null_means_absent() -> None:
    row = one_log({"severityText": None, "body": None, "attributes": None, "traceId": None, "flags": None})

    assert (row.severity_text, row.HasField("body"), len(row.attributes), row.trace_id) == ("", False, 0, b"")


def test_escapes_are_resolved() -> None:
    assert one_log({"body": {"stringValue": 'a"b\\c/\b\f\n\r\té😀'}}).body.string_value == 'a"b\\c/\b\f\n\r\té😀'


def test_half_a_surrogate_pair_becomes_the_replacement_character() -> None:
    [row] = rows_of("logs", read_json("logs", text_of("logs", '{"body":{"stringValue":"a\\ud83dz"}}')))

    assert row.body.string_value == "a\ufffdz"


def test_an_empty_string_is_a_value_in_a_oneof_and_absent_elsewhere() -> None:
    row = one_log({"severityText": "", "body": {"stringValue": ""}})

    assert row.body.HasField("string_value")
    assert b"\x1a" not in row.SerializeToString()


@pytest.mark.parametrize("signal", ["logs", "traces", "metrics"])
@pytest.mark.parametrize(
    "text", [b"{}", b' {"unknown":1} ', b"\xef\xbb\xbf{}", b'{"resourceLogs":null,"resourceSpans":[],"resourceMetrics":[{}]}']
)
def test_an_empty_request_in_json_is_read_and_holds_nothing(signal: str, text: bytes) -> None:
    read = read_json(signal, text)

    assert (read.batch, read.received) == (None, 0)


GOOD = {
    "logs": '{"body":{"stringValue":"good"}}',
    "traces": '{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","name":"good"}',
}


@pytest.mark.parametrize(
    ("signal", "bad", "seen_at", "detail"),
    [
        ("logs", '{"severityText":5}', "5", "severityText: a string should be here"),
        ("logs", '{"body":"text"}', '"text"', "body: an object should be here"),
        ("logs", '{"attributes":{}}', "{}", "attributes: a list should be here"),
        (
            "logs",
            '{"attributes":[{"key":"a"},{"key":"b","value":{"intValue":"x"}}]}',
            '"x"',
            "attributes[1].value.intValue: a signed number",
        ),
        ("logs", '{"attributes":[7]}', "7]", "attributes[0]: an object should be here"),
        ("logs", '{"timeUnixNano":"-1"}', '"-1"', "timeUnixNano: a whole number of 64 bits"),
        ("logs", '{"timeUnixNano":18446744073709551616}', "18446744073709551616", "timeUnixNano: a whole number"),
        ("logs", '{"flags":4294967296}', "4294967296", "flags: a whole number of 32 bits"),
        ("logs", '{"severityNumber":"LOUD"}', '"LOUD"', "severityNumber: the number of an enum"),
        ("logs", '{"traceId":"abc"}', "abc", "traceId: a trace id of 32 hex digits"),
        ("logs", '{"traceId":"zz02030405060708090a0b0c0d0e0f10"}', "zz02", "traceId: a trace id"),
        ("logs", '{"spanId":"01020304050607080910"}', "0102030405060708091", "spanId: a span id of 16 hex digits"),
        ("logs", '{"body":{"boolValue":"true"}}', '"true"', "body.boolValue: true or false"),
        ("logs", '{"body":{"bytesValue":"&&"}}', "&&", "body.bytesValue: a base64 string"),
        ("logs", '{"body":{"doubleValue":"inf"}}', '"inf"', "body.doubleValue: a number"),
        ("logs", "5", "5,", "an object should be here"),
        ("logs", "null", "null", "an object should be here"),
        ("traces", '{"spanId":"0102030405060708"}', '{"spanId":"0102030405060708"}', "trace_id is missing"),
        (
            "traces",
            '{"traceId":"00000000000000000000000000000000","spanId":"0102030405060708"}',
            '{"traceId":"0000',
            "trace_id is missing or all zero",
        ),
        ("traces", '{"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0000000000000000"}', None, "span_id is missing or all zero"),
        ("traces", '{"parentSpanId":"01"}', '01"}', "parentSpanId: a span id"),
        ("traces", '{"links":[{"traceId":"01"}]}', '01"}', "links[0].traceId: a trace id"),
        ("traces", '{"kind":[]}', "[]", "kind: the number of an enum"),
    ],
)
def test_an_item_of_a_wrong_type_is_set_aside_with_its_place_and_path(signal: str, bad: str, seen_at: str | None, detail: str) -> None:
    good = GOOD[signal]
    text = text_of(signal, f"{good},{bad},{good}")
    read = read_json(signal, text)

    assert (read.received, read.rejected_items, len(rows_of(signal, read))) == (3, 1, 2)
    [piece] = read.rejected
    assert (piece.kind, piece.data, piece.records) == ("entry_invalid", bad.encode(), 1)
    assert detail in piece.detail
    if "missing" not in detail:
        assert f"{FRAMING[signal][1]}[1]" in piece.detail
    if seen_at is not None:
        assert text[piece.offset :].startswith(seen_at.encode())


def test_a_string_that_is_not_utf_8_costs_its_record_only() -> None:
    good = GOOD["logs"].encode()
    text = text_of("logs", "@").replace(b"@", good + b',{"body":{"stringValue":"\xff"}},' + good)
    read = read_json("logs", text)

    assert (read.received, read.rejected_items) == (3, 1)
    assert "not UTF-8" in read.rejected[0].detail


def nested(levels: int) -> str:
    return '{"body":' + '{"arrayValue":{"values":[' * levels + '{"stringValue":"deep"}' + "]}}" * levels + "}"


def test_a_record_nested_deeper_than_parsers_allow_is_set_aside_whatever_its_depth() -> None:
    good = GOOD["logs"]
    read = read_json("logs", text_of("logs", ",".join([good, nested(60), nested(100_000), good])))

    assert (read.received, read.rejected_items) == (4, 2)
    assert all("nested too deep" in piece.detail for piece in read.rejected)


def test_a_value_in_json_is_kept_just_as_deep_as_in_protobuf() -> None:
    kept = {levels for levels in range(40, 60) if read_json("logs", text_of("logs", nested(levels))).batch is not None}
    written = {levels: text_of("logs", nested(levels)) for levels in kept}

    assert kept, "the limit lies lower"
    assert max(kept) < 59, "the limit lies higher"
    for levels, text in written.items():
        payload = read_json("logs", text).batch.to_block("none", topic="logs", block_id="b").payload("none")  # type: ignore[union-attr]
        ExportLogsServiceRequest.FromString(payload)
        assert _core.Batch.from_otlp(payload, signal="logs"), levels


POINT = '{"asInt":"1"}'


def gauge(points: str, more: str = "") -> str:
    return f'{{"name":"queue","gauge":{{"dataPoints":[{points}]{more}}}}}'


def test_a_data_point_of_a_wrong_type_costs_itself() -> None:
    read = read_json("metrics", text_of("metrics", gauge(f'{POINT},{{"asInt":"x"}},{POINT}') + "," + gauge(POINT)))

    assert (read.received, read.rejected_items) == (4, 1)
    assert read.batch is not None
    assert (len(read.batch), read.batch.record_count) == (2, 3)
    assert read.rejected[0].data == b'{"asInt":"x"}'
    assert "resourceMetrics[0].scopeMetrics[0].metrics[0].gauge.dataPoints[1].asInt" in read.rejected[0].detail


@pytest.mark.parametrize(
    "metric",
    [
        f'{{"name":5,"gauge":{{"dataPoints":[{POINT},{POINT}]}}}}',
        f'{{"gauge":{{"dataPoints":[{POINT},{POINT}]}},"unit":[]}}',
        f'{{"sum":{{"isMonotonic":"yes","dataPoints":[{POINT},{POINT}]}}}}',
        f'{{"sum":{{"dataPoints":[{POINT},{POINT}],"aggregationTemporality":{{}}}}}}',
    ],
)
def test_a_metric_of_a_wrong_type_is_set_aside_with_all_its_points(metric: str) -> None:
    read = read_json("metrics", text_of("metrics", metric + "," + gauge(POINT)))

    assert (read.received, read.rejected_items) == (3, 2)
    assert [(piece.data, piece.records) for piece in read.rejected] == [(metric.encode(), 2)]


def test_a_metric_whose_points_are_all_bad_is_left_out() -> None:
    read = read_json("metrics", text_of("metrics", gauge('{"asInt":"x"},5')))

    assert (read.received, read.rejected_items) == (2, 2)
    assert [piece.records for piece in read.rejected] == [1, 1]
    assert read.batch is None


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        (b"", 0),
        (b"   ", 3),
        (b"[]", 0),
        (b"{", 1),
        (b'{"resourceLogs"', 15),
        (b'{"resourceLogs":[}', 17),
        (b'{"resourceLogs":[{}]', 20),
        (b'{"resourceLogs":[{}]}x', 21),
        (b'{"resourceLogs":{}}', 16),
        (b'{"resourceLogs":[5]}', 17),
        (b'{"resourceLogs":[{"resource":7}]}', 29),
        (b'{"resourceLogs":[{"schemaUrl":7}]}', 30),
        (b'{"resourceLogs":[{"scopeLogs":[{"scope":{"name":7}}]}]}', 48),
        (b'{"resourceLogs":[{"scopeLogs":[{"logRecords":7}]}]}', 45),
        (b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"open}}]}]}]}', 82),
        (b'{"a":01}', 7),
        (b'{"a":"\\x"}', 6),
        (b'{"a":"\x01"}', 6),
        (b'{"a":nul}', 5),
        (b"{'a':1}", 1),
        (b'{"a":1,}', 7),
        (b'{"a":NaN}', 5),
    ],
)
def test_json_that_cannot_be_followed_is_refused_at_its_offset(text: bytes, offset: int) -> None:
    with pytest.raises(_core.CoreError) as caught:
        read_json("logs", text)
    assert (caught.value.kind, caught.value.offset) == ("body_invalid", offset)


def test_the_path_of_what_cannot_be_followed_is_named() -> None:
    with pytest.raises(_core.CoreError, match=r"resourceLogs\[0\]\.scopeLogs\[1\]\.logRecords\[0\]\.body: "):
        read_json("logs", b'{"resourceLogs":[{"scopeLogs":[{},{"logRecords":[{"body":}]}]}]}')


def test_numbers_that_take_more_room_than_their_text_stop_at_the_limit() -> None:
    bounds = ",".join("1" * 1 for _ in range(100_000))
    metric = f'{{"histogram":{{"dataPoints":[{{"explicitBounds":[{bounds}]}}]}}}}'
    text = text_of("metrics", metric)
    assert len(text) < 300_000

    with pytest.raises(_core.CoreError) as caught:
        read_json("metrics", text, max_inflated_bytes=300_000)
    assert caught.value.kind == "too_large"
