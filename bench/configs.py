"""The configurations of both sides, written as JSON (which is YAML) so that no template has to be filled in.

The Collector's are the cheapest lossless ones that we found for the work: no telemetry of its own, the sending queue blocking instead of
dropping, no batch processor (measured: 8.6 instead of 7.6 µs a record uncompressed, 14.0 instead of 14.3 with gzip).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

Compression = Literal["none", "gzip"]


def collector(
    *, receiver: Literal["fluent_forward", "otlp"], port: int, destination: str, compression: Compression, storage: Path | None
) -> dict[str, Any]:
    """Return a Collector's configuration. `storage`: a persistent sending queue there, an fsync for each write."""
    queue: dict[str, Any] = {"block_on_overflow": True}
    extensions: dict[str, Any] = {}
    if storage is not None:
        queue["storage"] = "file_storage"
        extensions["file_storage"] = {"directory": str(storage), "create_directory": True, "fsync": True}
    address = f"127.0.0.1:{port}"
    settings = {"endpoint": address} if receiver == "fluent_forward" else {"protocols": {"http": {"endpoint": address}}}
    return {
        "extensions": extensions,
        "receivers": {receiver: settings},
        "exporters": {"otlp_http": {"endpoint": destination, "compression": compression, "sending_queue": queue}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
            "extensions": list(extensions),
            "pipelines": {"logs": {"receivers": [receiver], "exporters": ["otlp_http"]}},
        },
    }


def write(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(json.dumps(config, indent=1))
    return path


def emp_pipe(
    *,
    data_dir: Path,
    port: int,
    buffer: Literal["memory", "sqlite"] | dict[str, Any],
    exporters: dict[str, Any],
    of_role: bool = False,
    receiver: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return an emp-pipe's configuration: Forward in on loopback, no HTTP port.

    `of_role`: it is laid over a role, whose processors it keeps and whose stand-in for a missing destination (`file`) it leaves out."""
    config: dict[str, Any] = {
        "data_dir": str(data_dir),
        "machine_id": "gpu-bench",
        "http": {"enabled": False},
        "buffer": buffer,
        "receivers": {"forward": {"listen": f"127.0.0.1:{port}", **(receiver or {})}},
        "exporters": exporters,
        "log_level": "warning",
    }
    if of_role:
        config["exporters"] = {**exporters, "file": False}
    else:
        config["processors"] = []
    return config


def otlp_http(destination: str, compression: Compression) -> dict[str, Any]:
    return {"otlp_http": {"endpoint": destination, "compression": compression}}


def forward(host: str, port: int, shared_key: str) -> dict[str, Any]:
    return {"forward": {"endpoint": f"{host}:{port}", "shared_key": shared_key}}
