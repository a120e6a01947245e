"""Blocking clients of a running command's OTLP receivers: HTTP, raw sockets, gRPC, and HTTP/2 frame by frame."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import grpc

from tests.support.otlp_receiving import METHODS, encoded, request

GOOD = encoded(request("logs"))
PROTOBUF = {"Content-Type": "application/x-protobuf"}
PATIENCE_S = 30.0


def post(port: int, body: bytes = GOOD, *, path: str = "/v1/logs", method: str = "POST", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request(method, path, body, PROTOBUF | {name.replace("_", "-"): value for name, value in headers.items()})
    return connection.getresponse()


def raw(port: int, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    client.sendall(data)
    return client


def said_until_closed(client: socket.socket, within_s: float = PATIENCE_S) -> bytes:
    """Return what comes until the server closes; nothing for `within_s` raises TimeoutError."""
    client.settimeout(within_s)
    said = b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65_536):
            said += data
    client.close()
    return said


@contextlib.contextmanager
def channel(port: int, credentials: grpc.ChannelCredentials | None = None) -> Iterator[grpc.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost")]
    address = f"127.0.0.1:{port}"
    opened = grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address, options)
    with opened:
        yield opened


def export(opened: grpc.Channel, body: bytes = GOOD, token: str = "", compression: Any = None) -> grpc.StatusCode:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    try:
        opened.unary_unary(METHODS["logs"])(body, timeout=PATIENCE_S, metadata=metadata, compression=compression)
    except grpc.RpcError as error:
        return error.code()  # type: ignore[no-any-return]
    return grpc.StatusCode.OK


def never(seconds: float = 60.0) -> Iterator[bytes]:
    time.sleep(seconds)
    yield b""


H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
H2_SETTINGS, H2_PING, H2_GOAWAY = 4, 6, 7


def h2_frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + bytes(4) + payload


def h2_frames(client: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    """The kind, flags and payload of each frame until the server closes."""
    data = b""
    while True:
        while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3], "big")):
            yield data[3], data[4], data[9 : 9 + size]
            data = data[9 + size :]
        try:
            more = client.recv(65_536)
        except ConnectionError:
            return
        if not more:
            return
        data += more
