"""Dead letters for tests of the command: put into the log of a process that does not run, under the destinations of its configuration."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from emp_pipe._core import Batch, Block
from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
from emp_pipe.clock import SystemClock
from emp_pipe.component import Context
from emp_pipe.log.protocol import Append, DeadLetter, DeadReason, GroupSpec, Topic
from emp_pipe.self_metrics import Metrics
from tests.support.command import run
from tests.support.command_bench import Bench

SECOND_NS = 1_000_000_000


def log_block(*bodies: str, attributes: Mapping[str, str] | None = None, block_id: str = "b-1") -> Block:
    """Return a block of log records with these bodies, each with the attributes."""
    request = ExportLogsServiceRequest()
    rows = request.resource_logs.add().scope_logs.add().log_records
    for number, body in enumerate(bodies):
        row = rows.add(time_unix_nano=1_790_000_000_000_000_000 + number)
        row.body.string_value = body
        for key, value in (attributes or {}).items():
            row.attributes.add(key=key).value.string_value = value
    return Batch.from_otlp(request.SerializeToString(), signal="logs").to_block("gzip", topic="logs", block_id=block_id)


def rows_letter(component: str, *bodies: str, reason: DeadReason = DeadReason.REFUSED, **fields: Any) -> DeadLetter:
    """Return rows that a destination gave up."""
    attributes = fields.pop("attributes", None)
    block = log_block(*bodies, attributes=attributes)
    facts = {"detail": "HTTP 400", "attempts": 3, "time_unix_nano": SystemClock().unix_nano(), **fields}
    return DeadLetter(component, reason, payload=bytes(memoryview(block)), header=block.header, records=len(bodies), **facts)


def bytes_letter(payload: bytes, reason: DeadReason = DeadReason.ENTRY_INVALID, **fields: Any) -> DeadLetter:
    """Return bytes that a receiver could not read."""
    facts = {"detail": "an entry ends early", "peer": "10.0.0.7:5", "offset": 17, "time_unix_nano": SystemClock().unix_nano(), **fields}
    return DeadLetter("forward", reason, payload=payload, **facts)


def bury(bench: Bench, *letters: DeadLetter, groups: tuple[str, ...] = ("file",)) -> None:
    """Keep dead letters in the bench's log, ids from 1 on; its process must not run."""

    async def work() -> None:
        clock = SystemClock()
        log = SqliteLog("buffer", SqliteConfig(), Context(clock, Metrics(), bench.data_dir, "m1", "run"))
        await log.open([GroupSpec(name, frozenset([Topic.LOGS, Topic.TRACES, Topic.METRICS])) for name in groups])
        await log.append(Append([], dead=letters))
        await log.close(clock.monotonic_s() + 30)

    bench.data_dir.mkdir(parents=True, exist_ok=True)
    asyncio.run(work())


def dlq(bench: Bench, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `emp-pipe dlq` on the bench."""
    return run("dlq", *arguments, "--data-dir", str(bench.data_dir), "--config", str(bench.file), **variables)


def answers(bench: Bench, *arguments: str) -> list[dict[str, Any]]:
    """Run `emp-pipe dlq` and return its JSON lines."""
    result = dlq(bench, *arguments)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def log_bytes(directory: Path) -> bytes:
    """Return all that lies on disk of a log."""
    return b"".join(path.read_bytes() for path in sorted((directory / "log").glob("log.db*")))
