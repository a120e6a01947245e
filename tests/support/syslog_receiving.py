"""What the tests of the syslog receiver share: one that runs, senders, and rows as a reader sees them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from emp_pipe.receivers.syslog import SyslogConfig, SyslogReceiver
from emp_pipe.self_metrics import Metrics
from tests.support.forward import PATIENCE_S, RecordingIntake, make_context, served


@dataclass(frozen=True)
class SyslogRow:
    """A record with its resource, as the official protobuf classes read it."""

    body: str
    severity: int
    level: str
    time_unix_nano: int
    resource: dict[str, Any]
    attributes: dict[str, Any]


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind) if kind else None


def syslog_rows(intake: RecordingIntake) -> list[SyslogRow]:
    found = []
    for arrival in intake.arrivals:
        if arrival.batch is None:
            continue
        request = ExportLogsServiceRequest.FromString(arrival.batch.to_block("none", topic="logs", block_id="b").payload("none"))
        for of in request.resource_logs:
            resource = {one.key: _value(one.value) for one in of.resource.attributes}
            for scope in of.scope_logs:
                assert scope.scope.name == "emp-pipe/syslog"
                for log in scope.log_records:
                    attributes = {one.key: _value(one.value) for one in log.attributes}
                    found.append(
                        SyslogRow(log.body.string_value, log.severity_number, log.severity_text, log.time_unix_nano, resource, attributes)
                    )
    return found


@dataclass
class RunningSyslog:
    """A receiver that listens, its intake, and its metrics."""

    receiver: SyslogReceiver
    intake: RecordingIntake
    metrics: Metrics
    stop_within_s: float = PATIENCE_S / 4

    def metric(self, name: str, **labels: str) -> float:
        hub = self.receiver._hub
        assert hub is not None
        hub.publish()
        return self.metrics.registry.get_sample_value(f"emp_pipe_syslog_{name}", {"component": "syslog", **labels}) or 0.0

    async def rows(self, count: int) -> list[SyslogRow]:
        """Return the rows once there are so many."""
        await self.until(lambda: len(syslog_rows(self.intake)) >= count, f"{count} rows")
        found = syslog_rows(self.intake)
        assert len(found) == count, found
        return found

    async def until(self, found: Any, what: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not found():  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.005)
        assert found(), what

    def send_udp(self, *datagrams: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for datagram in datagrams:
                sender.sendto(datagram, self.receiver.udp_addresses[0])

    async def connect(self, **tls: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.receiver.addresses[0], **tls)


@contextlib.asynccontextmanager
async def running_syslog(
    directory: Path, *, intake: RecordingIntake | None = None, clock: Any = None, stop_within_s: float = PATIENCE_S / 4, **settings: Any
) -> AsyncIterator[RunningSyslog]:
    """Run a receiver on free loopback ports for the length of the block."""
    settings = {"listen": ["127.0.0.1:0"], "udp": ["127.0.0.1:0"]} | settings
    context = make_context(directory, **({"clock": clock} if clock is not None else {}))
    receiver = SyslogReceiver("syslog", SyslogConfig(**settings), context)
    intake = intake or RecordingIntake()
    async with served(receiver, intake, context, stop_within_s):
        yield RunningSyslog(receiver, intake, context.metrics)
