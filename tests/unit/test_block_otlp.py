"""Promises of blocks: what the official OTLP classes wrote comes back, merged by resource, with a header that tells the truth."""

from __future__ import annotations

import gzip

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs

from emp_pipe import _core


def text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def log_request(service: str, bodies: list[str], tag: str = "app") -> bytes:
    rows = [
        LogRecord(
            time_unix_nano=1_700_000_000_000_000_000 + index,
            severity_number=17 if body.startswith("error") else 9,
            body=AnyValue(string_value=body),
            attributes=[text("job_id", f"job-{index}")],
        )
        for index, body in enumerate(bodies)
    ]
    scope = ScopeLogs(log_records=rows)
    scope.scope.attributes.append(text("fluent.tag", tag))
    resource = ResourceLogs(scope_logs=[scope])
    resource.resource.attributes.append(text("service.name", service))
    return ExportLogsServiceRequest(resource_logs=[resource]).SerializeToString()


def batch(service: str, bodies: list[str], tag: str = "app") -> _core.Batch:
    return _core.Batch.from_otlp(log_request(service, bodies, tag), signal="logs")


@pytest.mark.parametrize("codec", ["none", "gzip", "zstd"])
def test_a_block_of_one_batch_is_the_request_that_it_came_from(codec: str) -> None:
    block = batch("api", ["one", "error two"]).to_block(codec, topic="logs", block_id="b-1")

    assert block.payload("none") == log_request("api", ["one", "error two"])
    assert (block.records, block.errors, block.events) == (2, 1, 0)
    assert (block.topic, block.block_id, block.signal, block.codec) == ("logs", "b-1", "logs", codec)
    assert (block.tags, block.services, block.severities) == (("app",), ("api",), (9, 17))
    assert (block.min_time_unix_nano, block.max_time_unix_nano) == (1_700_000_000_000_000_000, 1_700_000_000_000_000_001)
    assert block.uncompressed_bytes == len(block.payload("none"))


def test_equal_resources_and_scopes_of_several_batches_become_one() -> None:
    block = _core.encode_block(
        [batch("api", ["a"]), batch("web", ["b"]), batch("api", ["c"]), batch("api", ["d"], tag="other")],
        "none",
        topic="logs",
        block_id="b",
    )
    request = ExportLogsServiceRequest.FromString(bytes(memoryview(block)))

    bodies = [[[row.body.string_value for row in scope.log_records] for scope in resource.scope_logs] for resource in request.resource_logs]
    assert bodies == [[["a", "c"], ["d"]], [["b"]]]
    assert block.tags == ("app", "other")


def test_the_payload_is_read_without_a_copy_and_given_back_as_it_came() -> None:
    block = batch("api", ["one"]).to_block("gzip", topic="logs", block_id="b")
    payload = bytes(memoryview(block))
    again = _core.Block(block.header, payload)

    assert gzip.decompress(payload) == log_request("api", ["one"])
    assert memoryview(block).readonly
    assert again.payload("gzip") is payload
    assert again.with_topic("events").payload("gzip") is payload
    assert again.with_topic("events").topic == "events"
    assert again.header == block.header


def test_a_block_that_a_newer_version_wrote_is_refused_as_such() -> None:
    header = batch("api", ["one"]).to_block("none", topic="logs", block_id="b").header
    newer = header.replace(b'"version":1', b'"version":2').replace(b'"codec":"none"', b'"codec":"brand-new"')

    with pytest.raises(_core.CoreError, match="version 2") as caught:
        _core.Block(newer, b"")
    assert caught.value.kind == "log_newer"


def test_a_payload_that_is_not_what_its_header_says_is_refused() -> None:
    block = batch("api", ["one", "two"]).to_block("none", topic="logs", block_id="b")
    torn = _core.Block(block.header, block.payload("none")[:-3])

    with pytest.raises(_core.CoreError, match="whose header says") as caught:
        torn.decode()
    assert caught.value.kind == "block_invalid"


def test_a_torn_request_is_refused_at_the_offset_where_it_tears() -> None:
    request = log_request("api", ["one"])
    field_number_zero = b"\x00"

    with pytest.raises(_core.CoreError) as caught:
        _core.Batch.from_otlp(request + field_number_zero, signal="logs")
    assert (caught.value.kind, caught.value.offset) == ("body_invalid", len(request))


def test_the_flags_of_a_block_are_set_on_a_copy() -> None:
    block = batch("api", ["one"]).to_block("none", topic="logs", block_id="b")

    done = block.with_flags(decided=True)
    assert (done.decided, done.red_done, done.aggregated) == (True, False, False)
    assert not block.decided
    assert _core.Block(done.header, done.payload("none")).decided


def test_counts_of_a_decoded_batch() -> None:
    rows = batch("api", ["one", "error two"]).to_block("zstd", topic="logs", block_id="b").decode()

    assert (len(rows), rows.signal, rows.resource_count, rows.error_count, rows.event_count) == (2, "logs", 1, 1, 0)
