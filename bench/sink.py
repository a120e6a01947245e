"""The sink: a process of its own that takes OTLP/HTTP log requests, answers 200 at once, and afterwards proves what arrived.

In the timed part it only reads bodies into memory. Afterwards it inflates them, finds every record's id (see `records.py`), and compares
a sample of records field by field through the official protobuf classes. It is never counted in anybody's CPU.
"""

from __future__ import annotations

import multiprocessing
import random
import re
import socket
import threading
import zlib
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.records import TAG, Pool, decode_entry

_ID = re.compile(rb"job-([0-9a-f]{32})")
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
_SAMPLED_BODIES = 4
_ANSWER_TIMEOUT_S = 60.0
_SAMPLED_RECORDS_PER_BODY = 40


@dataclass(slots=True)
class Verdict:
    """What arrived, against what was sent. Anything in `lost`, `repeated`, `foreign` or `differences` makes the run void."""

    records: int = 0
    requests: int = 0
    body_bytes: int = 0
    inflated_bytes: int = 0
    lost: int = 0
    repeated: int = 0
    foreign: int = 0
    compared: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        return not (self.lost or self.repeated or self.foreign or self.differences) and self.compared > 0


class Sink:
    """The process that receives. `count` says how many records arrived since `reset`, `verify` whether they are the right ones."""

    def __init__(self, pool_file: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._control, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, pool_file), name="bench-sink", daemon=True)
        self._process.start()
        theirs.close()  # so that its end is noticed
        self.port: int = self._control.recv()

    def reset(self, *, keep: bool = True) -> None:
        """Forget what arrived. `keep=False`: from now on count only, for runs too long to hold in memory (no `verify` then)."""
        self._ask("reset", keep)

    def count(self) -> int:
        """How many records arrived. Inflates what is new: ask after the load is sent, not during it."""
        return int(self._ask("count", None))

    def verify(self, first: int, count: int) -> Verdict:
        """Compare with records [first, first + count) of the pool, each expected exactly once."""
        verdict = self._ask("verify", (first, count))
        assert isinstance(verdict, Verdict)
        return verdict

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _ask(self, command: str, argument: object) -> Any:
        self._control.send((command, argument))
        if not self._control.poll(_ANSWER_TIMEOUT_S):
            raise RuntimeError("the sink does not answer")
        answer = self._control.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


class _Bodies:
    def __init__(self) -> None:
        self.keep = True
        self._lock = threading.Lock()
        self.received: list[tuple[str, bytes]] = []
        self.inflated: list[bytes] = []
        self.discarded_records = 0
        self.body_bytes = 0
        self.problems: list[str] = []

    def add(self, path: str, encoding: str, body: bytes) -> None:
        if path != "/v1/logs":
            self.problems.append(f"a request to {path}")
        records = 0 if self.keep else _inflate(encoding, body).count(b"job-")
        with self._lock:
            self.body_bytes += len(body)
            self.discarded_records += records
            if self.keep:
                self.received.append((encoding, body))

    def count(self) -> int:
        while len(self.inflated) < len(self.received):
            encoding, body = self.received[len(self.inflated)]
            self.inflated.append(_inflate(encoding, body))
        return self.discarded_records + sum(body.count(b"job-") for body in self.inflated)


def _inflate(encoding: str, body: bytes) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding == "gzip":
        return zlib.decompress(body, wbits=31)
    raise ValueError(f"a body in an encoding that was not asked for: {encoding}")


def _serve(control: Connection, pool_file: Path) -> None:
    pool = Pool.load(pool_file)
    bodies = _Bodies()
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=_accept, args=(listener, lambda: bodies), daemon=True).start()
    control.send(listener.getsockname()[1])
    while True:
        try:
            command, argument = control.recv()
        except EOFError:
            return
        try:
            if command == "reset":
                bodies = _Bodies()
                bodies.keep = argument
                control.send(None)
            elif command == "count":
                control.send(bodies.count())
            else:
                control.send(_verify(pool, bodies, *argument))
        except Exception as error:
            control.send(RuntimeError(f"sink: {type(error).__name__}: {error}"))


