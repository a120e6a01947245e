"""One OTLP destination for tests, whichever protocol it speaks: a strict endpoint, an exporter to it, and its answers by their codes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count
from typing import Any, Literal

from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from emp_pipe._core import Block
from emp_pipe.component import Context
from emp_pipe.exporters.otlp_grpc import OtlpGrpcConfig, OtlpGrpcExporter
from emp_pipe.exporters.otlp_http import OtlpHttpConfig, OtlpHttpExporter
from tests.support.context import make_context
from tests.support.otlp_endpoint import Answer, OtlpEndpoint
from tests.support.otlp_grpc_endpoint import GrpcAnswer, OtlpGrpcEndpoint
from tests.support.otlp_rows import NOW, attributes, log, log_batch, metric_batch, span_batch
from tests.support.otlp_rows import plain as plain_value

Protocol = Literal["http", "grpc"]
Signal = Literal["logs", "traces", "metrics"]
SIGNALS: tuple[Signal, ...] = ("logs", "traces", "metrics")
_ids = count(1)


def block_of(signal: Signal, names: Sequence[str], *, codec: Any = "gzip") -> Block:
    """Return a block of rows with these names: bodies of logs, names of spans; of metrics the points of ONE metric, by an attribute."""
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    if signal == "logs":
        batch = log_batch(*(log(name) for name in names))
    elif signal == "traces":
        ids = [(index + 1).to_bytes(8, "big") for index in range(len(names))]
        batch = span_batch(*(Span(name=name, trace_id=one * 2, span_id=one) for name, one in zip(names, ids, strict=True)))
    else:
        metric = Metric(name="m", unit="1")
        metric.sum.aggregation_temporality = 1  # type: ignore[assignment]  # delta
        for name in names:
            metric.sum.data_points.add(time_unix_nano=NOW, as_int=1, attributes=attributes({"name": name}))
        batch = metric_batch(metric)
    return batch.to_block(codec, topic=signal, block_id=f"{signal}-{next(_ids)}")


def names_in(signal: str, row: Any) -> list[str]:
    """Return the names of a row, in the sense of `block_of`."""
    if signal == "logs":
        return [str(plain_value(row.body))]
    if signal == "traces":
        return [row.name]
    return [str(plain_value(pair.value)) for point in row.sum.data_points for pair in point.attributes if pair.key == "name"]


class OtlpDestination:
    """See the module's head."""

    def __init__(self, endpoint: OtlpEndpoint | OtlpGrpcEndpoint, context: Context | None = None) -> None:
        self.endpoint: Any = endpoint
        self.protocol: Protocol = "grpc" if isinstance(endpoint, OtlpGrpcEndpoint) else "http"
        self._context = context or make_context()

    def exporter(self, id: str = "", **settings: Any) -> Any:
        settings = {"endpoint": self.endpoint.url, "retry_initial_s": 0.02, "retry_max_s": 0.1, **settings}
        if self.protocol == "grpc":
            return OtlpGrpcExporter(id or "otlp_grpc", OtlpGrpcConfig(**settings), self._context)
        return OtlpHttpExporter(id or "otlp_http", OtlpHttpConfig(**settings), self._context)

    def answer(self, code: str, message: str = "", *, retry_after_s: float | None = None, **more: Any) -> Any:
        """Return an answer by its HTTP status or its gRPC code; "OK" for either's success."""
        if self.protocol == "grpc":
            return GrpcAnswer(code, message, retry_info_s=retry_after_s, **more)
        retry_after = None if retry_after_s is None else f"{retry_after_s:g}"
        return Answer(200 if code == "OK" else int(code), message, retry_after, **more)

    def refuse(self, signal: Signal, poisoned: Callable[[str], bool], code: str = "") -> None:
        """Refuse whole requests that hold a poisoned row."""
        self.endpoint.refuse_row = lambda row: any(poisoned(name) for name in names_in(signal, row))
        if code and self.protocol == "grpc":
            self.endpoint.refuse_code = code
        elif code:
            self.endpoint.refuse_status = int(code)

    def arrived(self, signal: str) -> Counter[str]:
        return Counter(name for row in self.endpoint.records(signal) for name in names_in(signal, row))


@contextlib.asynccontextmanager
async def destination_of(protocol: Protocol, **settings: Any) -> AsyncIterator[OtlpDestination]:
    """A destination that nothing wrong was sent to."""
    endpoint: Any = OtlpGrpcEndpoint(**settings) if protocol == "grpc" else OtlpEndpoint(**settings)
    async with endpoint:
        yield OtlpDestination(endpoint)
        assert not endpoint.violations
