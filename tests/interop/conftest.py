"""An edge with every kind of Forward listener and one for HTTP JSON, before an endpoint of the official classes; and who took part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.otlp_endpoint import LogRow, OtlpEndpoint
from demo.processes import EmpPipe, free_port, write_certificates
from tests.interop import counterparts

SHARED_KEY = "interop-shared-key"
USER, PASSWORD = "interop-user", "interop-password"
TOKEN = "interop-token"
PORTS = ("plain", "tls", "secure", "users", "http_json")


@dataclass(frozen=True)
class Edge:
    """A running edge: the ports of its listeners, and what has left it by OTLP."""

    process: EmpPipe
    endpoint: OtlpEndpoint
    plain_port: int
    tls_port: int
    secure_port: int
    users_port: int
    http_json_port: int
    unix_path: Path
    ca_file: Path

    def rows(self, count: int) -> list[LogRow]:
        """Return what has arrived, when `count` records have; fails after a minute without them."""
        if not self.endpoint.wait_for_rows(count, timeout_s=60):
            pytest.fail(f"{len(self.endpoint.received.rows)} of {count} records arrived\n{self.process.last_lines()}")
        return list(self.endpoint.received.rows)


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    write_certificates(tmp_path)
    tls = {"cert_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}
    ports = {name: free_port() for name in PORTS}
    unix_path = tmp_path / "forward.sock"

    def listen(name: str) -> str:
        return f"127.0.0.1:{ports[name]}"

    config_file = tmp_path / "edge.yaml"
    receivers = {
        "forward": {"listen": listen("plain"), "unix_path": str(unix_path)},
        "forward/tls": {"listen": listen("tls"), "tls": tls},
        "forward/secure": {"listen": listen("secure"), "tls": tls, "shared_key": SHARED_KEY},
        "forward/users": {"listen": listen("users"), "tls": tls, "shared_key": SHARED_KEY, "users": {USER: PASSWORD}},
        "http_json": {"listen": listen("http_json"), "token": TOKEN},
    }
    config_file.write_text(json.dumps({"receivers": receivers}))  # JSON is YAML
    endpoint = OtlpEndpoint()
    process = EmpPipe("edge", tmp_path, {}, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint.url}, config_file=config_file)
    try:
        process.wait_ready()
        yield Edge(process, endpoint, *(ports[name] for name in PORTS), unix_path, tmp_path / "ca.pem")
        assert process.stop() == 0, process.last_lines()
    finally:
        process.stop()
        endpoint.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = counterparts.summary()
    if lines:
        terminalreporter.section("counterparts")
        for line in lines:
            terminalreporter.write_line(line)
    if os.environ.get("CI") and not any(" present: " in line for line in lines):
        terminalreporter.write_line("no counterpart was present: nothing was shown")
