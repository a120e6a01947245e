"""HTTP/2 frame by frame, as a client that may break every rule: frames in, frames out, answers with their trailers."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from tests.support.forward import PATIENCE_S
from tests.support.otlp_receiving import METHODS, Running

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 1
END_HEADERS, PADDED = 4, 8
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, REFUSED_STREAM, COMPRESSION_ERROR, CALM = 0, 1, 3, 6, 7, 9, 11
CALL = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", METHODS["logs"]),
    (":authority", "a"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
)
_STATIC = {8: ":status", 31: "content-type"}


def frame(kind: int, payload: bytes = b"", *, stream: int = 0, flags: int = 0) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def settings(**values: int) -> bytes:
    names = {"table": 1, "push": 2, "streams": 3, "window": 4, "frame": 5, "list": 6}
    return frame(SETTINGS, b"".join(struct.pack(">HI", names[name], value) for name, value in values.items()))


def block(fields: Sequence[tuple[str, str]]) -> bytes:
    """Return fields in HPACK, the plainest form."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _text(text: str) -> bytes:
    size, encoded = len(text), b""
    if size < 127:
        return bytes([size]) + text.encode("latin-1")
    encoded, rest = b"\x7f", size - 127
    while rest > 127:
        encoded += bytes([rest & 127 | 128])
        rest >>= 7
    return encoded + bytes([rest]) + text.encode("latin-1")


def headers(stream: int, *more: tuple[str, str], fields: Sequence[tuple[str, str]] = CALL, flags: int = 0) -> bytes:
    return frame(HEADERS, block([*fields, *more]), stream=stream, flags=END_HEADERS | flags)


def message(body: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(body).to_bytes(4, "big") + body


def call(stream: int, body: bytes, *more: tuple[str, str], flag: int = 0) -> bytes:
    """Return a whole call, in frames of at most 16 KiB."""
    sent, data = headers(stream, *more), message(body, flag)
    for at in range(0, len(data), 16_384):
        is_last = at + 16_384 >= len(data)
        sent += frame(DATA, data[at : at + 16_384], stream=stream, flags=END_STREAM if is_last else 0)
    return sent


@dataclass
class Told:
    """What the server has said of a call."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None
    ended: bool = False


class H2Client:
    """A connection; `told` is filled as frames come."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.told: dict[int, Told] = {}
        self.goaway: tuple[int, str] | None = None
        self.kinds: list[int] = []
        self._reader = reader
        self._writer = writer

    def write(self, *frames: bytes) -> None:
        self._writer.write(b"".join(frames))

    async def status(self, stream: int) -> str | None:
        """Return the grpc-status of a call when it has ended; None: it was reset, or answered in HTTP's words."""
        while not (told := self.told.setdefault(stream, Told())).ended:
            assert await self.read() is not None, "the server has closed"
        return told.headers.get("grpc-status")

    async def end(self) -> tuple[int, str] | None:
        """Return code and words of the GOAWAY when the server has closed; None without one."""
        with contextlib.suppress(ConnectionError):
            while await self.read() is not None:
                pass
        return self.goaway

    async def read(self) -> int | None:
        """Return the kind of the next frame, None at the end."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        except asyncio.IncompleteReadError:
            return None
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
        told = self.told.setdefault(stream, Told())
        if kind == HEADERS:
            told.headers |= _fields(payload)
        elif kind == DATA:
            told.data += payload
        elif kind == RST_STREAM:
            told.reset = int.from_bytes(payload, "big")
            told.ended = True
        elif kind == GOAWAY:
            self.goaway = (int.from_bytes(payload[4:8], "big"), payload[8:].decode())
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            told.ended = True
        self.kinds.append(kind)
        return kind

    def close(self) -> None:
        self._writer.close()


def _fields(block: bytes) -> dict[str, str]:
    """Return fields as our server writes them: `:status 200`, and literals that no table keeps."""
    found: dict[str, str] = {}
    at = 0

    def number(bits: int) -> int:
        nonlocal at
        most = (1 << bits) - 1
        value, at = block[at] & most, at + 1
        if value == most:
            for shift in range(0, 28, 7):
                byte, at = block[at], at + 1
                value += (byte & 127) << shift
                if byte < 128:
                    break
        return value

    def text() -> str:
        nonlocal at
        size = number(7)
        at += size
        return block[at - size : at].decode("latin-1")

    while at < len(block):
        if block[at] & 128:
            found[":status"] = {8: "200", 9: "204", 12: "400", 13: "404"}[number(7)]
            continue
        index = number(4)
        name = _STATIC[index] if index else text()
        found[name] = text()
    return found


@contextlib.asynccontextmanager
async def h2_client(server: Running, greeting: bytes = PREFACE + frame(SETTINGS)) -> AsyncIterator[H2Client]:
    reader, writer = await asyncio.open_connection(*server.address)
    client = H2Client(reader, writer)
    client.write(greeting)
    try:
        yield client
    finally:
        client.close()
