"""A block in the parts of several shards: the rows are the same, and each lies where its id says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from emp_pipe import _core
from tests.support import blocks
from tests.support.otlp_strategies import CODECS, requests


@given(request=requests, codec=st.sampled_from(CODECS), shards=st.integers(1, 9))
def test_the_parts_of_a_block_hold_each_of_its_rows_once(request: Any, codec: Any, shards: int) -> None:
    batch = _core.Batch.from_otlp(request.SerializeToString(), signal="logs")
    if not len(batch):
        return
    whole = batch.to_block(codec, topic="events", block_id="b").with_flags(decided=True)
    parts = whole.split(shards)

    assert [shard for shard, _ in parts] == sorted({shard for shard, _ in parts})
    assert all(shard < shards and part.block_id == f"b.{shard}" for shard, part in parts)
    assert all((part.topic, part.codec, part.decided, part.red_done) == ("events", codec, True, False) for _, part in parts)
    rows = Counter(_rows(whole))
    assert sum((Counter(_rows(part)) for _, part in parts), Counter()) == rows
    assert sum(part.records for _, part in parts) == whole.records


def _rows(block: _core.Block) -> list[bytes]:
    request = ExportLogsServiceRequest.FromString(block.payload("none"))
    scopes = (scope for one in request.resource_logs for scope in one.scope_logs)
    return [record.SerializeToString(deterministic=True) for scope in scopes for record in scope.log_records]


def test_a_block_that_cannot_be_read_is_not_split() -> None:
    header = blocks.block(range(3)).header
    with pytest.raises(_core.CoreError) as raised:
        _core.Block(header, b"\x0a\xff").split(4)
    assert raised.value.kind == "block_invalid"


def test_a_block_of_one_shard_is_its_part_without_a_copy() -> None:
    whole = blocks.block(range(3))
    payload = whole.payload(whole.codec)
    [(_, part)] = _core.Block(whole.header, payload).split(1)
    assert part.payload(whole.codec) is payload