def _accept(listener: socket.socket, bodies: Any) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_receive, args=(connection, bodies), daemon=True).start()


def _receive(connection: socket.socket, bodies: Any) -> None:
    with connection, connection.makefile("rb", buffering=1 << 20) as stream:
        while request_line := stream.readline():
            path = request_line.split(b" ")[1].decode()
            headers: dict[bytes, bytes] = {}
            while (line := stream.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                headers[name.lower()] = value.strip()
            if b"content-length" not in headers:
                bodies().problems.append("a request without Content-Length, which this sink does not read")
                return
            body = stream.read(int(headers[b"content-length"]))
            connection.sendall(_ANSWER)
            bodies().add(path, headers.get(b"content-encoding", b"").decode(), body)


def _verify(pool: Pool, bodies: _Bodies, first: int, count: int) -> Verdict:
    bodies.count()
    verdict = Verdict(requests=len(bodies.received), body_bytes=bodies.body_bytes, inflated_bytes=sum(map(len, bodies.inflated)))
    verdict.differences += bodies.problems
    arrived: Counter[bytes] = Counter()
    for body in bodies.inflated:
        arrived.update(_ID.findall(body))
    expected = set(pool.ids[first : first + count])
    verdict.records = arrived.total()
    verdict.lost = len(expected - arrived.keys())
    verdict.foreign = len(arrived.keys() - expected)
    verdict.repeated = sum(times - 1 for times in arrived.values() if times > 1)
    index_of = {pool.ids[index]: index for index in range(first, first + count)}
    for body in random.sample(bodies.inflated, min(_SAMPLED_BODIES, len(bodies.inflated))):
        _compare_body(pool, index_of, body, verdict)
    del verdict.differences[10:]
    return verdict


def _compare_body(pool: Pool, index_of: dict[bytes, int], body: bytes, verdict: Verdict) -> None:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    request = ExportLogsServiceRequest.FromString(body)
    rows = [
        (resource_logs.resource, scope_logs.scope, record)
        for resource_logs in request.resource_logs
        for scope_logs in resource_logs.scope_logs
        for record in scope_logs.log_records
    ]
    if len(rows) != len(_ID.findall(body)):
        verdict.differences.append(f"a request has {len(rows)} log records but {len(_ID.findall(body))} ids")
    for resource, scope, record in random.sample(rows, min(_SAMPLED_RECORDS_PER_BODY, len(rows))):
        carried = {kv.key: _value(kv.value) for kv in (*resource.attributes, *scope.attributes, *record.attributes)}
        job_id = str(carried.get("job_id", ""))
        index = index_of.get(job_id.removeprefix("job-").encode())
        if index is None:
            verdict.differences.append(f"a record with the job_id {job_id!r}, which was not sent")
            continue
        time_unix_nano, sent = decode_entry(pool.entries[index])
        verdict.compared += 1
        carried["fluent.tag"] = carried.get("fluent.tag")
        # Where OTLP has a field for it, a value may stand there instead of among the attributes.
        fields = {
            "message": _value(record.body),
            "timestamp": sent["timestamp"] if record.time_unix_nano == time_unix_nano else record.time_unix_nano,
            "level": record.severity_text,
            "trace_id": record.trace_id.hex(),
            "span_id": record.span_id.hex(),
        }
        for key, value in (*sent.items(), ("fluent.tag", TAG)):
            if carried.get(key) != value and fields.get(key) != value:
                verdict.differences.append(f"{job_id}: {key} was {value!r}, arrived as {carried.get(key)!r} (field {fields.get(key)!r})")
        if record.time_unix_nano != time_unix_nano:
            verdict.differences.append(f"{job_id}: time_unix_nano was {time_unix_nano}, arrived as {record.time_unix_nano}")


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "kvlist_value":
        return {kv.key: _value(kv.value) for kv in value.kvlist_value.values}
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
