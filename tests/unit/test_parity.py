"""One record, whatever way it comes: Forward, OTLP protobuf and OTLP JSON give the same row, the same columns and the same export.

Compared in canonical form: attributes by key (OTLP gives their order no meaning), and without the scope, which names the receiver.
Here at the decoders; `tests/e2e/test_parity.py` goes through sockets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgpack
import pyarrow as pa
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from emp_pipe._core import Batch, ForwardDecoder, Normalizer, OtlpDecoder
from tests.support.forward import event_time
from tests.support.otlp_json import to_json
from tests.support.otlp_rows import any_value, attributes

NOW = 1_800_000_000_000_000_000
TIME = 1_799_999_990_123_456_789
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
Record = Mapping[str, Any]

RECORDS: dict[str, Record] = {
    "plain": {"message": "hello", "level": "info"},
    "connector": {
        "message": "sampling step 7 done",
        "level": "warn",
        "machine_id": "gpu-7",
        "worker_id": "gpu-7-2",
        "service_type": "comfyui",
        "job_id": "job-1",
        "trace_id": TRACE_ID,
        "span_id": SPAN_ID,
        "duration_ms": 12.5,
        "progress": 70,
        "cached": True,
    },
    "other spellings": {"msg": "x", "lvl": "ERROR", "jobId": "job-2", "machineId": "m", "durationMs": 3, "connectorId": "c-1"},
    "an event": {"message": "job failed", "level": "error", "event_type": "job.failed", "jobId": "job-3"},
    "an event in camel case": {"message": "job done", "eventType": "job.done", "level": "info"},
    "two names for one thing": {"message": "x", "jobId": "a", "job_id": "b", "duration": 1, "duration_ms": 2, "level": "info"},
    "an error map": {"message": "x", "level": "error", "error": {"message": "boom", "stack": "at f", "name": "TypeError", "code": 7}},
    "an error text": {"message": "x", "level": "error", "err": "boom", "stack": "at f"},
    "ids that are none": {"message": "x", "level": "info", "trace_id": "none", "spanId": "0000000000000000"},
    "a traceparent": {"message": "x", "level": "info", "traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"},
    "a service and a host of its own": {"message": "x", "level": "info", "service": "api", "hostname": "h-1", "machine_id": "m"},
    "nested values": {"message": "x", "level": "info", "tags": ["a", 1, None, {"b": 2.5}], "more": {"c": [True]}, "raw": b"\x00\xff"},
    "json in the message": {"message": json.dumps({"message": "inner", "level": "warn", "job_id": "job-4", "n": 1})},
    "json in the message and keys of its own": {"message": json.dumps({"message": "inner", "job_id": "in", "n": 1}), "job_id": "out"},
    "json without a message": {"message": json.dumps({"level": "warn", "a": 1})},
    "logfmt": {"message": "level=info msg=started took=35 ok=true"},
    "a level that is a number": {"message": "x", "level": 50},
    "an unknown level": {"message": "x", "level": "loud"},
    "no message": {"level": "info", "a": 1},
    "identity in numbers": {"message": "x", "level": "info", "machine_id": 7, "worker_id": 3},
}
STAMP = {"machine_id": "edge-1", "host.name": "edge-1.local"}


def by_forward(record: Record, normalizer: Normalizer) -> Batch:
    frame = msgpack.packb(["app", [[event_time(*divmod(TIME, 10**9)), record]]])
    read = ForwardDecoder(normalizer).feed(frame, NOW)
    assert read.batch is not None
    return read.batch


def as_attributes(record: Record) -> LogRecord:
    """As a log bridge writes it that knows nothing of our names: the message is the body, all else attributes."""
    body = {key: record[key] for key in ("message", "msg") if key in record}
    rest = {key: value for key, value in record.items() if key not in body}
    row = LogRecord(time_unix_nano=TIME, observed_time_unix_nano=NOW, attributes=attributes(rest))
    for text in body.values():
        row.body.CopyFrom(any_value(text))
    return row


def as_pairs(record: Record) -> LogRecord:
    """As Fluent Bit writes it: all of the record is the body."""
    return LogRecord(time_unix_nano=TIME, observed_time_unix_nano=NOW, body=any_value(record))


def as_text(record: Record) -> LogRecord:
    """As a file tail writes a line of JSON."""
    return LogRecord(time_unix_nano=TIME, observed_time_unix_nano=NOW, body=any_value(json.dumps(record)))


FORMS: dict[str, Any] = {"attributes": as_attributes, "pairs": as_pairs, "text": as_text}


def by_otlp(row: LogRecord, encoding: Any, normalizer: Normalizer) -> Batch:
    request = ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=Resource(), scope_logs=[ScopeLogs(log_records=[row])])])
    data = request.SerializeToString() if encoding == "protobuf" else to_json(request)
    read = OtlpDecoder(normalizer, signal="logs").decode(data, encoding=encoding, now_unix_nano=NOW)
    assert read.batch is not None, read.rejected
    return read.batch


def canonical(batch: Batch) -> bytes:
    """The export request with attributes by key, without the scope."""
    request = ExportLogsServiceRequest.FromString(batch.to_block("none", topic="logs", block_id="b").payload("none"))
    for resource in request.resource_logs:
        resource.resource.attributes.sort(key=lambda pair: pair.key)
        for scope in resource.scope_logs:
            scope.ClearField("scope")
            for row in scope.log_records:
                row.attributes.sort(key=lambda pair: pair.key)
    return request.SerializeToString(deterministic=True)


COLUMNS = [
    "time_unix_nano",
    "observed_time_unix_nano",
    "severity_number",
    "severity_text",
    "body",
    "trace_id",
    "span_id",
    "is_error",
    "is_event",
]
OF_ATTRIBUTES = ["job_id", "event_type", "machine_id", "worker_id", "service.name", "service.instance.id", "host.name", "duration_ms"]


def columns(batch: Batch) -> Any:
    return pa.record_batch(batch.to_arrow([*COLUMNS, *OF_ATTRIBUTES])).to_pylist()


def fleet_json(batch: Batch) -> Any:
    """The fleet's own JSON of the one row, without the tag."""
    line = json.loads(batch.to_json_lines())
    line.pop("fluent.tag", None)
    return line


