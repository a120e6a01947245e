"""Promises of OTLP in: log records follow the rules of all others, what OTLP says in its own fields goes first, and nothing is lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from emp_pipe._core import Normalizer, OtlpDecoder, OtlpRead
from tests.support.otlp_rows import any_value, attributes, plain, plain_attributes

NOW = 1_800_000_000_000_000_000
TIME = 1_799_999_990_000_000_001
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
UNKNOWN = b"\xc2\x3e\x03new"  # field 1000


def log(attrs: Mapping[str, Any] | None = None, **fields: Any) -> LogRecord:
    known: dict[str, Any] = {"time_unix_nano": TIME, "observed_time_unix_nano": TIME, "severity_number": 9, "body": any_value("text")}
    return LogRecord(attributes=attributes(attrs or {}), **{**known, **fields})


def read(rows: list[LogRecord], resource: Mapping[str, Any] | None = None, **rules: Any) -> OtlpRead:
    of_resource = ResourceLogs(resource=Resource(attributes=attributes(resource or {})), scope_logs=[ScopeLogs(log_records=rows)])
    data = ExportLogsServiceRequest(resource_logs=[of_resource]).SerializeToString()
    return OtlpDecoder(Normalizer(**rules), signal="logs").decode(data, now_unix_nano=NOW)


def rows_of(one: OtlpRead) -> list[tuple[LogRecord, dict[str, Any]]]:
    assert (one.rejected, one.batch is None) == ([], False)
    request = ExportLogsServiceRequest.FromString(one.batch.to_block("none", topic="logs", block_id="b").payload("none"))  # type: ignore[union-attr]
    return [
        (row, plain_attributes(resource.resource.attributes))
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for row in scope.log_records
    ]


def row_of(row: LogRecord, resource: Mapping[str, Any] | None = None, **rules: Any) -> tuple[LogRecord, dict[str, Any]]:
    [one] = rows_of(read([row], resource, **rules))
    return one


@pytest.mark.parametrize(
    "row",
    [
        log(),
        log({"http.method": "GET", "code.lineno": 7, "job_id": "j", "event_type": "e", "duration_ms": 2.5, "error": "boom"}),
        log(severity_text="INFO", trace_id=bytes.fromhex(TRACE_ID), span_id=bytes.fromhex(SPAN_ID), flags=1, event_name="e"),
        log(body=any_value({"a": 1, "message": 2})),
        log(body=any_value(["message"])),
        log(body=any_value("{not json}")),
        log(body=any_value("a=b is not logfmt")),
        log({"level": "warn", "message": "other", "timestamp": 5}),
        log({"trace_id": "x"}, trace_id=bytes.fromhex(TRACE_ID)),
    ],
)
def test_a_record_with_nothing_to_normalise_stays_byte_for_byte(row: LogRecord) -> None:
    row.MergeFromString(UNKNOWN)
    one = read([row])
    assert one.batch is not None

    assert row.SerializeToString() in one.batch.to_block("none", topic="logs", block_id="b").payload("none")


def test_what_has_no_part_in_the_rules_survives_a_record_that_they_change() -> None:
    row = log({"jobId": "j", "list": [1, {"a": b"\x00"}], "none": None}, flags=257, event_name="e", dropped_attributes_count=3)
    row.MergeFromString(UNKNOWN)
    got, _ = row_of(row)

    assert (got.flags, got.event_name, got.dropped_attributes_count) == (257, "e", 3)
    assert UNKNOWN in got.SerializeToString()
    assert plain_attributes(got.attributes) == {"job_id": "j", "list": [1, {"a": b"\x00"}], "none": None}
    assert (got.time_unix_nano, got.observed_time_unix_nano, got.severity_number, plain(got.body)) == (TIME, TIME, 9, "text")


@pytest.mark.parametrize(("text", "number"), [("INFO", 9), ("warning", 13), ("50", 17), ("Error", 17), ("loud", 0)])
def test_a_missing_severity_number_comes_from_the_severity_text_which_is_kept(text: str, number: int) -> None:
    row, _ = row_of(log(severity_number=0, severity_text=text))

    assert (row.severity_number, row.severity_text) == (number, text)


def test_a_missing_severity_comes_from_a_level_attribute() -> None:
    row, _ = row_of(log({"level": "warn"}, severity_number=0))
    assert (row.severity_number, row.severity_text, len(row.attributes)) == (13, "warn", 0)

    kept, _ = row_of(log({"level": "warn"}, severity_number=0, severity_text="ERROR"))
    assert (kept.severity_number, kept.severity_text, plain_attributes(kept.attributes)) == (17, "ERROR", {"level": "warn"})


def test_ids_in_attributes_fill_absent_fields_only() -> None:
    attrs = {"traceId": TRACE_ID, "spanId": SPAN_ID}
    filled, _ = row_of(log(attrs))
    assert (filled.trace_id.hex(), filled.span_id.hex(), len(filled.attributes)) == (TRACE_ID, SPAN_ID, 0)

    zeros, _ = row_of(log(attrs, trace_id=bytes(16), span_id=bytes(8)))
    assert (zeros.trace_id.hex(), zeros.span_id.hex()) == (TRACE_ID, SPAN_ID)

    own, _ = row_of(log(attrs, trace_id=bytes(range(16)), span_id=bytes(range(8))))
    assert (own.trace_id, own.span_id, plain_attributes(own.attributes)) == (bytes(range(16)), bytes(range(8)), attrs)


def test_a_message_attribute_is_the_body_where_there_is_none() -> None:
    row = log({"message": "from the attribute"})
    row.ClearField("body")
    got, _ = row_of(row)

    assert (plain(got.body), len(got.attributes)) == ("from the attribute", 0)


@pytest.mark.parametrize(
    ("time", "observed", "expected"),
    [(0, TIME, (TIME, TIME)), (0, 0, (NOW, NOW)), (TIME, 0, (TIME, NOW)), (TIME, TIME + 1, (TIME, TIME + 1))],
)
@pytest.mark.parametrize("attrs", [{}, {"jobId": "j"}], ids=["otherwise usual", "changed by the rules"])
def test_a_time_of_zero_is_the_observed_one_and_that_is_now(attrs: Any, time: int, observed: int, expected: tuple[int, int]) -> None:
    one = read([log(attrs, time_unix_nano=time, observed_time_unix_nano=observed)])
    [(row, _)] = rows_of(one)

    assert (row.time_unix_nano, row.observed_time_unix_nano) == expected
    assert one.batch is not None
    block = one.batch.to_block("none", topic="logs", block_id="b")
    assert block.min_time_unix_nano == block.decode().to_block("none", topic="logs", block_id="b").min_time_unix_nano == expected[0]


def test_a_time_attribute_fills_an_absent_time_only() -> None:
    filled, _ = row_of(log({"timestamp": "2027-01-15T08:00:00Z"}, time_unix_nano=0))
    assert (filled.time_unix_nano, len(filled.attributes)) == (NOW, 0)

    own, _ = row_of(log({"timestamp": "2027-01-15T08:00:00Z"}))
    assert (own.time_unix_nano, len(own.attributes)) == (TIME, 1)


def test_identity_is_lifted_to_the_resource_where_that_lacks_it_and_stays_where_not() -> None:
    attrs = {"machine_id": "gpu-1", "worker_id": "gpu-1-0", "service": "own"}
    row, resource = row_of(log(attrs), {"service.name": "sdk", "telemetry.sdk.name": "opentelemetry"})

    assert plain_attributes(row.attributes) == {"service": "own"}
    assert resource == {
        "service.name": "sdk",
        "telemetry.sdk.name": "opentelemetry",
        "machine_id": "gpu-1",
        "worker_id": "gpu-1-0",
        "host.name": "gpu-1",
        "service.instance.id": "machine-gpu-1.0",
    }


def test_records_of_one_resource_share_it_also_after_one_whose_identity_was_lifted() -> None:
    one = read([log(), log({"machine_id": "m"}), log(), log({"jobId": "j"}), log({"machine_id": "m"})], {"service.name": "api"})
    machines = [resource.get("machine_id") for _, resource in rows_of(one)]

    assert sorted(machines, key=str) == [None, None, None, "m", "m"]
    assert one.batch is not None
    assert one.batch.resource_count == 2


def test_a_resource_and_what_encloses_it_keep_their_schema_and_unknown_fields_when_identity_is_lifted_onto_it() -> None:
    of_resource = ResourceLogs(schema_url="url", scope_logs=[ScopeLogs(log_records=[log({"machine_id": "m"})], schema_url="scope url")])
    of_resource.resource.dropped_attributes_count = 4
    of_resource.resource.MergeFromString(UNKNOWN)
    of_resource.MergeFromString(UNKNOWN)
    data = ExportLogsServiceRequest(resource_logs=[of_resource]).SerializeToString()
    one = OtlpDecoder(Normalizer(), signal="logs").decode(data, now_unix_nano=NOW)
    assert one.batch is not None
    [got] = ExportLogsServiceRequest.FromString(one.batch.to_block("none", topic="logs", block_id="b").payload("none")).resource_logs

    assert (got.schema_url, got.scope_logs[0].schema_url, got.resource.dropped_attributes_count) == ("url", "scope url", 4)
    assert UNKNOWN in got.resource.SerializeToString()
    assert got.SerializeToString().count(UNKNOWN) == 2
    assert plain_attributes(got.resource.attributes)["machine_id"] == "m"


def test_past_the_limit_of_resources_identity_stays_on_the_record_and_is_counted() -> None:
    one = read([log({"machine_id": f"m-{number}"}) for number in range(10)], max_resources=4)
    rows = rows_of(one)

    on_record = [row for row, _ in rows if row.attributes]
    assert one.resources_over_limit == len(on_record) == 8
    assert {plain_attributes(row.attributes)["machine_id"] for row in on_record} == {f"m-{number}" for number in range(2, 10)}
    assert one.batch is not None
    assert one.batch.resource_count <= 4


def test_the_resources_of_a_sender_are_all_kept_however_many_they_are() -> None:
    requests = [
        ResourceLogs(resource=Resource(attributes=attributes({"n": n})), scope_logs=[ScopeLogs(log_records=[log()])]) for n in range(1500)
    ]
    data = ExportLogsServiceRequest(resource_logs=requests).SerializeToString()
    one = OtlpDecoder(Normalizer(), signal="logs").decode(data, now_unix_nano=NOW)

    assert [resource["n"] for _, resource in rows_of(one)] == list(range(1500))


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_identity_of_spans_and_points_is_never_lifted(signal: Any) -> None:
    data: Any
    if signal == "traces":
        data = ExportTraceServiceRequest()
        row = data.resource_spans.add().scope_spans.add().spans.add(trace_id=bytes(range(16)), span_id=bytes(range(8)))
    else:
        data = ExportMetricsServiceRequest()
        row = data.resource_metrics.add().scope_metrics.add().metrics.add(name="m").gauge.data_points.add(as_int=1)
    row.attributes.extend(attributes({"machine_id": "m", "jobId": "j", "level": "warn", "message": '{"a":1}'}))
    one = OtlpDecoder(Normalizer(), signal=signal).decode(data.SerializeToString(), now_unix_nano=NOW)
    assert one.batch is not None

    assert row.SerializeToString() in one.batch.to_block("none", topic=signal, block_id="b").payload("none")
    assert one.batch.resource_count == 1


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ({}, {"machine_id": "edge-1", "host.name": "edge-1.local", "service.instance.id": "machine-edge-1"}),
        ({"service.instance.id": "own"}, {"machine_id": "edge-1", "host.name": "edge-1.local", "service.instance.id": "own"}),
        (
            {"worker_id": "edge-1-3"},
            {"worker_id": "edge-1-3", "machine_id": "edge-1", "host.name": "edge-1.local", "service.instance.id": "machine-edge-1.3"},
        ),
        (
            {"machine_id": "other"},
            {"machine_id": "other", "host.name": "other", "service.instance.id": "machine-other"},
        ),
        ({"machine_id": 7, "host.name": "h"}, {"machine_id": 7, "host.name": "h"}),
        (
            {"service_type": "comfyui"},
            {
                "service_type": "comfyui",
                "service.name": "comfyui",
                "machine_id": "edge-1",
                "host.name": "edge-1.local",
                "service.instance.id": "machine-edge-1",
            },
        ),
    ],
)
def test_an_edge_stamps_what_a_resource_lacks_and_derives_its_instance(resource: Any, expected: Any) -> None:
    _, got = row_of(log(), resource, stamp={"machine_id": "edge-1", "host.name": "edge-1.local"})

    assert got == expected


def test_a_central_stamps_nothing() -> None:
    _, got = row_of(log(), {"service.name": "api"})

    assert got == {"service.name": "api"}


@pytest.mark.parametrize(
    "body", ['{"message":"inner","level":"warn","machine_id":"m","n":1}', {"message": "inner", "level": "warn", "machine_id": "m", "n": 1}]
)
def test_a_fleet_record_in_the_body_is_unfolded(body: Any) -> None:
    row, resource = row_of(log(severity_number=0, body=any_value(body)))
    assert (plain(row.body), row.severity_number, plain_attributes(row.attributes)) == ("inner", 13, {"n": 1})
    assert resource["machine_id"] == "m"

    own, _ = row_of(log({"n": 2}, severity_text="ERROR", severity_number=17, body=any_value(body)))
    assert (own.severity_text, plain_attributes(own.attributes)) == ("ERROR", {"n": 2, "message.n": 1, "level": "warn"})


@pytest.mark.parametrize("body", ['{"message":"inner"}', {"message": "inner"}])
def test_unfolding_can_be_switched_off(body: Any) -> None:
    row, _ = row_of(log(body=any_value(body)), unfold=False)

    assert plain(row.body) == body


def test_a_message_in_the_body_does_not_displace_an_attribute_of_that_name() -> None:
    row, _ = row_of(log({"message": "attribute"}, body=any_value('{"message":"inner","a":1}')))

    assert (plain(row.body), plain_attributes(row.attributes)) == ("inner", {"message": "attribute", "a": 1})


def test_events_are_flagged_by_type_and_by_name() -> None:
    one = read([log(), log({"eventType": "a"}), log({"event_type": "a"}), log(event_name="b"), log({"jobId": "j"}, event_name="b")])

    assert one.batch is not None
    assert one.batch.event_count == 4


@pytest.mark.parametrize(
    ("attrs", "job"),
    [
        ({"job_id": "job-1"}, "job-1"),
        ({"jobId": "job-1"}, "job-1"),
        ({"baggage.job_id": "job-1"}, "job-1"),
        ({"jobId": "other", "job_id": "job-1", "baggage.job_id": "other"}, "job-1"),
    ],
)
def test_the_job_of_a_span_is_a_column_and_its_bytes_stay(attrs: dict[str, str], job: str) -> None:
    data = ExportTraceServiceRequest()
    span = data.resource_spans.add().scope_spans.add().spans.add(trace_id=bytes(range(16)), span_id=bytes(range(8)))
    span.attributes.extend(attributes(attrs))
    one = OtlpDecoder(Normalizer(), signal="traces").decode(data.SerializeToString(), now_unix_nano=NOW)
    assert one.batch is not None
    block = one.batch.to_block("none", topic="traces", block_id="b")

    assert span.SerializeToString() in block.payload("none")
    for batch in (one.batch, block.decode()):
        assert pa.record_batch(batch.to_arrow(["job_id"])).to_pylist() == [{"job_id": job}]


def test_of_a_key_that_occurs_twice_the_last_one_counts_in_a_record_that_is_changed() -> None:
    row = log({"a": 1, "jobId": "j"})
    row.attributes.extend(attributes({"a": 2}))
    got, _ = row_of(row)

    assert plain_attributes(got.attributes) == {"a": 2, "job_id": "j"}


def test_a_record_with_very_many_attributes_is_changed_in_time_that_grows_with_it() -> None:
    row, _ = row_of(log({f"key-{number}": number for number in range(50_000)} | {"jobId": "j"}))

    assert len(row.attributes) == 50_001
