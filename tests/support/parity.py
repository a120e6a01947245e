"""One record, as the senders of each protocol write it, and what a running emp-pipe made of it: for the parity suite.

A way in is a function that sends a record and returns when it was acknowledged; a later receiver is one more entry in `WAYS`.
`ColumnsProcessor` runs inside the process under test and writes down the columns of each batch; the rows arrive at a strict endpoint.
"""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import msgpack
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs

from emp_pipe._core import Batch
from emp_pipe.component import Context, ProcessorConfig
from tests.support.forward import event_time
from tests.support.otlp_receiving import METHODS, encoded
from tests.support.otlp_rows import any_value, attributes

T0_NS = 1_760_000_000_123_456_789


@dataclass(frozen=True)
class Case:
    """`record` is what Fluent clients send. By OTLP its message is the body, its level the severity's text, the rest attributes, unless
    `otlp` says what an SDK would write."""

    record: Mapping[str, Any]
    otlp: Mapping[str, Any] | None = None
    resource: Mapping[str, Any] = field(default_factory=dict)

    def log(self) -> LogRecord:
        if self.otlp is not None:
            fields: dict[str, Any] = {"time_unix_nano": T0_NS, **self.otlp}
            body, attrs = fields.pop("body", None), fields.pop("attributes", {})
        else:
            rest = dict(self.record)
            body, attrs = rest.pop("message", None), rest
            fields = {"time_unix_nano": T0_NS, "severity_text": rest.pop("level", "")}
        return LogRecord(body=None if body is None else any_value(body), attributes=attributes(attrs), **fields)

    def request(self) -> ExportLogsServiceRequest:
        of_resource = ResourceLogs(scope_logs=[ScopeLogs(log_records=[self.log()])])
        of_resource.resource.attributes.extend(attributes(self.resource))
        return ExportLogsServiceRequest(resource_logs=[of_resource])


@dataclass(frozen=True)
class Ports:
    forward: int
    otlp_grpc: int
    otlp_http: int
    http_json: int


# --- ways in ------------------------------------------------------------------------------------------


def by_forward(ports: Ports, case: Case) -> None:
    seconds, nanoseconds = divmod(T0_NS, 10**9)
    frame = msgpack.packb(["app.web", event_time(seconds, nanoseconds), {**case.record, **case.resource}, {"chunk": "c"}])
    with socket.create_connection(("127.0.0.1", ports.forward), timeout=20.0) as peer:
        peer.sendall(frame)
        unpacker = msgpack.Unpacker()
        while True:
            data = peer.recv(4096)
            assert data, "closed without an ack"
            unpacker.feed(data)
            for answer in unpacker:
                assert answer == {"ack": "c"}
                return


def post(port: int, signal: str, request: Message, encoding: Any) -> None:
    content_type = "application/json" if encoding == "json" else "application/x-protobuf"
    address = f"http://127.0.0.1:{port}/v1/{signal}"
    asked = urllib.request.Request(address, data=encoded(request, encoding), headers={"Content-Type": content_type})
    with urllib.request.urlopen(asked, timeout=20.0) as answer:
        assert answer.read() in (b"", b"{}"), "something was rejected"


def call(port: int, signal: str, request: Message) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        assert channel.unary_unary(METHODS[signal])(request.SerializeToString(), timeout=20.0) == b""


def post_json(port: int, case: Case) -> None:
    """The tag is the path and the time is in the query, as Fluentd's `in_http` has them."""
    seconds, nanoseconds = divmod(T0_NS, 10**9)
    address = f"http://127.0.0.1:{port}/app/web?time={seconds}.{nanoseconds:09}"
    body = json.dumps({**case.record, **case.resource}, ensure_ascii=False).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data=body), timeout=20.0) as answer:
        assert json.load(answer) == {"refused": 0}


WAYS: dict[str, Callable[[Ports, Case], None]] = {
    "forward": by_forward,
    "http_json": lambda ports, case: post_json(ports.http_json, case),
    "http_on_forwards_port": lambda ports, case: post_json(ports.forward, case),
    "otlp_grpc": lambda ports, case: call(ports.otlp_grpc, "logs", case.request()),
    "otlp_http": lambda ports, case: post(ports.otlp_http, "logs", case.request(), "protobuf"),
    "otlp_http_json": lambda ports, case: post(ports.otlp_http, "logs", case.request(), "json"),
}
OTLP_WAYS: dict[str, Callable[[Ports, str, Message], None]] = {
    "otlp_grpc": lambda ports, signal, request: call(ports.otlp_grpc, signal, request),
    "otlp_http": lambda ports, signal, request: post(ports.otlp_http, signal, request, "protobuf"),
    "otlp_http_json": lambda ports, signal, request: post(ports.otlp_http, signal, request, "json"),
}

# --- what came of it ----------------------------------------------------------------------------------


class ColumnsConfig(ProcessorConfig):
    """Settings of the processor below."""

    file: Path


class ColumnsProcessor:
    """Appends the columns of each batch, and the header of its block, to a file: a JSON line for each row."""

    CONFIG = ColumnsConfig

    def __init__(self, id: str, config: ColumnsConfig, context: Context) -> None:
        self.id = id
        self.config = config

    def process(self, batch: Batch) -> Batch:
        import pyarrow as pa

        header = json.loads(batch.to_block("none", topic=batch.signal, block_id="b").header)
        rows = pa.record_batch(batch.to_arrow()).to_pylist() if batch.signal == "logs" else [{} for _ in range(len(batch))]
        with self.config.file.open("a", encoding="utf-8") as file:
            for row in rows:
                row = {name: value.hex() if isinstance(value, bytes) else value for name, value in row.items()}
                file.write(json.dumps({"header": header, "columns": row}) + "\n")
        return batch


_OF_THE_WAY = ("observed_time_unix_nano", "tag", "row_bytes")
_OF_THE_WAY_IN_HEADERS = ("tags", "uncompressed_bytes")


@dataclass(frozen=True)
class Made:
    """What a record became, without what tells of its way: the receiver's scope, the time of arrival, the order of attributes."""

    row: bytes
    resource: tuple[bytes, ...]
    columns: Mapping[str, Any]
    header: Mapping[str, Any]


def canonical(log: Any) -> bytes:
    """Return a row's bytes with its attributes in order, without the time of arrival."""
    copy = LogRecord()
    copy.CopyFrom(log)
    copy.ClearField("observed_time_unix_nano")
    ordered = sorted(copy.attributes, key=lambda pair: pair.key)
    del copy.attributes[:]
    copy.attributes.extend(ordered)
    return copy.SerializeToString(deterministic=True)


def made_of(message: Any, line: str) -> Made:
    """Return what became of the one record in an export request, and of its columns."""
    (of_resource,) = message.resource_logs
    (of_scope,) = of_resource.scope_logs
    (log,) = of_scope.log_records
    seen = json.loads(line)
    return Made(
        canonical(log),
        tuple(sorted(pair.SerializeToString(deterministic=True) for pair in of_resource.resource.attributes)),
        {name: value for name, value in seen["columns"].items() if name not in _OF_THE_WAY},
        {name: value for name, value in seen["header"].items() if name not in _OF_THE_WAY_IN_HEADERS},
    )
