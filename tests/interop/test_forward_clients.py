"""Unmodified clients, of Fluent Forward and of HTTP JSON, against our receivers: each record arrives once, with its fields."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.interop import counterparts
from tests.interop.conftest import PASSWORD, SHARED_KEY, TOKEN, USER, Edge

COUNT = 500
Run = Callable[[Edge, str], subprocess.CompletedProcess[str]]


def records() -> list[dict[str, Any]]:
    """Return records with all that JSON can hold; `sequence` tells them apart."""
    return [
        {
            "level": ("debug", "info", "warn", "error")[number % 4],
            "message": f'record {number}: käse 🧀 \u0000 \\ "quoted"',
            "machine_id": "gpu-7f3a",
            "worker_id": f"worker-00{number % 2 + 1}",
            "job_id": f"job-{number // 10}",
            "sequence": number,
            "share": number / 8,
            "is_last": number == COUNT - 1,
            "nothing": None,
            "allocation": {"gpu": number % 8, "names": ["a", "ü"], "deep": {"er": [1, 2.5, False]}},
        }
        for number in range(COUNT)
    ]


@dataclass(frozen=True)
class Client:
    """One way in which one library talks."""

    name: str
    find: Callable[[], Path]
    arguments: Callable[[Edge], list[str]]
    script: str = ""
    strict: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def send(self, edge: Edge, lines: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        found = self.find()
        command = ["node", str(counterparts.HERE / "node_client" / self.script)] if self.script else [str(found)]
        environment = {**os.environ, "NODE_PATH": str(found)}
        return subprocess.run(
            [*command, *self.arguments(edge)], input=lines, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )


def node(name: str, script: str, port: str, **options: Any) -> Client:
    def arguments(edge: Edge) -> list[str]:
        secure = {"caFile": str(edge.ca_file)} if port not in ("plain_port", "http_json_port") else {}
        return [json.dumps({"port": getattr(edge, port), **secure, **options})]

    return Client(name, counterparts.node_modules, arguments, script)


def go(name: str, *flags: str, port: str = "plain_port") -> Client:
    return Client(name, counterparts.go_client, lambda edge: [f"-port={getattr(edge, port)}", *flags])


ORG, WINSTON, WINSTON_HTTP = "fluent_org_logger.cjs", "winston_transport.cjs", "winston_http.cjs"
CLIENTS = [
    *(node(f"fluent-org-logger-{mode}", ORG, "plain_port", eventMode=mode) for mode in ("Message", "Forward", "PackedForward")),
    node("fluent-org-logger-CompressedPackedForward", ORG, "plain_port", eventMode="CompressedPackedForward"),
    node("fluent-org-logger-tls", ORG, "tls_port", eventMode="PackedForward"),
    node("fluent-org-logger-shared-key", ORG, "secure_port", eventMode="PackedForward", sharedKey=SHARED_KEY),
    node("fluent-org-logger-user", ORG, "users_port", eventMode="Forward", sharedKey=SHARED_KEY, username=USER, password=PASSWORD),
    node("winston", WINSTON, "plain_port"),
    node("winston-shared-key", WINSTON, "secure_port", sharedKey=SHARED_KEY),
    node("winston-http", WINSTON_HTTP, "http_json_port", token=TOKEN),
    node("winston-http-in-batches", WINSTON_HTTP, "http_json_port", token=TOKEN, batchCount=100),
    node("winston-http-on-forwards-port", WINSTON_HTTP, "plain_port"),
    node("winston-http-in-batches-on-forwards-port", WINSTON_HTTP, "plain_port", batchCount=100),
    go("go", "-ack"),
    go("go-tls", "-ack", "-network=tls", port="tls_port"),
    go("go-json", "-ack", "-json"),
    go("go-async-without-acks", "-async"),
    Client("go-unix-socket", counterparts.go_client, lambda edge: ["-ack", "-network=unix", f"-socket={edge.unix_path}"]),
]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_every_record_of_a_client_arrives_once_with_its_fields(client: Client, edge: Edge) -> None:
    sent = records()
    try:
        done = client.send(edge, "".join(json.dumps(record) + "\n" for record in sent))
    except counterparts.Absent as reason:
        pytest.skip(str(reason))
    assert done.returncode == 0, f"{done.stderr[-2000:]}\n{edge.process.last_lines()}"
    rows = sorted(edge.rows(len(sent)), key=lambda row: int(row.attributes["sequence"]))
    assert [row.attributes["sequence"] for row in rows] == list(range(COUNT))
    for row, record in zip(rows, sent, strict=True):
        assert row.body == record["message"]
        assert row.severity_text == record["level"]
        assert row.resource["machine_id"] == record["machine_id"]
        assert row.resource["worker_id"] == record["worker_id"]
        for key in ("job_id", "share", "is_last", "nothing", "allocation"):
            assert row.attributes[key] == record[key], key


@pytest.mark.parametrize(
    "client",
    [
        node("fluent-org-logger", ORG, "secure_port", eventMode="PackedForward", sharedKey="a wrong key"),
        node("winston", WINSTON, "secure_port", sharedKey="a wrong key"),
    ],
    ids=lambda client: client.name,
)
def test_a_client_with_a_wrong_key_delivers_nothing(client: Client, edge: Edge) -> None:
    try:
        counterparts.node_modules()
    except counterparts.Absent as reason:
        pytest.skip(str(reason))
    line = json.dumps(records()[0]) + "\n"
    try:
        done = client.send(edge, line, timeout_s=8)
    except subprocess.TimeoutExpired as waited:  # this one tries again ten minutes later
        said = (waited.stderr or b"").decode()
    else:
        assert done.returncode != 0
        said = done.stderr
    assert "shared_key mismatch" in said, "the client is told why in its own protocol"
    assert edge.endpoint.received.rows == []
    assert "shared_key mismatch" in edge.process.log_file.read_text()
