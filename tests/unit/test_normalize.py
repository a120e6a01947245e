"""What a record means: the standard schema in all its spellings becomes one OTLP row. Read back with the official classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from emp_pipe._core import ForwardDecoder, ForwardRead, Normalizer
from tests.support.forward import event_time
from tests.support.otlp_rows import plain, plain_attributes

NOW = 1_800_000_000 * 10**9
ENTRY_TIME_S = 1_700_000_000
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"


@dataclass(frozen=True)
class Row:
    log: LogRecord
    resource: dict[str, Any]
    scope: dict[str, Any]

    @property
    def attributes(self) -> dict[str, Any]:
        return plain_attributes(self.log.attributes)

    @property
    def body(self) -> Any:
        return plain(self.log.body)


def rows_of(read: ForwardRead) -> list[Row]:
    assert (read.rejected, read.fatal) == ([], None)
    assert read.batch is not None
    request = ExportLogsServiceRequest.FromString(read.batch.to_block("none", topic="logs", block_id="b").payload("none"))
    return [
        Row(log, plain_attributes(resource.resource.attributes), plain_attributes(scope.scope.attributes))
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for log in scope.log_records
    ]


def feed(frame: bytes, normalizer: Normalizer | None = None) -> list[Row]:
    return rows_of(ForwardDecoder(normalizer or Normalizer()).feed(frame, NOW))


def row_of(record: Any, normalizer: Normalizer | None = None, *, meta: Any = ENTRY_TIME_S) -> Row:
    [row] = feed(msgpack.packb(["app.web", [[meta, record]]]), normalizer)
    return row


@pytest.mark.parametrize("key", ["timestamp", "@timestamp", "time", "ts"])
@pytest.mark.parametrize(
    ("value", "time_unix_nano"),
    [
        ("2024-02-29T12:34:56.789Z", 1_709_210_096_789_000_000),
        ("2024-02-29T14:34:56.789+02:00", 1_709_210_096_789_000_000),
        ("2024-02-29 12:34:56,789", 1_709_210_096_789_000_000),
        (1_709_210_096, 1_709_210_096_000_000_000),
        (1_709_210_096_789, 1_709_210_096_789_000_000),
        (1_709_210_096_789_001, 1_709_210_096_789_001_000),
        (1_709_210_096_789_001_002, 1_709_210_096_789_001_002),
        (1_709_210_096.5, 1_709_210_096_500_000_000),
        ("1709210096789", 1_709_210_096_789_000_000),
    ],
)
def test_a_time_in_any_form_is_the_rows_time(key: str, value: Any, time_unix_nano: int) -> None:
    row = row_of({key: value})
    assert (row.log.time_unix_nano, row.log.observed_time_unix_nano, row.attributes) == (time_unix_nano, NOW, {})


@pytest.mark.parametrize("value", ["soon", "2024-13-01T00:00:00Z", 0.25, None, {"a": 1}, -5])
def test_an_unusable_time_stays_as_an_attribute_and_the_entrys_time_holds(value: Any) -> None:
    row = row_of({"timestamp": value})
    assert (row.log.time_unix_nano, row.attributes) == (ENTRY_TIME_S * 10**9, {"timestamp": value})


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("info", 9),
        ("INFO", 9),
        ("Warning", 13),
        ("silly", 1),
        ("crit", 18),
        ("CRITICAL", 21),
        ("emerg", 21),
        ("E", 17),
        (30, 9),
        (60, 21),
        (3, 17),
        ("50", 17),
        ("http", 8),
        ("notice", 10),
        ("made up", 0),
    ],
)
@pytest.mark.parametrize("key", ["level", "severity", "lvl", "levelname"])
def test_a_level_in_any_form_is_the_severity_and_its_text_is_kept(key: str, value: Any, number: int) -> None:
    row = row_of({key: value})
    assert (row.log.severity_number, row.log.severity_text, row.attributes) == (number, str(value), {})


@pytest.mark.parametrize("key", ["message", "msg", "log"])
def test_the_message_is_the_body(key: str) -> None:
    assert row_of({key: "hello"}).body == "hello"
    assert row_of({key: {"a": [1, True]}}).body == {"a": [1, True]}


def test_hex_ids_are_the_otlp_fields_and_others_stay_attributes() -> None:
    row = row_of({"trace_id": TRACE_ID.upper(), "span_id": SPAN_ID})
    assert (row.log.trace_id.hex(), row.log.span_id.hex(), row.attributes) == (TRACE_ID, SPAN_ID, {})
    row = row_of({"traceId": "trace_1712345678901_ab12cd", "spanId": "0" * 16})
    assert (row.log.trace_id, row.log.span_id) == (b"", b"")
    assert row.attributes == {"trace_id": "trace_1712345678901_ab12cd", "span_id": "0" * 16}


def test_a_traceparent_fills_absent_ids_and_is_kept() -> None:
    header = f"00-{TRACE_ID}-{SPAN_ID}-01"
    row = row_of({"traceparent": header})
    assert (row.log.trace_id.hex(), row.log.span_id.hex(), row.attributes) == (TRACE_ID, SPAN_ID, {"traceparent": header})
    assert row_of({"traceparent": header, "trace_id": "ab" * 16}).log.trace_id.hex() == "ab" * 16


@pytest.mark.parametrize("worker_id", ["worker-001", "railway-abc123-worker-001"])
def test_identity_goes_to_the_resource_with_what_follows_from_it(worker_id: str) -> None:
    row = row_of({"machineId": "railway-abc123", "worker_id": worker_id, "service_type": "comfyui"})
    assert row.attributes == {}
    assert row.resource == {
        "machine_id": "railway-abc123",
        "worker_id": worker_id,
        "service_type": "comfyui",
        "service.name": "comfyui",
        "host.name": "railway-abc123",
        "service.instance.id": "machine-railway-abc123.worker-001",
    }


def test_a_service_and_a_host_of_the_records_own_are_not_derived() -> None:
    row = row_of({"service": "api", "hostname": "box", "machine_id": "m", "service_type": "webhook"})
    assert (row.resource["service.name"], row.resource["host.name"]) == ("api", "box")


def test_the_stamp_fills_what_a_resource_lacks_and_overwrites_nothing() -> None:
    normalizer = Normalizer(stamp={"machine_id": "gpu-1", "host.name": "box", "region": "eu"})
    here = {"machine_id": "gpu-1", "host.name": "box", "region": "eu", "service.instance.id": "machine-gpu-1"}
    assert row_of({}, normalizer).resource == here
    elsewhere = {"machine_id": "gpu-2", "host.name": "gpu-2", "region": "eu", "service.instance.id": "machine-gpu-2"}
    assert row_of({"machine_id": "gpu-2"}, normalizer).resource == elsewhere


def test_past_the_limit_of_resources_identity_stays_on_the_record_and_is_counted() -> None:
    entries = [[ENTRY_TIME_S, {"machine_id": f"m{number}", "n": number}] for number in range(10)]
    read = ForwardDecoder(Normalizer(max_resources=4)).feed(msgpack.packb(["app", entries]), NOW)
    rows = sorted(rows_of(read), key=lambda row: row.attributes["n"])
    assert [row.resource.get("machine_id") or row.attributes["machine_id"] for row in rows] == [f"m{number}" for number in range(10)]
    assert read.batch is not None
    assert (read.batch.resource_count, read.resources_over_limit) == (4, 7)


@pytest.mark.parametrize(
    ("record", "attributes"),
    [
        ({"jobId": "j", "eventType": "job_started", "queuePosition": 3}, {"job_id": "j", "event_type": "job_started", "queue_position": 3}),
        ({"duration": 5}, {"duration_ms": 5}),
        ({"duration": "5 s"}, {"duration": "5 s"}),
        ({"duration": 5, "duration_ms": 7}, {"duration": 5, "duration_ms": 7}),
        ({"duration_ms": 7, "duration": 5}, {"duration": 5, "duration_ms": 7}),
        ({"jobId": "a", "jobID": "b", "job_id": "c"}, {"jobId": "a", "jobID": "b", "job_id": "c"}),
        ({"stack": "at x"}, {"exception.stacktrace": "at x"}),
        ({"error": "boom"}, {"error": "boom"}),
        (
            {"err": {"message": "boom", "stack": "at x", "name": "TypeError", "code": 7}},
            {"exception.message": "boom", "exception.stacktrace": "at x", "exception.type": "TypeError", "error.code": 7},
        ),
        ({"message": "m", "msg": "other"}, {"msg": "other"}),
        ({"level": "info", "severity": "high"}, {"severity": "high"}),
    ],
)
def test_other_spellings_get_the_canonical_name_unless_that_is_taken(record: Any, attributes: Any) -> None:
    assert row_of(record).attributes == attributes


def test_a_users_alias_counts_like_the_schemas_own() -> None:
    normalizer = Normalizer(aliases={"gpuBox": "machine_id", "took": "duration_ms", "shop": "shop.id"})
    row = row_of({"gpuBox": "gpu-9", "took": 4, "shop": 1}, normalizer)
    assert (row.resource["machine_id"], row.attributes) == ("gpu-9", {"duration_ms": 4, "shop.id": 1})


def test_an_error_and_an_event_are_flagged() -> None:
    entries = [[ENTRY_TIME_S, {"level": "error"}], [ENTRY_TIME_S, {"event_type": "job_failed"}], [ENTRY_TIME_S, {"eventType": 7}]]
    read = ForwardDecoder(Normalizer()).feed(msgpack.packb(["app", entries]), NOW)
    assert read.batch is not None
    assert (read.batch.error_count, read.batch.event_count) == (1, 1)


def test_values_of_every_type_and_the_order_of_attributes_are_kept() -> None:
    record = {
        "z": 1,
        "a": -1,
        "float": 0.5,
        "true": True,
        "nil": None,
        "bytes": b"\0\xff",
        "map": {"b": {"c": [1, "x", [2.5, None]]}, "a": 1},
        "large": "x" * 70_000,
        "ü": "é",
    }
    row = row_of(record)
    assert list(row.attributes.items()) == list(record.items())


def test_what_otlp_cannot_say_becomes_text() -> None:
    record = {
        "big": 2**64 - 1,
        "keys": {1: "int", None: "nil", False: "bool", (1, 2): "list"},
        7: "own",
        "when": event_time(1_700_000_000, 5),
    }
    assert row_of(record).attributes == {
        "big": "18446744073709551615",
        "keys": {"1": "int", "null": "nil", "false": "bool", "[1,2]": "list"},
        "7": "own",
        "when": "2023-11-14T22:13:20.000000005Z",
    }


def test_text_that_is_not_utf_8_is_repaired() -> None:
    frame = b"\x93\xa3app\x01\x83" + b"\xa3bad\xa2a\xff" + b"\xa7message\xa1\xfe" + b"\xa2\xffk\x81\xa1\xc3\xa2\xe2\x82"
    [row] = feed(frame)
    assert row.body == "\ufffd"
    assert row.attributes == {"bad": "a\ufffd", "\ufffdk": {"\ufffd": "\ufffd"}}


def test_of_a_key_that_occurs_twice_the_last_one_counts() -> None:
    [row] = feed(b"\x93\xa3app\x01\x84" + b"\xa1a\x01" + b"\xa1b\x02" + b"\xa1a\x03" + b"\xa1m\x82\xa1x\x01\xa1x\x02")
    assert row.attributes == {"a": 3, "b": 2, "m": {"x": 2}}


def test_a_json_object_in_the_message_is_unfolded_and_the_records_own_keys_win() -> None:
    inner = {"level": "warn", "msg": "inner", "jobId": "j", "stream": "other", "same": 1, "time": "2024-02-29T12:34:56Z"}
    row = row_of({"log": json.dumps(inner), "stream": "stdout", "same": 1})
    assert (row.body, row.log.severity_number, row.log.time_unix_nano) == ("inner", 13, 1_709_210_096_000_000_000)
    assert row.attributes == {"stream": "stdout", "same": 1, "job_id": "j", "log.stream": "other"}


def test_an_unfolded_object_without_a_message_leaves_the_text_as_the_body() -> None:
    text = '{"a": 1}'
    row = row_of({"message": text})
    assert (row.body, row.attributes) == (text, {"a": 1})


def test_logfmt_is_unfolded_where_all_of_the_message_is_logfmt() -> None:
    row = row_of({"message": 'level=error msg="it broke" took=5 id=007'})
    assert (row.body, row.log.severity_number, row.attributes) == ("it broke", 17, {"took": 5, "id": "007"})
    for text in ("x = 1, y = 2", "took=5", "see http://x/?a=b for c=d"):
        assert (row_of({"message": text}).body, row_of({"message": text}).attributes) == (text, {})


def test_unfolding_can_be_switched_off() -> None:
    text = '{"level": "warn"}'
    row = row_of({"message": text}, Normalizer(unfold=False))
    assert (row.body, row.log.severity_number, row.attributes) == (text, 0, {})


def test_the_tag_is_an_attribute_of_the_scope() -> None:
    assert row_of({}).scope == {"fluent.tag": "app.web"}


@pytest.mark.parametrize("meta", [0, None, 0.0, event_time(0)])
def test_a_time_of_zero_or_nil_means_now(meta: Any) -> None:
    assert row_of({}, meta=meta).log.time_unix_nano == NOW


@pytest.mark.parametrize(
    ("meta", "time_unix_nano"),
    [
        (event_time(ENTRY_TIME_S, 5), ENTRY_TIME_S * 10**9 + 5),
        (msgpack.ExtType(0, event_time(1, 2).data), 10**9 + 2),
        (1.5, 1_500_000_000),
        (1_709_210_096_789, 1_709_210_096_789_000_000),
        (event_time(2**32 - 1, 1), (2**32 - 1) * 10**9 + 1),
        ([event_time(3), {}], 3 * 10**9),
    ],
)
def test_an_entrys_time_is_read_in_all_its_forms(meta: Any, time_unix_nano: int) -> None:
    assert row_of({}, meta=meta).log.time_unix_nano == time_unix_nano


@pytest.mark.parametrize(
    "meta", [-1, 2**63, 10**10, float("nan"), float("inf"), -0.5, "text", {}, [1], [1, {}, 3], msgpack.ExtType(5, b"x")]
)
def test_an_entry_whose_time_cannot_be_is_rejected_with_its_bytes_and_its_neighbours_stay(meta: Any) -> None:
    bad = msgpack.packb([meta, {"a": 1}])
    good = msgpack.packb([1, {"a": 2}])
    read = ForwardDecoder(Normalizer()).feed(msgpack.packb(["app", good + bad + good, {"chunk": "c"}]), NOW)
    assert read.batch is not None
    [rejected] = read.rejected
    assert (len(read.batch), rejected.kind, rejected.data, read.received) == (2, "entry_invalid", bad, 3)
    assert [chunk.id for chunk in read.chunks] == [b"c"]


def test_the_group_markers_of_fluent_bit_give_their_entries_resource_and_scope() -> None:
    group = {
        "resource": {"attributes": {"service.name": "api", "machine_id": "gpu-7"}},
        "scope": {"name": "lib", "version": "1", "attributes": {"k": "v"}},
    }
    entries = [
        [[event_time(2**32 - 1), {"schema": "otlp", "resource_id": 0, "scope_id": 0}], group],
        [[event_time(5), {}], {"log": "inside", "machine_id": "other", "worker_id": "w"}],
        [[event_time(2**32 - 2), {}], {}],
        [[event_time(6), {}], {"log": "outside"}],
    ]
    inside, outside = feed(msgpack.packb(["app", entries]))
    assert (inside.body, outside.body) == ("inside", "outside")
    assert (inside.resource["service.name"], inside.resource["machine_id"], inside.resource["worker_id"]) == ("api", "gpu-7", "w")
    assert inside.attributes == {"machine_id": "other"}, "what the resource has is not lifted over it, nor lost"
    assert (inside.scope, outside.scope, outside.resource) == ({"k": "v", "fluent.tag": "app"}, {"fluent.tag": "app"}, {})


def test_the_otlp_metadata_of_fluent_bit_becomes_what_it_was() -> None:
    otlp: Mapping[str, Any] = {
        "observed_timestamp": 123,
        "severity_number": 18,
        "severity_text": "ERR2",
        "trace_id": bytes.fromhex(TRACE_ID),
        "span_id": bytes.fromhex(SPAN_ID),
        "trace_flags": 1,
        "attributes": {"jobId": "verbatim", "machine_id": "stays", "n": 1},
    }
    row = row_of({"log": "text", "n": 2}, meta=[event_time(5), {"otlp": otlp}])
    assert (row.body, row.log.severity_number, row.log.severity_text, row.log.flags) == ("text", 18, "ERR2", 1)
    assert (row.log.observed_time_unix_nano, row.log.trace_id.hex(), row.log.span_id.hex()) == (123, TRACE_ID, SPAN_ID)
    assert row.attributes == {"n": 2, "n_": 1, "jobId": "verbatim", "machine_id": "stays"}


def test_other_metadata_is_kept_as_one_attribute() -> None:
    row = row_of({"a": 1}, meta=[event_time(5), {"kept": {"x": 1}}])
    assert row.attributes == {"a": 1, "fluent.metadata": {"kept": {"x": 1}}}


def test_times_are_corrected_from_the_next_read_on_and_the_age_is_that_before() -> None:
    decoder = ForwardDecoder(Normalizer())
    frame = msgpack.packb(["app", [[event_time(ENTRY_TIME_S), {}], [0, {}], [event_time(ENTRY_TIME_S - 7), {}]]])
    read = decoder.feed(frame, NOW)
    assert read.min_age_ns == NOW - ENTRY_TIME_S * 10**9
    decoder.set_time_correction_ns(-250)
    read = decoder.feed(frame, NOW)
    assert read.min_age_ns == NOW - ENTRY_TIME_S * 10**9
    assert sorted(row.log.time_unix_nano for row in rows_of(read)) == [(ENTRY_TIME_S - 7) * 10**9 - 250, ENTRY_TIME_S * 10**9 - 250, NOW]


def test_json_mode_takes_messages_and_bare_objects() -> None:
    stream = b'["app", [[1700000000, {"message": "a"}], [1700000001.5, {"message": "b"}]]]\n'
    stream += b'{"message": "c", "n": 1e3}["app", 1, {"message": "d"}]'
    rows = feed(stream)
    assert sorted(row.body for row in rows) == ["a", "b", "c", "d"]
    [c] = [row for row in rows if row.body == "c"]
    assert (c.log.time_unix_nano, c.scope, c.attributes) == (NOW, {}, {"n": 1000.0})


def test_a_record_of_ten_megabytes_is_a_row() -> None:
    row = row_of({"blob": "x" * 10_000_000, "list": list(range(100_000))})
    assert (len(row.attributes["blob"]), row.attributes["list"][-1]) == (10_000_000, 99_999)


def test_nesting_past_the_limit_costs_that_entry_alone() -> None:
    entry = b"\x92\x01\x81\xa1a" + b"\x91" * 100_000 + b"\x01"
    good = msgpack.packb([1, {"a": 2}])
    read = ForwardDecoder(Normalizer()).feed(msgpack.packb(["app", good + entry + good]), NOW)
    assert read.batch is not None
    assert (len(read.batch), [(bad.kind, bad.detail) for bad in read.rejected]) == (2, [("entry_invalid", "nested deeper than the limit")])
