"""Promises of blocks over many inputs: merging, halving, and that every row survives byte for byte."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from emp_pipe import _core
from tests.support.otlp_rows import NOW, any_value, bodies, log, log_batch
from tests.support.otlp_strategies import CODECS, requests, small_requests


def flattened(request: ExportLogsServiceRequest) -> Counter[tuple[bytes, ...]]:
    """Each row with all that it stands under."""
    return Counter(
        (
            resource.resource.SerializeToString(),
            resource.schema_url,
            scope.scope.SerializeToString(),
            scope.schema_url,
            row.SerializeToString(),
        )
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for row in scope.log_records
    )


@given(requests, st.sampled_from(CODECS))
def test_every_row_survives_with_its_resource_and_scope(request: ExportLogsServiceRequest, codec: Any) -> None:
    batch = _core.Batch.from_otlp(request.SerializeToString(), signal="logs")
    block = batch.to_block(codec, topic="logs", block_id="b")
    again = block.decode().to_block("none", topic="logs", block_id="c")

    assert flattened(ExportLogsServiceRequest.FromString(block.payload("none"))) == flattened(request)
    assert flattened(ExportLogsServiceRequest.FromString(again.payload("none"))) == flattened(request)
    assert block.records == len(batch) == sum(flattened(request).values())


@given(st.binary(max_size=200), st.sampled_from(["logs", "traces", "metrics"]), st.sampled_from(CODECS))
def test_arbitrary_bytes_are_a_batch_or_an_error_and_never_worse(data: bytes, signal: Any, codec: Any) -> None:
    try:
        batch = _core.Batch.from_otlp(data, signal=signal, codec=codec)
    except _core.CoreError as error:
        assert error.kind == "body_invalid"  # noqa: PT017
        return
    block = batch.to_block("none", topic="t", block_id="b")
    assert len(block.decode()) == len(batch)


def test_unknown_fields_are_kept_at_every_level() -> None:
    unknown = b"\xfa\x3f\x03abc"  # field 1023
    row = LogRecord(body=any_value("x")).SerializeToString() + unknown

    def nested(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload)]) + payload

    scope_logs = nested(2, row) + unknown
    resource_logs_bytes = nested(1, unknown) + nested(2, scope_logs) + unknown
    batch = _core.Batch.from_otlp(nested(1, resource_logs_bytes) + unknown, signal="logs")

    assert batch.to_block("none", topic="logs", block_id="b").payload("none").count(unknown) == 4


@pytest.mark.parametrize("codec", CODECS)
def test_merged_blocks_hold_all_rows_in_order_and_the_sum_of_the_headers(codec: Any) -> None:
    parts = [
        log_batch(log("a", time=NOW + 5, severity=5)).to_block("gzip", topic="logs", block_id="1").with_flags(decided=True),
        log_batch(log("b", time=NOW, severity=17), log("c"), resource={"service.name": "web"}).to_block("none", topic="logs", block_id="2"),
        log_batch(log("d", time=NOW + 9), tag="other").to_block("zstd", topic="logs", block_id="3"),
    ]
    merged = _core.merge_blocks(parts, codec, block_id="m")

    assert pa.array(merged.decode().to_arrow(["body"])["body"]).to_pylist() == ["a", "b", "c", "d"]
    assert (merged.records, merged.errors, merged.block_id, merged.topic) == (4, 1, "m", "logs")
    assert (merged.min_time_unix_nano, merged.max_time_unix_nano) == (NOW, NOW + 9)
    assert (merged.tags, merged.services, merged.severities) == (("app", "other"), ("api", "web"), (5, 9, 17))
    assert merged.uncompressed_bytes == len(merged.payload("none"))
    assert not merged.decided, "one of them was not"


def test_blocks_of_two_signals_are_not_merged() -> None:
    logs = log_batch(log("a")).to_block("none", topic="logs", block_id="1")
    metrics = _core.Batch.from_otlp(b"", signal="metrics").to_block("none", topic="metrics", block_id="2")

    with pytest.raises(_core.CoreError, match="one signal"):
        _core.merge_blocks([logs, metrics], "none", block_id="m")


def test_a_block_is_halved_down_to_the_row() -> None:
    block = log_batch(*(log(str(index)) for index in range(5))).to_block("gzip", topic="logs", block_id="b").with_flags(decided=True)
    halves = block.halve(("b.0", "b.1"))

    assert halves is not None
    assert [bodies(half.decode()) for half in halves] == [["0", "1"], ["2", "3", "4"]]
    assert [(half.block_id, half.topic, half.codec, half.decided) for half in halves] == [
        ("b.0", "logs", "gzip", True),
        ("b.1", "logs", "gzip", True),
    ]
    single = halves[0].halve(("x", "y"))
    assert single is not None
    assert single[0].halve(("p", "q")) is None


def test_more_tags_than_can_be_listed_are_unknown_not_wrong() -> None:
    batches = [log_batch(log("a"), tag=f"tag{index}") for index in range(17)]

    assert len(_core.encode_block(batches[:16], "none", topic="logs", block_id="b").tags or ()) == 16
    assert _core.encode_block(batches, "none", topic="logs", block_id="b").tags is None


@given(small_requests, st.data())
def test_what_a_parser_refuses_is_refused_and_what_is_taken_can_be_used(request: ExportLogsServiceRequest, data: st.DataObject) -> None:
    mutated = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        batch = _core.Batch.from_otlp(bytes(mutated), signal="logs")
    except _core.CoreError as error:
        assert (error.kind, 0 <= error.offset <= len(mutated)) == ("body_invalid", True)  # noqa: PT017
        return
    ExportLogsServiceRequest.FromString(bytes(mutated))
    rows = len(batch)
    assert batch.to_json_lines().count(b"\n") == rows
    assert sum(frame.records for frame in batch.to_forward("none", chunk="c")) == rows
    assert len(batch.to_arrow()) == rows
    limits = _core.DestinationLimits(max_body_bytes=8, max_log_attributes=2, max_key_bytes=4, max_value_bytes=8)
    assert len(limits.apply(batch, NOW).batch or ()) == rows
    assert len(batch.with_attributes({"a": 1}, target="record", overwrite=True).without_attributes(["a"])) == rows
    _core.Selection(only='{"attributes": {"a": "1"}}').apply(batch)