def usable(record: Record, form: str) -> bool:
    """Whether a record can be said in a form, and means the same there."""
    if form == "attributes":
        return True
    # Bytes are no JSON, and a body of pairs is only taken for a record when it has a message. A record in a body is not unfolded twice.
    message = record.get("message", record.get("msg"))
    return isinstance(message, str) and not message.startswith(("{", "level=")) and not (form == "text" and "raw" in record)


CASES = [
    pytest.param(record, form, encoding, id=f"{name}, {form}, {encoding}")
    for name, record in RECORDS.items()
    for form in FORMS
    for encoding in ("protobuf", "json")
    if usable(record, form)
]


@pytest.mark.parametrize(("record", "form", "encoding"), CASES)
@pytest.mark.parametrize("stamp", [{}, STAMP], ids=["central", "edge"])
def test_a_record_is_the_same_row_by_forward_and_by_otlp(record: Record, form: str, encoding: str, stamp: dict[str, str]) -> None:
    normalizer = Normalizer(stamp=stamp)
    forward = by_forward(record, normalizer)
    otlp = by_otlp(FORMS[form](record), encoding, normalizer)

    assert columns(otlp) == columns(forward)
    assert canonical(otlp) == canonical(forward), f"{canonical(otlp)!r}\n{canonical(forward)!r}"
    assert fleet_json(otlp) == fleet_json(forward)
    assert (otlp.error_count, otlp.event_count, otlp.record_count) == (forward.error_count, forward.event_count, forward.record_count)


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_a_record_in_otlps_own_fields_is_the_same_row_too(encoding: str) -> None:
    normalizer = Normalizer(stamp=STAMP)
    row = LogRecord(
        time_unix_nano=TIME,
        observed_time_unix_nano=NOW,
        severity_number=13,  # type: ignore[arg-type]
        severity_text="warn",
        body=any_value("sampling step 7 done"),
        trace_id=bytes.fromhex(TRACE_ID),
        span_id=bytes.fromhex(SPAN_ID),
        attributes=attributes({"job_id": "job-1", "machine_id": "gpu-7"}),
    )
    record = {
        "message": "sampling step 7 done",
        "level": "warn",
        "traceId": TRACE_ID,
        "spanId": SPAN_ID,
        "jobId": "job-1",
        "machine_id": "gpu-7",
    }

    assert canonical(by_otlp(row, encoding, normalizer)) == canonical(by_forward(record, normalizer))
