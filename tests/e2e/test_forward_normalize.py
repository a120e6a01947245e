"""Promises about what records become, one named case for each spelling that occurs in the fleet, sent through a real socket.

The expectations are written out here and not taken from the core's tables, so that a line lost there is noticed here."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.support.forward import T0_S, connected, event_time, running
from tests.support.otlp_rows import plain, plain_attributes

_T0_NS = T0_S * 10**9
_TRACE, _SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_OTHER_NS = 1_709_210_096_789_000_000  # 2024-02-29T12:34:56.789Z


@dataclass(frozen=True)
class Seen:
    """A row as the official classes read it."""

    body: Any
    attributes: dict[str, Any]
    resource: dict[str, Any]
    severity: int
    severity_text: str
    time_ns: int
    observed_ns: int
    trace_id: str
    span_id: str
    scope: dict[str, Any]


async def _seen(directory: Path, *entries: tuple[Any, Any] | bytes, tag: str = "app.web") -> list[Seen]:
    """Send entries in one PackedForward frame and return the rows that they became."""
    packed = b"".join(entry if isinstance(entry, bytes) else msgpack.packb(entry) for entry in entries)
    async with running(directory) as server, connected(server.address) as peer:
        await peer.send(msgpack.packb([tag, packed, {"chunk": "c"}]))
        assert await peer.ack() == "c"
        assert server.intake.dead == []
        batch = server.intake.arrivals[0].batch
        assert batch is not None
        request = ExportLogsServiceRequest.FromString(batch.to_block("none", topic="logs", block_id="b").payload("none"))
    return [
        Seen(
            plain(log.body),
            plain_attributes(log.attributes),
            plain_attributes(resource.resource.attributes),
            log.severity_number,
            log.severity_text,
            log.time_unix_nano,
            log.observed_time_unix_nano,
            log.trace_id.hex(),
            log.span_id.hex(),
            plain_attributes(scope.scope.attributes),
        )
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for log in scope.log_records
    ]


async def _one(directory: Path, record: dict[Any, Any], time: Any = None) -> Seen:
    (row,) = await _seen(directory, (event_time(T0_S) if time is None else time, record))
    return row


# --- spellings ----------------------------------------------------------------------------------------

_ATTRIBUTES = {
    "job_id": ["job_id", "jobId"],
    "session_id": ["session_id", "sessionId"],
    "connector_id": ["connector_id", "connectorId"],
    "event_type": ["event_type", "eventType"],
    "job_status": ["job_status", "jobStatus"],
    "error_type": ["error_type", "errorType"],
    "input_size": ["input_size", "inputSize"],
    "output_size": ["output_size", "outputSize"],
    "queue_position": ["queue_position", "queuePosition"],
    "estimated_wait_time": ["estimated_wait_time", "estimatedWaitTime"],
    "resource_allocation": ["resource_allocation", "resourceAllocation"],
    "current_operation": ["current_operation", "currentOperation"],
    "elapsed_time": ["elapsed_time", "elapsedTime"],
    "health_status": ["health_status", "healthStatus"],
    "health_details": ["health_details", "healthDetails"],
    "user_id": ["user_id", "userId"],
    "exception.stacktrace": ["stack"],
    "error": ["error"],
    "source": ["source"],
    "model": ["model"],
    "progress": ["progress"],
    "priority": ["priority"],
    "pid": ["pid"],
}
_RESOURCE = {
    "machine_id": ["machine_id", "machineId"],
    "worker_id": ["worker_id", "workerId"],
    "service_type": ["service_type", "serviceType"],
    "service.name": ["service.name", "service"],
    "host.name": ["host.name", "hostname"],
}


def _pairs(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(canonical, spelling) for canonical, spellings in table.items() for spelling in spellings]


@pytest.mark.parametrize(("canonical", "spelling"), _pairs(_ATTRIBUTES))
async def test_each_spelling_of_a_field_becomes_its_attribute(tmp_path: Path, canonical: str, spelling: str):
    row = await _one(tmp_path, {"message": "m", spelling: "value"})
    assert (row.attributes, row.body) == ({canonical: "value"}, "m")


@pytest.mark.parametrize(("canonical", "spelling"), _pairs(_RESOURCE))
async def test_each_spelling_of_an_identity_goes_to_the_resource_and_off_the_record(tmp_path: Path, canonical: str, spelling: str):
    row = await _one(tmp_path, {"message": "m", spelling: "value"})
    assert row.resource[canonical] == "value"
    assert row.attributes == {}


@pytest.mark.parametrize("spelling", ["message", "msg", "log"])
async def test_each_spelling_of_the_message_becomes_the_body(tmp_path: Path, spelling: str):
    row = await _one(tmp_path, {spelling: "it works", "n": 1})
    assert (row.body, row.attributes) == ("it works", {"n": 1})


@pytest.mark.parametrize("spelling", ["level", "severity", "lvl"])
async def test_each_spelling_of_the_level_becomes_the_severity_with_its_own_text(tmp_path: Path, spelling: str):
    row = await _one(tmp_path, {"message": "m", spelling: "Warning"})
    assert (row.severity, row.severity_text, row.attributes) == (13, "Warning", {})


@pytest.mark.parametrize("spelling", ["timestamp", "time", "@timestamp"])
async def test_each_spelling_of_the_time_goes_before_the_entrys(tmp_path: Path, spelling: str):
    row = await _one(tmp_path, {"message": "m", spelling: "2024-02-29T12:34:56.789Z"})
    assert (row.time_ns, row.attributes) == (_OTHER_NS, {})


@pytest.mark.parametrize("spelling", ["duration_ms", "durationMs", "duration"])
async def test_a_duration_is_one_in_milliseconds_where_it_is_a_number(tmp_path: Path, spelling: str):
    row = await _one(tmp_path, {"message": "m", spelling: 250})
    assert row.attributes == {"duration_ms": 250}


async def test_a_duration_in_words_keeps_its_own_name(tmp_path: Path):
    row = await _one(tmp_path, {"message": "m", "duration": "3 minutes"})
    assert row.attributes == {"duration": "3 minutes"}


@pytest.mark.parametrize(("trace", "span"), [("trace_id", "span_id"), ("traceId", "spanId")])
async def test_hex_ids_become_the_fields_of_otlp(tmp_path: Path, trace: str, span: str):
    row = await _one(tmp_path, {"message": "m", trace: _TRACE, span: _SPAN.upper()})
    assert (row.trace_id, row.span_id, row.attributes) == (_TRACE, _SPAN, {})


@pytest.mark.parametrize("spelling", ["trace_id", "traceId"])
async def test_an_id_that_is_no_hex_stays_an_attribute(tmp_path: Path, spelling: str):
    row = await _one(tmp_path, {"message": "m", spelling: "trace_1712345678901_ab12cd"})
    assert (row.trace_id, row.attributes) == ("", {"trace_id": "trace_1712345678901_ab12cd"})


async def test_an_error_map_becomes_an_exception(tmp_path: Path):
    row = await _one(tmp_path, {"message": "m", "error": {"message": "no memory", "stack": "at x", "name": "CudaError", "code": 7}})
    expected = {"exception.message": "no memory", "exception.stacktrace": "at x", "exception.type": "CudaError", "error.code": 7}
    assert row.attributes == expected


async def test_two_spellings_of_one_field_lose_nothing(tmp_path: Path):
    row = await _one(tmp_path, {"message": "m", "jobId": "second", "job_id": "first"})
    assert row.attributes == {"job_id": "first", "jobId": "second"}


# --- levels -------------------------------------------------------------------------------------------

_LEVELS: dict[str, dict[Any, int]] = {
    "npm": {"error": 17, "warn": 13, "info": 9, "http": 8, "verbose": 7, "debug": 5, "silly": 1},
    "syslog": {"emerg": 21, "alert": 19, "crit": 18, "err": 17, "warning": 13, "notice": 10, "info": 9, "debug": 5, "emergency": 21},
    "Python": {"CRITICAL": 21, "ERROR": 17, "WARNING": 13, "INFO": 9, "DEBUG": 5, "FATAL": 21, "WARN": 13},
    "any case": {"Error": 17, "WaRn": 13, "iNFO": 9, "Trace": 1, "Fatal": 21},
    "pino": {10: 1, 20: 5, 30: 9, 40: 13, 50: 17, 60: 21},
    "pino as text": {"10": 1, "20": 5, "30": 9, "40": 13, "50": 17, "60": 21},
    "syslog numbers": {0: 21, 1: 19, 2: 18, 3: 17, 4: 13, 5: 10, 6: 9, 7: 5},
    "letters": {"T": 1, "D": 5, "V": 7, "I": 9, "N": 10, "W": 13, "E": 17, "C": 21, "F": 21, "A": 19, "e": 17, "w": 13},
    "none at all": {"loud": 0, "": 0, 99: 0, -1: 0},
}


@pytest.mark.parametrize(("level", "severity"), [(level, n) for levels in _LEVELS.values() for level, n in levels.items()])
async def test_each_level_has_its_severity_and_keeps_its_text(tmp_path: Path, level: Any, severity: int):
    row = await _one(tmp_path, {"message": "m", "level": level})
    assert (row.severity, row.severity_text) == (severity, str(level))


# --- times --------------------------------------------------------------------------------------------

_S, _MS, _US, _NS = 1_709_210_096, 1_709_210_096_789, 1_709_210_096_789_000, _OTHER_NS
_TIMES: dict[str, tuple[Any, int]] = {
    "ISO 8601": ("2024-02-29T12:34:56.789Z", _NS),
    "ISO 8601, whole seconds": ("2024-02-29T12:34:56Z", _S * 10**9),
    "ISO 8601, east": ("2024-02-29T14:34:56.789+02:00", _NS),
    "ISO 8601, west, no colon": ("2024-02-29T06:04:56.789-0630", _NS),
    "ISO 8601, no zone": ("2024-02-29T12:34:56.789", _NS),
    "ISO 8601, microseconds": ("2024-02-29T12:34:56.789000Z", _NS),
    "ISO 8601, nanoseconds": ("2024-02-29T12:34:56.789000000Z", _NS),
    "Python's logging": ("2024-02-29 12:34:56,789", _NS),
    "epoch s": (_S, _S * 10**9),
    "epoch ms": (_MS, _NS),
    "epoch µs": (_US, _NS),
    "epoch ns": (_NS, _NS),
    "epoch s as text": (str(_S), _S * 10**9),
    "epoch ms as text": (str(_MS), _NS),
    "epoch µs as text": (str(_US), _NS),
    "epoch ns as text": (str(_NS), _NS),
    "epoch s with a fraction": (1_709_210_096.5, _S * 10**9 + 500_000_000),
    "epoch ms as a float": (float(_MS), _NS),
    "epoch s with a fraction as text": ("1709210096.5", _S * 10**9 + 500_000_000),
}


@pytest.mark.parametrize("form", _TIMES)
async def test_each_form_of_a_time_is_read(tmp_path: Path, form: str):
    given, expected = _TIMES[form]
    row = await _one(tmp_path, {"message": "m", "timestamp": given})
    assert abs(row.time_ns - expected) < 1_000, "a float of seconds is exact to a microsecond"
    assert row.attributes == {}


async def test_a_time_that_cannot_be_read_is_kept_and_the_entrys_counts(tmp_path: Path):
    row = await _one(tmp_path, {"message": "m", "timestamp": "yesterday"})
    assert (row.time_ns, row.attributes) == (_T0_NS, {"timestamp": "yesterday"})


_ENTRY_TIMES: dict[str, tuple[bytes, int]] = {
    "EventTime, fixext8": (b"\xd7\x00" + struct.pack(">II", T0_S, 5), _T0_NS + 5),
    "EventTime, ext8": (b"\xc7\x08\x00" + struct.pack(">II", T0_S, 5), _T0_NS + 5),
    "integer": (msgpack.packb(T0_S), _T0_NS),
    "float": (msgpack.packb(T0_S + 0.5), _T0_NS + 500_000_000),
    "with metadata, fixext8": (b"\x92\xd7\x00" + struct.pack(">II", T0_S, 5) + b"\x80", _T0_NS + 5),
    "with metadata, ext8": (b"\x92\xc7\x08\x00" + struct.pack(">II", T0_S, 5) + b"\x80", _T0_NS + 5),
    "with metadata, integer": (b"\x92" + msgpack.packb(T0_S) + b"\x80", _T0_NS),
}


@pytest.mark.parametrize("form", _ENTRY_TIMES)
async def test_each_form_of_an_entrys_time_is_read(tmp_path: Path, form: str):
    time, expected = _ENTRY_TIMES[form]
    (row,) = await _seen(tmp_path, b"\x92" + time + msgpack.packb({"message": "m"}))
    assert row.time_ns == expected


# --- identity -----------------------------------------------------------------------------------------

_INSTANCES = {
    "short worker id": ({"machine_id": "railway-abc123", "worker_id": "worker-001"}, "machine-railway-abc123.worker-001"),
    "worker id with its machine": ({"machine_id": "gpu-7f3a", "worker_id": "gpu-7f3a-worker-2"}, "machine-gpu-7f3a.worker-2"),
    "no worker": ({"machine_id": "gpu-7f3a"}, "machine-gpu-7f3a"),
}


@pytest.mark.parametrize("case", _INSTANCES)
async def test_the_full_id_is_made_of_machine_and_worker_which_stay_as_received(tmp_path: Path, case: str):
    identity, instance = _INSTANCES[case]
    row = await _one(tmp_path, {"message": "m", **identity})
    assert row.resource["service.instance.id"] == instance
    assert {key: row.resource[key] for key in identity} == identity


async def test_name_and_host_are_derived_where_they_lack_and_never_overwritten(tmp_path: Path):
    lacking = {"message": "m", "machine_id": "gpu-1", "service_type": "comfyui"}
    derived, given = await _seen(tmp_path, (T0_S, lacking), (T0_S, lacking | {"service": "own", "hostname": "box"}))
    assert (derived.resource["service.name"], derived.resource["host.name"]) == ("comfyui", "gpu-1")
    assert (given.resource["service.name"], given.resource["host.name"]) == ("own", "box")


async def test_of_more_identities_than_a_batch_may_have_resources_the_rest_stays_on_the_record_counted(tmp_path: Path):
    entries = b"".join(msgpack.packb([T0_S, {"message": "m", "machine_id": f"gpu-{n}"}]) for n in range(1_100))
    async with running(tmp_path) as server, connected(server.address) as peer:
        await peer.send(msgpack.packb(["app", entries, {"chunk": "c"}]))
        assert await peer.ack() == "c"
        on_record = [row.attributes["machine_id"] for row in server.intake.rows() if "machine_id" in row.attributes]
        (batch,) = (arrival.batch for arrival in server.intake.arrivals)
        assert batch is not None
        assert batch.resource_count <= 1_024
        assert len(server.intake.rows()) == 1_100
        assert len(on_record) == 1_100 - (batch.resource_count - 1)
        assert server.metric("forward_received_resources_over_limit_records_total") == len(on_record)


async def test_the_tag_is_the_scopes_and_the_time_of_arrival_is_set(tmp_path: Path):
    (row,) = await _seen(tmp_path, (T0_S, {"message": "m"}), tag="docker.gpu0")
    assert row.scope == {"fluent.tag": "docker.gpu0"}
    assert row.observed_ns > _T0_NS


# --- values -------------------------------------------------------------------------------------------

_VALUES: dict[str, tuple[Any, Any]] = {
    "text": ("é", "é"),
    "empty text": ("", ""),
    "integer": (7, 7),
    "least integer": (-(2**63), -(2**63)),
    "greatest integer": (2**63 - 1, 2**63 - 1),
    "float": (1.5, 1.5),
    "true": (True, True),
    "nil": (None, None),
    "bytes": (b"\x00\xff", b"\x00\xff"),
    "array": ([1, "a", [2.5, None]], [1, "a", [2.5, None]]),
    "map": ({"a": {"b": [1]}, "c": True}, {"a": {"b": [1]}, "c": True}),
    "map with keys that are no text": ({1: "a", 2.5: "b"}, {"1": "a", "2.5": "b"}),
}


@pytest.mark.parametrize("case", _VALUES)
async def test_each_type_of_a_value_is_kept(tmp_path: Path, case: str):
    given, expected = _VALUES[case]
    row = await _one(tmp_path, {"message": "m", "value": given})
    assert row.attributes["value"] == expected
    assert type(row.attributes["value"]) is type(expected)


async def test_the_order_of_the_attributes_is_the_records(tmp_path: Path):
    row = await _one(tmp_path, {"z": 1, "message": "m", "a": 2, "jobId": "j", "m": 3})
    assert list(row.attributes) == ["z", "a", "job_id", "m"]


async def test_of_a_key_that_occurs_twice_the_last_one_counts(tmp_path: Path):
    (row,) = await _seen(tmp_path, b"\x92" + msgpack.packb(T0_S) + b"\x83\xa1a\x01\xa7message\xa1m\xa1a\x02")
    assert (row.body, row.attributes) == ("m", {"a": 2})


# --- unfolding ----------------------------------------------------------------------------------------

_INNER = {"message": "inner", "level": "error", "jobId": "job-1", "n": 7}
_FOLDED = {
    "JSON": json.dumps(_INNER),
    "JSON with space around": f"  {json.dumps(_INNER)}\n",
    "logfmt": 'msg=inner level=error jobId=job-1 n=7 took="3 s"',
}


@pytest.mark.parametrize("spelling", ["message", "log"])
@pytest.mark.parametrize("case", _FOLDED)
async def test_a_record_inside_the_body_is_unfolded(tmp_path: Path, case: str, spelling: str):
    row = await _one(tmp_path, {spelling: _FOLDED[case], "stream": "stderr"})
    assert (row.body, row.severity, row.attributes["job_id"], row.attributes["n"]) == ("inner", 17, "job-1", 7)
    assert row.attributes["stream"] == "stderr"


@pytest.mark.parametrize("text", ["a plain line", "{not json}", "[1, 2]", "done in=3s now", '{"a": 1} and more'])
async def test_text_that_is_no_record_stays_the_body(tmp_path: Path, text: str):
    row = await _one(tmp_path, {"log": text})
    assert (row.body, row.attributes) == (text, {})
