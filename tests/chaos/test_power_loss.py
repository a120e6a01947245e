"""A power cut of a whole pipeline at any moment: receivers, log, sampler, aggregator and the exporter of files, directory syncs included.

    Forward and OTLP clients → receivers → log → tail_sample, aggregate → log → files

Whatever of the disk survives (`tests/support/process_disk.py`), what was acknowledged is in the files or in the log, which opens and is
whole. The same run with `synchronous=OFF` loses something, or this test could not tell. The seed is printed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import apsw
import msgpack
import pytest
import yaml
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from emp_pipe._core import Block
from emp_pipe.buffers import sqlite
from emp_pipe.cli import Sources
from emp_pipe.clock import SystemClock
from emp_pipe.pipeline import Pipeline
from emp_pipe.self_metrics import Metrics
from tests.chaos.fleet import EXTRA_ROUNDS, PATIENCE_S, seeded
from tests.support.command import free_port
from tests.support.otlp_sender import OtlpSender
from tests.support.process_disk import ProcessDisk, ProcessVFS
from tests.support.recording_vfs import write_files

CHUNKS = 40 + 4 * EXTRA_ROUNDS
CHUNK_RECORDS = 5


def configuration(directory: Path, data_dir: Path, forward_port: int, otlp_port: int) -> Any:
    file = directory / "power.yaml"
    config = {
        "data_dir": str(data_dir),
        "http": {"enabled": False},
        "buffer": {"type": "sqlite", "min_free_bytes": 0},
        "shutdown": {"deadline_s": 10},
        "receivers": {"forward": {"listen": f"127.0.0.1:{forward_port}"}, "otlp_http": {"listen": f"127.0.0.1:{otlp_port}"}},
        "processors": {
            "tail_sample": {"policies": [{"type": "probability", "percent": 100}], "decision_wait_s": 0.1},
            "aggregate": {"interval_s": 0.1},
        },
        "exporters": {"file": {"gzip_old": False, "max_file_bytes": 20_000, "max_files": 1000}},
    }
    file.write_text(yaml.safe_dump(config))
    return Sources("run", file).load()[0]


async def send_logs(port: int, disk: ProcessDisk, chance: Random) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for chunk in range(CHUNKS):
        numbers = range(chunk * CHUNK_RECORDS, (chunk + 1) * CHUNK_RECORDS)
        padding = "x" * chance.choice((10, 500, 3000))
        entries = b"".join(msgpack.packb([1_760_000_000, {"message": f"record {number} {padding}"}]) for number in numbers)
        writer.write(msgpack.packb(["power", entries, {"chunk": str(chunk)}]))
        assert str(chunk).encode() in await reader.read(4096)
        disk.mark(("logs", [f"record {number} {padding}" for number in numbers]))
        await asyncio.sleep(chance.random() * 0.03)
    writer.close()


async def send_otlp(port: int, disk: ProcessDisk, seed: int) -> None:
    sender = OtlpSender({}, 0, seed)
    async with aiohttp.ClientSession() as session:
        for number in range(CHUNKS):
            one = sender._traces() if number % 2 else sender._metrics()
            url = f"http://127.0.0.1:{port}/v1/{one.signal}"
            async with session.post(url, data=one.body, headers={"Content-Type": "application/x-protobuf"}) as answer:
                assert answer.status == 200
            disk.mark((one.signal, [key[1].hex() for key in one.keys] if one.signal == "traces" else one.records))
            await asyncio.sleep(0.02)


async def run_pipeline(directory: Path, disk: ProcessDisk, synchronous: str, seed: int) -> None:
    """Run everything, and mark on the disk what was acknowledged."""
    vfs = ProcessVFS(f"process-{synchronous}", disk)
    forward_port, otlp_port = free_port(), free_port()
    with pytest.MonkeyPatch.context() as patch, disk.recording():
        patch.setattr(sqlite, "COMPONENT", partial(sqlite.SqliteLog, vfs=f"process-{synchronous}", synchronous=synchronous))
        pipeline = Pipeline(configuration(directory, disk.root / "data", forward_port, otlp_port), SystemClock(), Metrics())
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(pipeline.run())
            await pipeline.started.wait()
            async with asyncio.TaskGroup() as senders:
                senders.create_task(send_logs(forward_port, disk, Random(seed)))
                senders.create_task(send_otlp(otlp_port, disk, seed))
            pipeline.stop()
            await running
    vfs.unregister()


class Image:
    """What a power cut has left, as a restart would find it."""

    def __init__(self, directory: Path) -> None:
        self.logs: set[str] = set()
        self.traces: set[str] = set()
        self.points = 0
        for path in sorted(directory.rglob("*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:  # a torn last line is cut off at a start
                self._take_row(path.name, json.loads(line))
        database = directory / "data" / "log" / "log.db"
        self.verdict = "there is no database"
        if database.exists():
            self._take_database(database)

    def _take_row(self, name: str, row: dict[str, Any]) -> None:
        if name.startswith("logs"):
            self.logs.add(row["message"])
        elif name.startswith("traces"):
            spans = [span for resource in row["resourceSpans"] for scope in resource["scopeSpans"] for span in scope["spans"]]
            self.traces.update(span["spanId"] for span in spans)
        else:
            metrics = [one for resource in row["resourceMetrics"] for scope in resource["scopeMetrics"] for one in scope["metrics"]]
            self.points += sum(int(point["asInt"]) for metric in metrics for point in metric["sum"]["dataPoints"])

    def _take_database(self, path: Path) -> None:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self.verdict = ", ".join(str(row[0]) for row in connection.execute("PRAGMA integrity_check"))
        for header, payload in connection.execute("SELECT header, payload FROM blocks"):
            block = Block(header, payload)
            message = block.payload("none")
            if block.signal == "logs":
                self.logs.update(row.body.string_value for row in rows_of(ExportLogsServiceRequest.FromString(message), "resource_logs"))
            elif block.signal == "traces":
                self.traces.update(row.span_id.hex() for row in rows_of(ExportTraceServiceRequest.FromString(message), "resource_spans"))
            else:
                for metric in rows_of(ExportMetricsServiceRequest.FromString(message), "resource_metrics"):
                    self.points += sum(point.as_int for point in metric.sum.data_points)
        connection.close()


def rows_of(request: Any, resources: str) -> Iterator[Any]:
    for resource in getattr(request, resources):
        for scope in getattr(resource, resources.replace("resource", "scope")):
            yield from getattr(scope, {"resource_logs": "log_records", "resource_spans": "spans", "resource_metrics": "metrics"}[resources])


def broken_promises(disk: ProcessDisk, directory: Path, chance: Random) -> list[str]:
    """Cut the power behind each acknowledgement, or a little later; say what of all that was acknowledged before is in no image."""
    broken: list[str] = []
    logs: set[str] = set()
    traces: set[str] = set()
    points = 0
    for index, event in enumerate(disk.events):
        if event.kind != "mark":
            continue
        signal, keys = event.what
        if signal == "logs":
            logs.update(keys)
        elif signal == "traces":
            traces.update(keys)
        else:
            points += keys
        count = min(index + 1 + chance.choice((0, 0, 1, 3, 10)), len(disk.events))
        image_directory = directory / f"cut-{index}"
        for name, content in disk.after_power_cut(count, chance).items():
            (image_directory / name).parent.mkdir(parents=True, exist_ok=True)
            write_files({name: content}, image_directory)
        try:
            image = Image(image_directory)
        except apsw.Error as error:
            broken.append(f"cut {index}: {type(error).__name__}: {error}")
            continue
        if image.verdict != "ok":
            broken.append(f"cut {index}: {image.verdict}")
        for what, lost in (("logs", logs - image.logs), ("spans", traces - image.traces)):
            if lost:
                broken.append(f"cut {index}: lost {len(lost)} {what}, such as {min(lost)[:40]}")
        if image.points < points:
            broken.append(f"cut {index}: lost {points - image.points} points")
    return broken


async def run_and_cut(tmp_path: Path, synchronous: str) -> list[str]:
    chance, started_s = seeded(), time.monotonic()
    root = tmp_path / "root"
    root.mkdir()
    disk = ProcessDisk(root)
    await run_pipeline(tmp_path, disk, synchronous, chance.getrandbits(32))
    marks = sum(event.kind == "mark" for event in disk.events)
    assert marks == 2 * CHUNKS
    broken = await asyncio.to_thread(broken_promises, disk, tmp_path, chance)
    print(f"{synchronous}: {len(disk.events)} events, {marks} acknowledgements, {len(broken)} broken, {time.monotonic() - started_s:.1f} s")
    return broken


async def test_every_acknowledged_record_is_in_every_image_that_a_power_cut_may_leave(tmp_path: Path) -> None:
    assert await run_and_cut(tmp_path, "FULL") == []


async def test_the_same_process_without_syncs_loses_what_it_acknowledged(tmp_path: Path) -> None:
    assert any("lost" in promise or "Error" in promise for promise in await run_and_cut(tmp_path, "OFF"))
