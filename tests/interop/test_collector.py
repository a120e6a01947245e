"""The OpenTelemetry Collector, unmodified, behind ours: it takes what our OTLP/HTTP and Forward exporters send, all of it and once.

The Collector is the benchmarks' peer, built from the Go module proxy into `.cache/collector` (minutes, once).
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from fluent.sender import FluentSender

from bench import configs
from demo.otlp_endpoint import OtlpEndpoint
from demo.processes import EmpPipe, free_port
from tests.interop import counterparts

COUNT = 400


@pytest.fixture(scope="module")
def collector_program() -> Path:
    try:
        return counterparts.collector()
    except counterparts.Absent as reason:
        pytest.skip(str(reason))


@contextmanager
def running_collector(
    program: Path, receiver: Literal["fluent_forward", "otlp"], port: int, destination: str, directory: Path
) -> Iterator[None]:
    config = configs.collector(receiver=receiver, port=port, destination=destination, compression="gzip", storage=None)
    config_file = configs.write(directory / "collector.json", config)
    with (directory / "collector.log").open("wb") as log:
        process = subprocess.Popen([program, "--config", config_file], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield
        assert process.poll() is None, (directory / "collector.log").read_text()[-2000:]
    finally:
        process.terminate()
        process.wait(30)


def passed_through(exporter: dict[str, Any], endpoint: OtlpEndpoint, directory: Path) -> list[Any]:
    """Send records through an edge with one exporter; return what reaches the endpoint behind the Collector, in the order of sequence."""
    port = free_port()
    config_file = directory / "edge.yaml"
    config = {
        "receivers": {"forward": {"listen": f"127.0.0.1:{port}"}, "otlp_grpc": False, "otlp_http": False},
        # Only logs go this way; an exporter by Forward takes nothing of what these make.
        "processors": {"red_metrics": False, "tail_sample": False, "aggregate": False},
        "exporters": {"file": False, **exporter},
    }
    config_file.write_text(json.dumps(config))
    edge = EmpPipe("edge", directory, {}, {}, config_file=config_file)
    try:
        edge.wait_ready()
        with FluentSender("interop", host="127.0.0.1", port=port, nanosecond_precision=True) as sender:
            for number in range(COUNT):
                fields = {
                    "level": "warn",
                    "message": f"record {number} käse",
                    "machine_id": "gpu-7f3a",
                    "job_id": "job-1",
                    "sequence": number,
                }
                assert sender.emit("python", fields)
        assert endpoint.wait_for_rows(COUNT, timeout_s=60), f"{len(endpoint.received.rows)} arrived\n{edge.last_lines()}"
        time.sleep(0.3)  # a repeat would come now
    finally:
        exit_code = edge.stop()
    assert exit_code == 0, edge.last_lines()
    return sorted(endpoint.received.rows, key=lambda row: int(row.attributes["sequence"]))


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_the_collector_takes_our_otlp_requests(compression: str, collector_program: Path, tmp_path: Path) -> None:
    endpoint, port = OtlpEndpoint(), free_port()
    exporter = {"otlp_http": {"endpoint": f"http://127.0.0.1:{port}", "compression": compression}}
    with running_collector(collector_program, "otlp", port, endpoint.url, tmp_path):
        rows = passed_through(exporter, endpoint, tmp_path)
    endpoint.close()
    assert [row.attributes["sequence"] for row in rows] == list(range(COUNT))
    for row in rows:
        assert row.body == f"record {row.attributes['sequence']} käse"
        assert (row.severity_number, row.severity_text) == (13, "warn")
        assert row.resource["machine_id"] == "gpu-7f3a"
        assert row.attributes["job_id"] == "job-1"


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_the_collector_takes_and_acknowledges_our_forward_chunks(compression: str, collector_program: Path, tmp_path: Path) -> None:
    endpoint, port = OtlpEndpoint(), free_port()
    exporter = {"forward": {"endpoint": f"127.0.0.1:{port}", "compression": compression, "require_ack": True}}
    with running_collector(collector_program, "fluent_forward", port, endpoint.url, tmp_path):
        rows = passed_through(exporter, endpoint, tmp_path)
    endpoint.close()
    # Fluent Forward has no resource and no severity: what the Collector makes of a record is its own, the record's fields are ours.
    assert [row.attributes["sequence"] for row in rows] == list(range(COUNT))
    for row in rows:
        assert row.body == f"record {row.attributes['sequence']} käse"
        assert row.attributes["job_id"] == "job-1"
        assert row.attributes["machine_id"] == "gpu-7f3a"
