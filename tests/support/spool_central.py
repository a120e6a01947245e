"""A central with its log in Redis, as the tests of Redis going away use it: Forward and both OTLP receivers, and what it says."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.support.command import free_port, until
from tests.support.command_bench import Bench
from tests.support.redis_server import RedisServer

QUICK = "connect_timeout_s: 1, timeout_s: 1, patience_s: 1, lease_s: 1"


class Central(Bench):
    """A bench with Forward and both OTLP receivers, and a Redis of its own."""

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.server = server
        self.otlp_port, self.grpc_port = free_port(), free_port()
        super().__init__(directory)

    def set_up(self, spool: str = "", *, buffer: str = "", exporters: str = "{file: }", more: str = "") -> None:
        """`spool`: its settings; "": what follows from the rest."""
        spool = f", spool: {{{spool}}}" if spool else ""
        self.write(
            buffer=buffer or f'{{type: redis, url: "{self.server.url}", {QUICK}{spool}}}',
            exporters=exporters,
            receivers=f'{{forward: {{listen: "127.0.0.1:{self.port}", detect_duplicates: all}}, '
            f'otlp_http: {{listen: "127.0.0.1:{self.otlp_port}"}}, otlp_grpc: {{listen: "127.0.0.1:{self.grpc_port}"}}}}',
            more=more,
        )

    def spool(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.get("/readyz")[1])["buffer"]["spool"]
        return found

    def until_drained(self) -> None:
        until(lambda: self.metric("emp_pipe_spool_state", state="idle") == 1, "the spool is empty")

    def post(self, *numbers: int, timeout_s: float = 20) -> tuple[int, dict[str, str]]:
        """Send records by OTLP/HTTP; return status and headers."""
        headers = {"Content-Type": "application/x-protobuf"}
        address = f"http://127.0.0.1:{self.otlp_port}/v1/logs"
        request = urllib.request.Request(address, otlp(*numbers).SerializeToString(), headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}

    def check_books(self) -> None:
        """Both equations, as `/metrics` says them."""
        terms: dict[str, dict[str, float]] = {}
        for line in self.get("/metrics")[1].splitlines():
            found = re.match(r"emp_pipe_(receiver|group)_(held_)?records(?:_total)?\{(.*)\} (\S+)", line)
            if found:
                labels = dict(re.findall(r'(\w+)="([^"]*)"', found[3]))
                key = labels.get("component") or f"{labels['topic']} {labels['group']}"
                outcome = "held" if found[2] else labels["outcome"]
                of = terms.setdefault(f"{found[1]} {key}", {})
                of[outcome] = of.get(outcome, 0) + float(found[4])
        assert terms
        for key, of in terms.items():
            total = of["received" if key.startswith("receiver") else "appended"]
            rest = sum(
                value for name, value in of.items() if name not in ("received",) and (key.startswith("receiver") or name != "appended")
            )
            assert total == rest, f"{key}: {of}"


def otlp(*numbers: int) -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    records = request.resource_logs.add().scope_logs.add().log_records
    for number in numbers:
        records.add(time_unix_nano=1_760_000_000_000_000_000 + number).body.string_value = f"record {number}"
    return request
