"""How each side is started for OTLP: in by HTTP or gRPC, out by HTTP or gRPC, with or without a tail sampler between.

The Collector's settings are the cheapest lossless ones that we found for the work: its own telemetry off, the sending queue blocking
instead of dropping, no batch processor. Behind its tail sampling, which passes on trace by trace, the sending queue batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from bench import configs
from bench.configs import Compression
from bench.runs import Variant
from bench.sink import SinkAddress
from bench.subjects import Subject, collector_command, emp_pipe_command, free_ports

Protocol = Literal["http", "grpc"]
Buffer = Literal["memory", "sqlite"]


def emp_pipe(
    name: str,
    *,
    protocol: Protocol,
    compression: Compression = "none",
    buffer: Buffer = "memory",
    processors: dict[str, Any] | None = None,
    out: Protocol | None = None,
) -> Variant:
    """In and out (unless `out` says otherwise) by the same protocol, with these processors and no others."""

    def start(subject: Subject, folder: Path, sink: SinkAddress) -> int:
        (port,) = free_ports(1)
        exporter = (
            {"otlp_http": {"endpoint": sink.url, "compression": compression}}
            if (out or protocol) == "http"
            else {"otlp_grpc": {"endpoint": f"http://{sink.grpc}", "compression": compression}}
        )
        config = {
            "data_dir": str(folder / "data"),
            "machine_id": "gpu-bench",
            "http": {"enabled": False},
            "buffer": buffer,
            "receivers": {f"otlp_{protocol}": {"listen": f"127.0.0.1:{port}"}},
            "processors": processors or [],
            "exporters": exporter,
            "log_level": "warning",
        }
        subject.start(emp_pipe_command("emp-pipe", configs.write(folder / "emp-pipe.yaml", config), [port]))
        return port

    return Variant(name, start)


def collector(
    name: str,
    *,
    protocol: Protocol,
    compression: Compression = "none",
    durable: bool = False,
    tail_sampling: dict[str, Any] | None = None,
    out: Protocol | None = None,
) -> Variant:
    """In and out (unless `out` says otherwise) by the same protocol; durable: its sending queue in file_storage with an fsync a write."""

    def start(subject: Subject, folder: Path, sink: SinkAddress) -> int:
        (port,) = free_ports(1)
        config = collector_config(
            protocol=protocol,
            port=port,
            sink=sink,
            compression=compression,
            storage=folder / "storage" if durable else None,
            tail_sampling=tail_sampling,
            out=out or protocol,
        )
        subject.start(collector_command("collector", configs.write(folder / "collector.yaml", config), [port]))
        return port

    return Variant(name, start)


def collector_config(
    *,
    protocol: Protocol,
    port: int,
    sink: SinkAddress,
    compression: str,
    storage: Path | None,
    tail_sampling: dict[str, Any] | None,
    out: Protocol,
) -> dict[str, Any]:
    queue: dict[str, Any] = {"block_on_overflow": True}
    extensions: dict[str, Any] = {}
    if storage is not None:
        queue["storage"] = "file_storage"
        extensions["file_storage"] = {"directory": str(storage), "create_directory": True, "fsync": True}
    processors: dict[str, Any] = {}
    if tail_sampling is not None:
        processors["tail_sampling"] = tail_sampling
        queue |= {"sizer": "items", "queue_size": 1_000_000, "batch": {"flush_timeout": "200ms", "min_size": 2000, "max_size": 4000}}
    name, exporter = (
        ("otlp_http", {"endpoint": sink.url}) if protocol == "http" else ("otlp_grpc", {"endpoint": sink.grpc, "tls": {"insecure": True}})
    )
    pipeline = {"receivers": ["otlp"], "processors": list(processors), "exporters": [name]}
    return {
        "extensions": extensions,
        "receivers": {"otlp": {"protocols": {protocol: {"endpoint": f"127.0.0.1:{port}"}}}},
        "processors": processors,
        "exporters": {name: {**exporter, "compression": compression, "sending_queue": queue}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            "extensions": list(extensions),
            "pipelines": {"traces": pipeline} if tail_sampling is not None else dict.fromkeys(("logs", "traces", "metrics"), pipeline),
        },
    }


def collector_tail_sampling(decision_wait_s: float, traces: int) -> dict[str, Any]:
    """Every trace with an error and 10 % of the others, in the cheapest form: the first policy that matches decides."""
    return {
        "decision_wait": f"{decision_wait_s:g}s",
        "num_traces": traces,
        "sample_on_first_match": True,
        "policies": [
            {"name": "errors", "type": "status_code", "status_code": {"status_codes": ["ERROR"]}},
            {"name": "some", "type": "probabilistic", "probabilistic": {"sampling_percentage": 10}},
        ],
    }
