"""A tail sampler under test, over any log: spans in, time moved by hand, kept spans out, and restarts at any moment."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from emp_pipe._core import Batch, Block
from emp_pipe.component import Derived
from emp_pipe.log.protocol import Append, Delivery, Topic
from emp_pipe.processors.tail_sample import TailSampleConfig, TailSampleDeriver
from tests.contract.conftest import OpenLog, group
from tests.support.context import make_context

START_S = 1_760_000_000
SECOND_NS = 1_000_000_000
GROUPS = group("tail_sample", Topic.TRACES_IN), group("out", Topic.TRACES)
ERROR = Status(code=Status.STATUS_CODE_ERROR)
_ids = itertools.count(1)


def trace_id(randomness: int, *, high: int = 1) -> bytes:
    """Return an id whose randomness is that of 56 bits."""
    return (high << 64 | randomness).to_bytes(16, "big")


KEPT_BY_10_PERCENT = trace_id(0xF0_0000_0000_0000)
DROPPED_BY_10_PERCENT = trace_id(0x80_0000_0000_0000)


def attribute(key: str, value: Any) -> KeyValue:
    field = {bool: "bool_value", str: "string_value", int: "int_value", float: "double_value"}[type(value)]
    return KeyValue(key=key, value=AnyValue(**{field: value}))


def span(trace: bytes, number: int = 1, *, start_ms: int = 0, end_ms: int = 1, root: bool = False, **more: Any) -> Span:
    """Return a span of a trace; times count from the start of the test."""
    attributes = [attribute(key, value) for key, value in more.pop("attributes", {}).items()]
    return Span(
        trace_id=trace,
        span_id=number.to_bytes(8, "big"),
        parent_span_id=b"" if root else b"parent--",
        name=f"span {number}",
        start_time_unix_nano=START_S * SECOND_NS + start_ms * 1_000_000,
        end_time_unix_nano=START_S * SECOND_NS + end_ms * 1_000_000,
        attributes=attributes,
        **more,
    )


def span_block(spans: Sequence[Span], *, codec: Any = "zstd", resource: dict[str, Any] | None = None) -> Block:
    of_resource = ResourceSpans(scope_spans=[ScopeSpans(spans=spans)])
    of_resource.resource.attributes.extend(attribute(key, value) for key, value in {"service.name": "test", **(resource or {})}.items())
    request = ExportTraceServiceRequest(resource_spans=[of_resource])
    batch = Batch.from_otlp(request.SerializeToString(), signal="traces")
    return batch.to_block(codec, topic="traces.in", block_id=f"in-{next(_ids)}")


def spans_in(blocks: Sequence[Block]) -> list[Span]:
    requests = [ExportTraceServiceRequest.FromString(block.payload("none")) for block in blocks]
    resources = [resource for request in requests for resource in request.resource_spans]
    return [found for resource in resources for scope in resource.scope_spans for found in scope.spans]


class TailSampling:
    """A deriver and its log. Each method is one thing that a loop does; in between a test may restart it."""

    def __init__(self, opened: OpenLog, **settings: Any) -> None:
        self.opened = opened
        self.settings = settings
        self.now_s = float(START_S)
        self.sent: list[Span] = []
        self.blocks_sent: list[Block] = []
        self.held: list[Delivery] = []
        self.context = make_context()
        self.deriver = self.make()

    def make(self) -> TailSampleDeriver:
        return TailSampleDeriver("tail_sample", TailSampleConfig.model_validate(self.settings), self.context)

    @property
    def now_unix_nano(self) -> int:
        return round(self.now_s * SECOND_NS)

    async def open(self) -> TailSampling:
        await self.opened.open(*GROUPS)
        await self._restore()
        return self

    async def _restore(self) -> None:
        self.deriver.restore(await self.opened.log.state_items("tail_sample"))

    async def send(self, *spans: Span, **settings: Any) -> None:
        """Append one block of these spans, and let the sampler take it."""
        await self.append(*spans, **settings)
        await self.take()

    async def append(self, *spans: Span, **settings: Any) -> None:
        await self.opened.log.append(Append([span_block(spans, **settings)]))

    async def take(self) -> None:
        for delivery in await self.opened.log.read("tail_sample", 1 << 30):
            self.held.append(delivery)
            self.deriver.take(delivery, self.now_unix_nano)

    async def tick(self, *, final: bool = False) -> Derived | None:
        derived = self.deriver.tick(self.now_unix_nano, final=final)
        if derived is not None:
            await self.commit(derived)
        return derived

    async def commit(self, derived: Derived) -> None:
        await self.opened.log.commit(
            "tail_sample",
            acks=derived.acks,
            skipped_records=derived.skipped_records,
            rejections=derived.rejections,
            outputs=derived.outputs,
            state_puts=derived.state_puts,
            state_ttl_s=derived.state_ttl_s,
            state_deletes=derived.state_deletes,
        )
        ended = {delivery.offset for delivery in derived.acks} | {rejection.delivery.offset for rejection in derived.rejections}
        self.held = [delivery for delivery in self.held if delivery.offset not in ended]

    async def after(self, seconds: float) -> list[Span]:
        """Move time, tick, commit; return what has been sent since the last time."""
        self.now_s += seconds
        await self.tick()
        return await self.out()

    async def out(self) -> list[Span]:
        deliveries = await self.opened.log.read("out", 1 << 30)
        blocks = [delivery.block for delivery in deliveries]
        await self.opened.log.commit("out", acks=deliveries)
        self.blocks_sent += blocks
        found = spans_in(blocks)
        self.sent += found
        return found

    async def restart(self, *, reopen: bool = False) -> None:
        """End without a word, as by SIGKILL, and begin anew from what is in the log."""
        self.opened.log.defer(self.held)
        self.held = []
        if reopen and self.opened.durable:
            await self.opened.reopen(*GROUPS)
        self.deriver = self.make()
        await self._restore()

    def metric(self, name: str, **labels: str) -> float:
        value = self.context.metrics.registry.get_sample_value(f"emp_pipe_{name}", {"component": "tail_sample", **labels})
        return 0.0 if value is None else value

    async def books(self) -> tuple[int, int, int]:
        """Return how many spans the sampler has appended to it, acked, and left out."""
        (books,) = [books for books in await self.opened.log.group_books() if books.group == "tail_sample"]
        assert books.balanced
        return books.appended, books.acked, books.skipped


def states(spans: Sequence[Span]) -> list[str]:
    return [found.trace_state for found in spans]


def numbers(spans: Sequence[Span]) -> list[int]:
    """Return the numbers of spans, in order."""
    return sorted(int.from_bytes(found.span_id, "big") for found in spans)


def random_ids(seed: int, count: int) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(16) for _ in range(count)]
