"""Spans as blocks, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from random import Random
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from emp_pipe._core import Batch, Block
from tests.support.metrics import SECOND, T0, attributes

OK, ERROR = 1, 2
SERVER, CLIENT = 2, 3
_ids = count(1)


def span(
    name: str = "GET /", *, seconds: float = 0.1, status: int = 0, kind: int = SERVER, th: str = "", at: float = 0, **labels: Any
) -> Span:
    """Return a span with ids of its own; `th`: the threshold of a sampler before us."""
    chance = Random(next(_ids))
    found = Span(
        trace_id=chance.randbytes(16),
        span_id=chance.randbytes(8),
        name=name,
        kind=kind,  # type: ignore[arg-type]  # an enum's number
        start_time_unix_nano=T0 + int(at * SECOND),
        end_time_unix_nano=T0 + int(at * SECOND) + round(seconds * SECOND),
        trace_state=f"vendor=x,ot=th:{th}" if th else "",
        attributes=attributes(labels),
    )
    if status:
        found.status.code = status  # type: ignore[assignment]  # likewise
    return found


def spans_block(*spans: Span, resource: Mapping[str, Any] | None = None, codec: Any = "none") -> Block:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.extend(attributes({"service.name": "shop"} if resource is None else resource))
    resource_spans.scope_spans.add().spans.extend(spans)
    batch = Batch.from_otlp(request.SerializeToString(), signal="traces")
    return batch.to_block(codec, topic="traces.in", block_id=f"spans-{next(_ids)}")
