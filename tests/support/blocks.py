"""Blocks and batches for tests of the log: numbered records, so that a test can say which ones came out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from emp_pipe._core import Batch, Block
from emp_pipe.log.protocol import Delivery

_ids = count(1)


def batch(numbers: Iterable[int], *, padding_bytes: int = 0, severity: int = 9, event_type: str = "") -> Batch:
    """Return log rows whose bodies are the numbers, each padded with an attribute of so many bytes."""
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "test"
    records = resource.scope_logs.add().log_records
    for number in numbers:
        record = records.add(time_unix_nano=1_760_000_000_000_000_000 + number, severity_number=cast("Any", severity))
        record.body.string_value = str(number)
        if event_type:
            record.attributes.add(key="event_type").value.string_value = event_type
        if padding_bytes:
            record.attributes.add(key="padding").value.string_value = "x" * padding_bytes
    return Batch.from_otlp(request.SerializeToString(), signal="logs")


def block(numbers: Iterable[int], *, topic: str = "logs", padding_bytes: int = 0, codec: Any = "none") -> Block:
    """Return a block of such rows."""
    return batch(numbers, padding_bytes=padding_bytes).to_block(codec, topic=topic, block_id=f"block-{next(_ids)}")


def unstorable(topic: str = "logs") -> Block:
    """Return what looks like a block until it is about to be written: its header is none."""
    return cast("Block", SimpleNamespace(topic=topic, block_id="x", payload_bytes=1, records=1, header=None))


def numbers_in(block: Block) -> list[int]:
    """Return the numbers of a block's rows, in order."""
    request = ExportLogsServiceRequest.FromString(block.payload("none"))
    scopes = (scope for resource in request.resource_logs for scope in resource.scope_logs)
    return [int(record.body.string_value) for scope in scopes for record in scope.log_records]


def delivered(deliveries: Sequence[Delivery]) -> list[int]:
    """Return the numbers of all rows of deliveries, in order."""
    return [number for delivery in deliveries for number in numbers_in(delivery.block)]
