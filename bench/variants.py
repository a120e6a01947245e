"""How each side is started for each kind of work: what the cases compare."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bench import configs
from bench.configs import Compression
from bench.runs import Variant
from bench.sink import SinkAddress
from bench.subjects import Subject, collector_command, emp_pipe_command, free_ports

SHARED_KEY = "bench-only"


def emp_pipe(name: str, *, compression: Compression, buffer: Literal["memory", "sqlite"], role: str = "run") -> Variant:
    """Forward in, OTLP/HTTP out. `role`: "run" has `processors: []`, "edge" and "central" bring their own defaults."""

    def start(subject: Subject, folder: Path, sink: SinkAddress) -> int:
        (port,) = free_ports(1)
        config = configs.emp_pipe(
            data_dir=folder / "data", port=port, buffer=buffer, exporters=configs.otlp_http(sink.url, compression), of_role=role != "run"
        )
        subject.start(emp_pipe_command(f"emp-pipe-{role}", configs.write(folder / "emp-pipe.yaml", config), [port], role=role))
        return port

    return Variant(name, start)


def emp_pipe_chain(name: str, *, roles: bool) -> Variant:
    """An edge that sends to a central over Forward with a shared key, both durable; central sends OTLP/HTTP with gzip."""

    def start(subject: Subject, folder: Path, sink: SinkAddress) -> int:
        edge_port, central_port = free_ports(2)
        central = configs.emp_pipe(
            data_dir=folder / "central-data",
            port=central_port,
            buffer="sqlite",
            exporters=configs.otlp_http(sink.url, "gzip"),
            of_role=roles,
            receiver={"shared_key": SHARED_KEY},
        )
        edge = configs.emp_pipe(
            data_dir=folder / "edge-data",
            port=edge_port,
            buffer="sqlite",
            exporters=configs.forward("127.0.0.1", central_port, SHARED_KEY),
            of_role=roles,
        )
        role = "central" if roles else "run"
        subject.start(emp_pipe_command("central", configs.write(folder / "central.yaml", central), [central_port], role=role))
        role = "edge" if roles else "run"
        subject.start(emp_pipe_command("edge", configs.write(folder / "edge.yaml", edge), [edge_port], role=role))
        return edge_port

    return Variant(name, start)


def collector(name: str, *, compression: Compression, durable: bool) -> Variant:
    """The Collector, fluent_forward in and otlp_http out; durable: its sending queue in file_storage with an fsync a write."""

    def start(subject: Subject, folder: Path, sink: SinkAddress) -> int:
        (port,) = free_ports(1)
        config = configs.collector(
            receiver="fluent_forward",
            port=port,
            destination=sink.url,
            compression=compression,
            storage=folder / "storage" if durable else None,
        )
        subject.start(collector_command("collector", configs.write(folder / "collector.yaml", config), [port]))
        return port

    return Variant(name, start)


def collector_chain(name: str) -> Variant:
    """Two durable Collectors. It has no Forward exporter, so the hop between them is OTLP/HTTP with gzip."""

    def start(subject: Subject, folder: Path, sink: SinkAddress) -> int:
        edge_port, central_port = free_ports(2)
        central = configs.collector(
            receiver="otlp", port=central_port, destination=sink.url, compression="gzip", storage=folder / "central-storage"
        )
        edge = configs.collector(
            receiver="fluent_forward",
            port=edge_port,
            destination=f"http://127.0.0.1:{central_port}",
            compression="gzip",
            storage=folder / "edge-storage",
        )
        subject.start(collector_command("central", configs.write(folder / "central.yaml", central), [central_port]))
        subject.start(collector_command("edge", configs.write(folder / "edge.yaml", edge), [edge_port]))
        return edge_port

    return Variant(name, start)


def idle_edge(name: str, *, otlp: bool) -> Variant:
    """An edge on its defaults, with only its addresses and its folder set: SQLite, the rotating file exporter, Forward and HTTP.

    `otlp`: with its receivers of OTLP too, by gRPC and by HTTP, and what it does with traces and metrics."""

    def start(subject: Subject, folder: Path, sink: SinkAddress) -> int:
        port, http_port, grpc_port, otlp_http_port = free_ports(4)
        addresses = {"otlp_grpc": grpc_port, "otlp_http": otlp_http_port}
        config = {
            "data_dir": str(folder / "data"),
            "http": {"listen": f"127.0.0.1:{http_port}"},
            "receivers": {
                "forward": {"listen": f"127.0.0.1:{port}"},
                **{receiver: {"listen": f"127.0.0.1:{own_port}"} if otlp else False for receiver, own_port in addresses.items()},
            },
        }
        ports = [port, http_port, *(addresses.values() if otlp else ())]
        subject.start(emp_pipe_command("edge", configs.write(folder / "edge.yaml", config), ports, role="edge"))
        return port

    return Variant(name, start)
