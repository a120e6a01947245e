"""What lies at the other end of an exporter in the contract suite: one class per destination, each of which can be taken away."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from emp_pipe.component import Context, Exporter
from emp_pipe.exporters.error import ErrorConfig, ErrorExporter
from emp_pipe.exporters.file import FileConfig, FileExporter
from emp_pipe.exporters.forward import ForwardExporter, ForwardExporterConfig
from emp_pipe.exporters.noop import NoopConfig, NoopExporter
from emp_pipe.exporters.otlp_grpc import OtlpGrpcConfig, OtlpGrpcExporter
from emp_pipe.exporters.otlp_http import OtlpHttpConfig, OtlpHttpExporter
from emp_pipe.exporters.stdout import StdoutConfig, StdoutExporter
from tests.support.forward import Running
from tests.support.otlp_endpoint import Answer, OtlpEndpoint
from tests.support.otlp_grpc_endpoint import OtlpGrpcEndpoint
from tests.support.otlp_strict import SIGNALS


class Destination(Protocol):
    """An exporter and what lies at its other end."""

    exporter: Exporter

    def rows(self, signal: str) -> list[dict[str, Any]] | int:
        """Return what arrived; for logs with `message`, `level` and `job_id`. A destination that keeps nothing returns the count."""
        ...

    def take_away(self) -> None:
        """Make the destination unreachable."""
        ...

    def bring_back(self) -> None: ...


def log_row(row: LogRecord) -> dict[str, Any]:
    return {
        "message": row.body.string_value,
        "level": {9: "info", 17: "error"}[row.severity_number],
        "job_id": next(one.value.string_value for one in row.attributes if one.key == "job_id"),
    }


class OtlpHttpDestination:
    def __init__(self, endpoint: OtlpEndpoint, context: Context, compression: str) -> None:
        self.endpoint = endpoint
        config = OtlpHttpConfig(endpoint=endpoint.url, compression=compression)  # type: ignore[arg-type]
        self.exporter = OtlpHttpExporter("otlp_http", config, context)

    def rows(self, signal: str) -> list[dict[str, Any]]:
        assert not self.endpoint.violations
        if signal != "logs":
            return [{} for _ in self.endpoint.records(signal)]
        return [log_row(row) for row in self.endpoint.records("logs")]

    def take_away(self) -> None:
        self.endpoint.always(Answer(drop="before"))

    def bring_back(self) -> None:
        self.endpoint.always(None)


class OtlpGrpcDestination:
    def __init__(self, endpoint: OtlpGrpcEndpoint, relay: Outage, context: Context, compression: str) -> None:
        self.endpoint = endpoint
        self.relay = relay
        config = OtlpGrpcConfig(endpoint=f"http://127.0.0.1:{relay.port}", compression=compression)  # type: ignore[arg-type]
        self.exporter = OtlpGrpcExporter("otlp_grpc", config, context)

    def rows(self, signal: str) -> list[dict[str, Any]]:
        assert not self.endpoint.violations
        if signal != "logs":
            return [{} for _ in self.endpoint.records(signal)]
        return [log_row(row) for row in self.endpoint.records("logs")]

    def take_away(self) -> None:
        self.relay.away = True
        self.relay.break_connections()

    def bring_back(self) -> None:
        self.relay.away = False


class Outage:
    """A relay on loopback in front of a server, which can be away."""

    def __init__(self, port: int) -> None:
        self._to_port = port
        self.away = False
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Outage]:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.break_connections()

    def break_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if self.away:
            writer.transport.abort()
            return
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        self._writers.add(onward_writer)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65_536):
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(pump(reader, onward_writer), pump(onward_reader, writer))


class ForwardDestination:
    """Another emp-pipe, or (without a key) a peer that gets PackedForward."""

    def __init__(self, server: Running, relay: Outage, context: Context, key: str | None) -> None:
        self.server = server
        self.relay = relay
        config = ForwardExporterConfig(endpoint=f"127.0.0.1:{relay.port}", shared_key=key)  # type: ignore[arg-type]
        self.exporter = ForwardExporter("forward/central", config, context)
        self.takes_logs_only = key is None

    def rows(self, signal: str) -> list[dict[str, Any]]:
        arrivals = self.server.intake.arrivals
        blocks = [block for arrival in arrivals for block in arrival.blocks]
        blocks += [one.batch.to_block("none", topic="logs", block_id="read") for one in arrivals if one.batch is not None]
        kind = SIGNALS[signal]
        requests = [kind.request.FromString(block.payload("none")) for block in blocks if block.signal == signal]
        rows = [row for request in requests for row in kind.rows(request)]
        return [log_row(row) for row in rows] if signal == "logs" else [{} for _ in rows]

    def take_away(self) -> None:
        self.relay.away = True
        self.relay.break_connections()

    def bring_back(self) -> None:
        self.relay.away = False


class FileDestination:
    def __init__(self, directory: Path, context: Context) -> None:
        self.directory = directory / "records"
        self.exporter = FileExporter("file", FileConfig(directory=self.directory, max_file_bytes=20_000, max_files=1000), context)

    def rows(self, signal: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for path in sorted(self.directory.glob(f"{signal}-*.jsonl*")):
            text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            rows += [json.loads(line) for line in text.splitlines()]
        return rows

    def take_away(self) -> None:
        shutil.rmtree(self.directory)
        self.directory.write_text("a file where the directory was")

    def bring_back(self) -> None:
        self.directory.unlink()


class _Pipe(io.RawIOBase):
    """A stream that can break."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.broken = False

    def write(self, data: Any) -> int:
        if self.broken:
            raise OSError(5, "Input/output error")
        self.text += data
        return len(data)


class StdoutDestination:
    def __init__(self, context: Context) -> None:
        self.pipe = _Pipe()
        self.exporter = StdoutExporter("stdout", StdoutConfig(), context, stream=self.pipe)  # type: ignore[arg-type]

    def rows(self, signal: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in bytes(self.pipe.text).splitlines()]
        return rows if signal == "logs" else [row for row in rows if "message" not in row]

    def take_away(self) -> None:
        self.pipe.broken = True

    def bring_back(self) -> None:
        self.pipe.broken = False


class NoopDestination:
    def __init__(self, context: Context) -> None:
        self.exporter = NoopExporter("noop", NoopConfig(), context)

    def rows(self, signal: str) -> int:
        return self.exporter.records

    def take_away(self) -> None:
        pytest.skip("noop sends nowhere")

    def bring_back(self) -> None: ...


class ErrorDestination:
    """`error` with a rate of 0 until it is taken away."""

    def __init__(self, context: Context) -> None:
        self.exporter = ErrorExporter("error", ErrorConfig(rate=0.0), context)

    def rows(self, signal: str) -> int:
        return self.exporter.taken_records

    def take_away(self) -> None:
        self.exporter.config = ErrorConfig(rate=1.0)

    def bring_back(self) -> None:
        self.exporter.config = ErrorConfig(rate=0.0)
