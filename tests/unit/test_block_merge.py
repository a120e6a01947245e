"""Promises of blocks over many inputs: merging, halving, and that every row survives byte for byte."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from emp_pipe import _core
from tests.support.otlp_rows import NOW, any_value, bodies, log, log_batch
from tests.support.otlp_strategies import CODECS, requests


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


@settings(max_examples=60, deadline=None)
@given(requests, st.sampled_from(CODECS))
def test_every_row_survives_with_its_resource_and_scope(request: ExportLogsServiceRequest, codec: Any) -> None:
    batch = _core.Batch.from_otlp(request.SerializeToString(), signal="logs")
    block = batch.to_block(codec, topic="logs", block_id="b")
    again = block.decode().to_block("none", topic="logs", block_id="c")

    assert flattened(ExportLogsServiceRequest.FromString(block.payload("none"))) == flattened(request)
    assert flattened(ExportLogsServiceRequest.FromString(again.payload("none"))) == flattened(request)
    assert block.records == len(batch) == sum(flattened(request).values())


@settings(max_examples=60, deadline=None)
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
