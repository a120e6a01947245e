"""Stand-ins for foreign Forward servers, strict: what an unmodified Fluentd or Fluent Bit would choke on is a complaint."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
import zstandard

from tests.support.forward import PATIENCE_S

_KEY = b"s3cret"


@dataclass
class ForeignServer:
    """A server with a shared key. `complaints` is what a real one would have refused; a test ends by asserting that there are none."""

    dialect: str = "fluent-bit"
    user: tuple[bytes, bytes] | None = None
    acks: bool = True
    port: int = 0
    chunks: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    entries: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    connections: int = 0
    close_before_ack_of: int = 0
    """Close the connection instead of acknowledging the nth chunk."""
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[ForeignServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            with contextlib.suppress(ConnectionError):
                if await self._handshake(reader, writer):
                    await self._read_chunks(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _handshake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        nonce, auth = b"\xf0nonce\x80of\xffserver", b"\xe1auth\x90of\xfeservers"
        options: dict[bytes, Any] = {b"nonce": nonce, b"auth": auth if self.user or self.dialect == "fluent-bit" else b""}
        if self.dialect == "fluentd":
            options[b"keepalive"] = True
        writer.write(msgpack.packb([b"HELO", options], use_bin_type=False))
        async with asyncio.timeout(PATIENCE_S):
            data = await reader.read(1023)  # Fluent Bit reads once, into a buffer of 1024
        if not data:
            return False
        try:
            ping = msgpack.unpackb(data, unicode_errors="surrogateescape")
        except ValueError as error:
            self.complaints.append(f"the PING did not come in one write of at most 1023 bytes: {error}")
            return False
        if len(ping) != 6:
            self.complaints.append(f"the PING has {len(ping)} elements")
            return False
        if not all(isinstance(part, str) for part in ping):
            self.complaints.append(f"the PING has other types than str: {[type(part).__name__ for part in ping]}")
            return False
        kind, host, salt, digest, user, secret = (part.encode(errors="surrogateescape") for part in ping)
        if kind != b"PING" or len(salt) != 16:
            self.complaints.append("no PING, or a salt that has not 16 bytes")
        if digest != hashlib.sha512(salt + host + nonce + _KEY).hexdigest().encode():
            writer.write(msgpack.packb([b"PONG", False, b"shared_key mismatch", b"", b""], use_bin_type=False))
            return False
        if self.user is not None:
            name, password = self.user
            if (user, secret) != (name, hashlib.sha512(auth + name + password).hexdigest().encode()):
                writer.write(msgpack.packb([b"PONG", False, b"username/password mismatch", b"", b""], use_bin_type=False))
                return False
        own = b"aggregator"
        proof = hashlib.sha512(salt + own + nonce + _KEY).hexdigest().encode()
        writer.write(msgpack.packb([b"PONG", True, b"", own, proof], use_bin_type=False))
        return True

    async def _read_chunks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unpacker = msgpack.Unpacker(raw=True, strict_map_key=False)
        while data := await reader.read(65_536):
            unpacker.feed(data)
            frames = list(unpacker)
            if len(frames) > 1:
                self.complaints.append("a chunk was sent before the ack of the one before it")
            for frame in frames:
                chunk = self._read_frame(frame)
                if self.close_before_ack_of and len(self.chunks) == self.close_before_ack_of:
                    self.close_before_ack_of = 0
                    return
                if self.acks and chunk is not None:
                    writer.write(msgpack.packb({b"ack": chunk}, use_bin_type=False))

    def _read_frame(self, frame: Any) -> bytes | None:
        if not isinstance(frame, list) or len(frame) != 3 or not isinstance(frame[1], bytes):
            self.complaints.append(f"no PackedForward: {str(frame)[:100]}")
            return None
        tag, body, options = frame
        compressed = options.get(b"compressed", b"text")
        if compressed == b"gzip":
            body = gzip.decompress(body)
        elif compressed == b"zstd":
            body = zstandard.ZstdDecompressor().decompress(body, max_output_size=1 << 28)
        elif compressed != b"text":
            self.complaints.append(f"compressed is {compressed!r}")
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(body)
        entries = list(unpacker)
        for time, record in entries:
            if not isinstance(record, dict):
                self.complaints.append(f"an entry's record is no map: {record!r}")
            self.entries.append((time, record))
        if b"size" in options and options[b"size"] != len(entries):
            self.complaints.append(f"size says {options[b'size']}, there are {len(entries)}")
        self.tags.append(tag.decode())
        self.chunks.append(options[b"chunk"].decode())
        return bytes(options[b"chunk"])
