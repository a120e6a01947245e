"""OTLP clients that remember what was answered with success: the witnesses of the chaos tests for all three signals.

Each request is whole traces, delta points or log records, and is sent again, the same bytes, until it has been acknowledged. A request
whose answer was lost may be in the edge twice, for OTLP knows no repeats: `repeated` has those.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp
import grpc
import grpc.aio
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, NumberDataPoint
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.otlp_post import keyed
from tests.support.otlp_receiving import METHODS

SIGNALS = ("traces", "metrics", "logs")
HALF = 1 << 55
"""A consistent sampler at 50 % keeps the trace ids whose low 56 bits reach this."""
STREAMS = 20
_TIMEOUT_S = 20.0


@dataclass(eq=False)
class Sending:
    """One request until it is acknowledged."""

    signal: str
    body: bytes
    records: int
    keys: list[Any]
    """What its records are known by: (trace id, span id, whether the trace has an error), stream numbers, sequence numbers."""


@dataclass
class OtlpSender:
    """Sends to a port for each signal (OTLP/HTTP) and one for traces by gRPC, with a request under way at any time."""

    ports: dict[str, int]
    grpc_port: int
    seed: int
    workers: int = 6
    pace_s: float = 0.02
    busy_pace_s: float = 0.0
    """The first worker's: with 0 something is on its way at any time."""
    acked: list[Sending] = field(default_factory=list)
    repeated: set[Sending] = field(default_factory=set)
    _number: int = 0
    _under_way: set[Sending] = field(default_factory=set)
    _stopping: bool = False
    _progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self._chance = Random(self.seed)
        self._start_unix_nano = time.time_ns()

    @property
    def acked_records(self) -> int:
        return sum(sending.records for sending in self.acked)

    @property
    def unacked_records(self) -> int:
        return sum(sending.records for sending in self._under_way)

    async def wait_acked(self, records: int) -> None:
        async with self._progress:
            await self._progress.wait_for(lambda: self.acked_records >= records)

    def stop_sending(self) -> None:
        self._stopping = True

    def keys(self, signal: str, *, once: bool = False) -> Counter[Any]:
        """Return what was acknowledged of a signal; `once`: only that which cannot be in the edge twice."""
        sendings = [one for one in self.acked if one.signal == signal and not (once and one in self.repeated)]
        return Counter(key for sending in sendings for key in sending.keys)

    async def run(self) -> None:
        """Send until `stop_sending`, then return once everything sent is acknowledged."""
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 300)]
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_TIMEOUT_S)) as session,
            grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc_port}", options=options) as channel,
            asyncio.TaskGroup() as tasks,
        ):
            call = channel.unary_unary(METHODS["traces"])
            for worker in range(self.workers):
                tasks.create_task(self._work(worker, session, call if worker == 1 else None), name=f"otlp-{worker}")

    async def _work(self, worker: int, session: aiohttp.ClientSession, call: Any) -> None:
        while not self._stopping:
            sending = self._next("traces" if call is not None else None if worker else "logs")
            self._under_way.add(sending)
            while True:
                if await (self._call(call, sending) if call is not None else self._post(session, sending)):
                    break
                await asyncio.sleep(0.03)
            self._under_way.discard(sending)
            self.acked.append(sending)
            async with self._progress:
                self._progress.notify_all()
            await asyncio.sleep(self.pace_s if worker else self.busy_pace_s)

    async def _post(self, session: aiohttp.ClientSession, sending: Sending) -> bool:
        url = f"http://127.0.0.1:{self.ports[sending.signal]}/v1/{sending.signal}"
        try:
            async with session.post(url, data=sending.body, headers={"Content-Type": "application/x-protobuf"}) as answer:
                await answer.read()
        except aiohttp.ClientConnectorError:
            return False  # nobody was there: it has not been sent
        except (aiohttp.ClientError, TimeoutError, OSError):
            self.repeated.add(sending)
            return False
        assert answer.status in (200, 503), answer.status
        return answer.status == 200

    async def _call(self, call: Any, sending: Sending) -> bool:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call(sending.body, timeout=_TIMEOUT_S)
            return True
        self.repeated.add(sending)
        return False

    # requests

    def _next(self, signal: str | None) -> Sending:
        self._number += 1
        signal = signal or SIGNALS[self._number % 3]
        return {"traces": self._traces, "metrics": self._metrics, "logs": self._logs}[signal]()

    def _traces(self) -> Sending:
        """Five traces of three spans, all of a trace in one request; every third trace has an error."""
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        resource.resource.attributes.extend(keyed(service_name="chaos"))
        rows = resource.scope_spans.add().spans
        keys = []
        for index in range(5):
            trace_id, root = self._chance.randbytes(16), self._chance.randbytes(8)
            failed = index % 3 == 0
            for step in range(3):
                span_id = root if step == 0 else self._chance.randbytes(8)
                code = Status.STATUS_CODE_ERROR if failed and step == 2 else Status.STATUS_CODE_UNSET
                now = time.time_ns()
                rows.append(
                    Span(
                        trace_id=trace_id,
                        span_id=span_id,
                        parent_span_id=b"" if step == 0 else root,
                        name=f"step {step}",
                        start_time_unix_nano=now - 10**6,
                        end_time_unix_nano=now,
                        status=Status(code=code),
                    )
                )
                keys.append((trace_id, span_id, failed))
        return Sending("traces", request.SerializeToString(), len(keys), keys)

    def _metrics(self) -> Sending:
        """Ten points of delta sums, each of value 1: what arrives in all is how many there were."""
        request = ExportMetricsServiceRequest()
        resource = request.resource_metrics.add()
        resource.resource.attributes.extend(keyed(service_name="chaos"))
        metric = resource.scope_metrics.add().metrics.add(name="chaos.done", unit="1")
        metric.sum.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
        metric.sum.is_monotonic = True
        keys = [self._chance.randrange(STREAMS) for _ in range(10)]
        for stream in keys:
            metric.sum.data_points.append(
                NumberDataPoint(
                    start_time_unix_nano=self._start_unix_nano,
                    time_unix_nano=time.time_ns(),
                    as_int=1,
                    attributes=[KeyValue(key="stream", value=AnyValue(int_value=stream))],
                )
            )
        return Sending("metrics", request.SerializeToString(), len(keys), list(keys))

    def _logs(self) -> Sending:
        request = ExportLogsServiceRequest()
        resource = request.resource_logs.add()
        resource.resource.attributes.extend(keyed(service_name="chaos"))
        rows = resource.scope_logs.add().log_records
        keys = [self._number * 10 + index for index in range(10)]
        for key in keys:
            rows.append(
                LogRecord(
                    time_unix_nano=time.time_ns(),
                    body=AnyValue(string_value=f"record {key}"),
                    attributes=[KeyValue(key="sequence", value=AnyValue(int_value=key))],
                )
            )
        return Sending("logs", request.SerializeToString(), len(keys), list(keys))
