"""A strict OTLP/HTTP endpoint on loopback: what it accepts is right by the specification, read with the official protobuf classes.

Every request is checked: path, content type and encoding, gzip and zstd that end where they should, headers, id lengths, duplicate
attribute keys, size. What is wrong is answered 400 and kept in `violations`. Answers can be scripted: a status, Retry-After, a partial
success, a delay, a broken connection, a row that is refused.

    async with OtlpEndpoint() as endpoint:
        endpoint.script(Answer(status=503, retry_after="1"))    # the next request gets it, those after it succeed
        ... endpoint.url ...; endpoint.records("logs")

    python -m tests.support.otlp_endpoint --port 4318 --out received.jsonl      # for demonstrations: one JSON line per request
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from aiohttp import web
from google.protobuf.json_format import MessageToDict

from tests.support.otlp_strict import SIGNALS, Received, StrictEndpoint, Violation, read_request, response_of

PROTOBUF = "application/x-protobuf"
_MOST_BYTES = 4 << 20


def status_message(message: str) -> bytes:
    """Return a google.rpc.Status with a message: field 2, by hand, for the class is in another package."""
    text = message.encode()
    size, length = len(text), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return b"\x12" + bytes([*length, size]) + text


@dataclass(frozen=True)
class Answer:
    """What a request is answered with. `drop`: break the connection; "before" without an answer, "mid" in the middle of one."""

    status: int = 200
    message: str = ""
    retry_after: str | None = None
    location: str | None = None
    rejected: int = 0
    warning: str = ""
    delay_s: float = 0.0
    drop: str = ""
    body: bytes | None = None
    content_type: str = PROTOBUF


@dataclass
class OtlpEndpoint(StrictEndpoint[Answer]):
    """See the module's head. `token` and `required_headers` are demanded of every request."""

    port: int = 0
    token: str | None = None
    required_headers: dict[str, str] = field(default_factory=dict)
    refuse_row: Callable[[Any], bool] | None = None
    """Rows for which it is true make their whole request a 400, as a poisoned row does."""
    refuse_status: int = 400
    most_bytes: int = _MOST_BYTES
    chunked: bool = False
    """Bodies without Content-Length are right too: Node's exporters send such, ours do not."""
    keep: bool = True
    on_received: Callable[[Received], None] | None = None
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        StrictEndpoint.__init__(self)
        self.connections: set[Any] = set()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> OtlpEndpoint:
        app = web.Application(client_max_size=256 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, auto_decompress=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        assert self._runner.addresses
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *exception: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self._changed.set()
        self.connections.add(request.transport)
        try:
            wire = await request.read()
            answer = self.next_answer()
            if answer is not None and answer.delay_s:
                await asyncio.sleep(answer.delay_s)
            return await self._answer(request, wire, answer)
        finally:
            self.in_flight -= 1
            self._changed.set()

    async def _answer(self, request: web.Request, wire: bytes, answer: Answer | None) -> web.StreamResponse:
        transport = request.transport
        if answer is not None and answer.drop:
            assert transport is not None
            if answer.drop == "mid":
                transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 100\r\n\r\nhalf")
                await asyncio.sleep(0.01)
            transport.abort()
            return web.Response()
        try:
            received = self._read(request, wire, answer)
        except Violation as violation:
            self.violations.append(str(violation))
            return self._response(request, Answer(status=400, message=str(violation)))
        answer = answer or Answer()
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            answer = Answer(status=401, message="the token is not known")
        elif any(request.headers.get(name) != value for name, value in self.required_headers.items()):
            answer = Answer(status=403, message="a header is missing")
        elif received.inflated_bytes > self.most_bytes:
            answer = Answer(status=413, message=f"{received.inflated_bytes} bytes are too many")
        elif self.refuse_row is not None and any(self.refuse_row(row) for row in SIGNALS[received.signal].rows(received.message)):
            answer = Answer(status=self.refuse_status, message="a row is refused")
        received = Received(**{**received.__dict__, "status": answer.status})
        if self.keep:
            self.received.append(received)
        if self.on_received is not None:
            self.on_received(received)
        return self._response(request, answer, received.signal)

    def _response(self, request: web.Request, answer: Answer, signal: str = "") -> web.Response:
        given = {"Retry-After": answer.retry_after, "Location": answer.location}
        headers = {name: value for name, value in given.items() if value is not None}
        if answer.body is not None:
            body = answer.body
        elif answer.status == 200 and signal:
            body = response_of(signal, answer.rejected, answer.warning)
        else:
            body = status_message(answer.message)
        return web.Response(status=answer.status, body=body, content_type=answer.content_type, headers=headers)

    def _read(self, request: web.Request, wire: bytes, answer: Answer | None) -> Received:
        signal = request.path.rpartition("/v1/")[2]
        if request.method != "POST" or signal not in SIGNALS:
            raise Violation(f"{request.method} {request.path} is no OTLP request")
        if request.headers.get("Content-Type") != PROTOBUF:
            raise Violation(f"content type {request.headers.get('Content-Type')!r}")
        if int(request.headers.get("Content-Length", len(wire) if self.chunked else -1)) != len(wire):
            raise Violation("no right Content-Length")
        body = inflate(wire, request.headers.get("Content-Encoding", "identity"))
        message, rows = read_request(signal, body)
        return Received(signal, dict(request.headers), message, len(rows), len(wire), len(body), 200)


def inflate(wire: bytes, encoding: str) -> bytes:
    """Return the body; members and frames may follow each other, nothing else may."""
    if encoding == "identity":
        return wire
    if encoding == "zstd":
        try:
            with zstandard.ZstdDecompressor().stream_reader(wire, read_across_frames=True) as reader:
                return reader.read()
        except zstandard.ZstdError as error:
            raise Violation(f"broken zstd: {error}") from error
    if encoding != "gzip":
        raise Violation(f"content encoding {encoding!r}")
    body, rest = b"", wire
    while rest:
        member = zlib.decompressobj(wbits=31)
        try:
            body += member.decompress(rest)
        except zlib.error as error:
            raise Violation(f"broken gzip: {error}") from error
        if not member.eof:
            raise Violation("gzip that does not end")
        rest = member.unused_data
    return body


async def _serve(port: int, out: Path | None) -> None:
    sink = out.open("a", encoding="utf-8") if out is not None else None

    def write(received: Received) -> None:
        line = json.dumps({"signal": received.signal, "records": received.records, "request": MessageToDict(received.message)})
        print(line, file=sink or sys.stdout, flush=True)

    try:
        async with OtlpEndpoint(port=port, on_received=write, keep=False) as endpoint:
            print(f"OTLP/HTTP on {endpoint.url}", file=sys.stderr, flush=True)
            await asyncio.Event().wait()
    finally:
        if sink is not None:
            sink.close()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="A strict OTLP/HTTP endpoint on loopback.")
    arguments.add_argument("--port", type=int, default=4318)
    arguments.add_argument("--out", type=Path, help="append one JSON line per accepted request to this file")
    given = arguments.parse_args()
    try:
        asyncio.run(_serve(given.port, given.out))
    except KeyboardInterrupt:
        sys.exit(130)
