"""What durability costs, and how soon emp-pipe serves again with a large backlog on the disk.

Rules: durable (SQLite, full sync, acks) at most 35 % more CPU per record than the same pipeline with the memory buffer and the same
compression, aim 20 %; serving within 2 s of a start with 1 GB of backlog.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from bench import configs, variants
from bench.figures import Figure, of_pairs
from bench.load import Load
from bench.runs import Workbench
from bench.subjects import Subject, emp_pipe_command, free_ports

MOST_MORE_CPU = 0.35
BACKLOG_BYTES = 1_000_000_000
SERVING_WITHIN_S = 2.0


def run_durable_cost(bench: Workbench, pairs: int, say: Callable[[str], None]) -> list[Figure]:
    """CPU per record with the SQLite buffer beside the memory buffer: acks, gzip, everything else the same."""
    durable = variants.emp_pipe("sqlite", compression="gzip", buffer="sqlite")
    memory = variants.emp_pipe("memory", compression="gzip", buffer="memory")
    load = Load(0, 100_000, ack=True)
    cpu: dict[str, list[float]] = {"sqlite": [], "memory": []}
    for number in range(pairs):
        for variant in (durable, memory) if number % 2 == 0 else (memory, durable):
            run = bench.run(variant, load)
            cpu[variant.name].append(run.cpu_us_per_record)
            say(f"durable_vs_memory {variant.name}: {run.cpu_us_per_record:.3f} µs")
    figure = of_pairs("durable_vs_memory_buffer", "CPU µs per record", cpu["sqlite"], cpu["memory"], bar=1 / (1 + MOST_MORE_CPU))
    assert figure.ratio is not None
    figure.note = f"{(1 / figure.ratio - 1) * 100:.0f} % more than with the memory buffer; at most {MOST_MORE_CPU * 100:.0f} %, aim 20 %"
    return [figure]


def run_restart(bench: Workbench, pairs: int, say: Callable[[str], None]) -> list[Figure]:
    """Seconds from the start of a process with 1 GB of backlog until its receiver accepts; its first answer is an ack."""
    data_dir = bench.folder / "backlog"
    held_bytes = asyncio.run(_fill(data_dir))
    say(f"restart: a backlog of {held_bytes:,} bytes")
    seconds = []
    try:
        for number in range(min(pairs, 3)):
            (port,) = free_ports(1)
            exporters = configs.otlp_http("http://127.0.0.1:9", "gzip")
            config = configs.emp_pipe(data_dir=data_dir, port=port, buffer="sqlite", exporters=exporters)
            file = configs.write(bench.folder / f"restart-{number}.json", config)
            subject = Subject("restart", bench.folder)
            began_s = time.monotonic()
            subject.start(emp_pipe_command("restart", file, [port]))
            seconds.append(time.monotonic() - began_s)
            subject.check_alive()
            subject.stop()
            say(f"restart: serving after {seconds[-1]:.2f} s")
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    return [Figure("restart_with_1_gb_of_backlog", sorted(seconds)[len(seconds) // 2], "s", aim=SERVING_WITHIN_S)]


async def _fill(data_dir: Path) -> int:
    from emp_pipe._core import Batch
    from emp_pipe.buffers.sqlite import SqliteConfig, SqliteLog
    from emp_pipe.clock import SystemClock
    from emp_pipe.component import Context
    from emp_pipe.log.protocol import Append, GroupSpec, Topic
    from emp_pipe.self_metrics import Metrics

    clock = SystemClock()
    log = SqliteLog("buffer", SqliteConfig(min_free_bytes=0), Context(clock, Metrics(), data_dir, "gpu-bench", "run"))
    await log.open([GroupSpec("otlp_http", frozenset([Topic.LOGS, Topic.TRACES, Topic.METRICS]))])
    number = 0
    while log.usage().held_bytes < BACKLOG_BYTES:
        blocks = []
        for _ in range(8):
            request = b"\n" + _varint(60_000) + b"\x12" + _varint(59_996) + b"\x12" + _varint(59_992) + b"\x2a" + _varint(59_988) + b"\n"
            body = request + _varint(59_984) + os.urandom(29_992).hex().encode()
            batch = Batch.from_otlp(body, signal="logs")
            blocks.append(batch.to_block("none", topic="logs", block_id=f"bench-{number}"))
            number += 1
        await log.append(Append(blocks))
    held_bytes = log.usage().held_bytes
    await log.close(clock.monotonic_s() + 60)
    return held_bytes


def _varint(number: int) -> bytes:
    """Return a number of five digits as protobuf writes it, three bytes."""
    return bytes([number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14])
