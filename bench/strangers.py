"""Who comes to a Forward receiver from outside: good clients that count their acks, strangers that take its time, and many that are silent.

    python -m bench.strangers attack KIND PORT PER_S SECONDS        python -m bench.strangers idle PORT CA_FILE

A process of its own where something is measured. Strangers come from 127.0.0.2, so that the limit for one address tells them apart.
Read next: `cases_security.py`, which measures, and `tests/chaos/test_strangers.py`, which asserts.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from emp_pipe.forward_handshake import ClientHandshake

STRANGER = "127.0.0.2"
KINDS = ("slowloris", "connections", "tls_handshakes", "wrong_keys")
_MOST_AT_ONCE = 500
_DRIP_S = 0.5
_PATIENCE_S = 20.0


@dataclass
class GoodClient:
    """Sends numbered records in acked chunks, one chunk at a time on each connection, and keeps the numbers that were acknowledged."""

    port: int
    key: str
    tls: ssl.SSLContext | None = None
    connections: int = 4
    records_per_chunk: int = 100
    acked: list[int] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    _next: int = 0

    async def run(self, seconds: float) -> float:
        """Send for so long; return the records acknowledged a second."""
        began_s, before = time.monotonic(), len(self.acked)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.connections):
                tasks.create_task(self._connection(began_s + seconds))
        return (len(self.acked) - before) / (time.monotonic() - began_s)

    async def _connection(self, until_s: float) -> None:
        name = "localhost" if self.tls is not None else None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls, server_hostname=name)
        handshake = ClientHandshake("good", self.key)
        done = False
        while not done:
            step = handshake.received(await reader.read(4096))
            while step is not None:
                writer.write(step.send)
                done = step.done
                step = None if done else handshake.received(b"")
        while time.monotonic() < until_s:
            numbers = range(self._next, self._next + self.records_per_chunk)
            self._next = numbers.stop
            began_s = time.monotonic()
            writer.write(frame(numbers))
            async with asyncio.timeout(_PATIENCE_S):
                answer = msgpack.unpackb(await reader.read(4096))
            assert answer == {"ack": str(numbers.start)}, answer
            self.latencies_s.append(time.monotonic() - began_s)
            self.acked += numbers
        writer.close()


def frame(numbers: range) -> bytes:
    """Return a PackedForward message of numbered records; its chunk is the first number."""
    entries = b"".join(
        msgpack.packb([msgpack.ExtType(0, struct.pack(">II", 1_760_000_000, number)), {"message": "good", "sequence": number}])
        for number in numbers
    )
    return bytes(msgpack.packb(["good", entries, {"chunk": str(numbers.start), "size": len(numbers)}]))


async def attack(kind: str, port: int, per_s: float, seconds: float) -> int:
    """Come `per_s` times a second as a stranger of a kind; return how many times that was."""
    stranger: Callable[[socket.socket], Awaitable[None]] = {
        "slowloris": _drips,
        "connections": _goes_at_once,
        "tls_handshakes": _leaves_inside_tls,
        "wrong_keys": _does_not_know_the_key,
    }[kind]
    most = _MOST_AT_ONCE * 4 if kind == "slowloris" else _MOST_AT_ONCE
    coming: set[asyncio.Task[None]] = set()
    came, began_s = 0, time.monotonic()
    while (now_s := time.monotonic()) < began_s + seconds:
        while came < (now_s - began_s) * per_s and len(coming) < most:
            came += 1
            task = asyncio.create_task(_come(port, stranger))
            coming.add(task)
            task.add_done_callback(coming.discard)
        await asyncio.sleep(0.005)
    for task in list(coming):
        task.cancel()
    await asyncio.gather(*coming, return_exceptions=True)
    return came


async def _come(port: int, stranger: Callable[[socket.socket], Awaitable[None]]) -> None:
    with socket.socket() as peer, contextlib.suppress(OSError, TimeoutError):
        peer.setblocking(False)
        peer.bind((STRANGER, 0))
        async with asyncio.timeout(_PATIENCE_S):
            await asyncio.get_running_loop().sock_connect(peer, ("127.0.0.1", port))
            await stranger(peer)


async def _goes_at_once(peer: socket.socket) -> None:
    pass


async def _drips(peer: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    for byte in b"\x96\xda\x40\x00" + b"a" * 1000:
        await loop.sock_sendall(peer, bytes([byte]))
        await asyncio.sleep(_DRIP_S)


def _client_hello() -> bytes:
    begins = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), begins, server_hostname="localhost").do_handshake()
    return begins.read()


_HELLO = _client_hello()


async def _leaves_inside_tls(peer: socket.socket) -> None:
    """The server has done its part, which is the dear one, when its first bytes come."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(peer, _HELLO)
    await loop.sock_recv(peer, 4096)


async def _does_not_know_the_key(peer: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    if await loop.sock_recv(peer, 4096):
        digest = hashlib.sha512(b"a guess").hexdigest().encode()
        await loop.sock_sendall(peer, bytes(msgpack.packb([b"PING", b"stranger", b"salt", digest, b"", b""], use_bin_type=False)))
        await loop.sock_recv(peer, 4096)


async def _stay_silent(port: int, ca_file: str) -> None:
    """Hold as many TLS connections as standard input says, line by line, and say when they are there."""
    context = ssl.create_default_context(cafile=ca_file)
    held: list[asyncio.StreamWriter] = []
    gate = asyncio.Semaphore(50)

    async def one() -> None:
        async with gate:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost", limit=4096)
            held.append(writer)

    while line := await asyncio.to_thread(sys.stdin.readline):
        await asyncio.gather(*(one() for _ in range(int(line) - len(held))))
        print(len(held), flush=True)


def main(arguments: list[str]) -> Any:
    import uvloop

    if arguments[0] == "idle":
        return uvloop.run(_stay_silent(int(arguments[1]), arguments[2]))
    kind, port, per_s, seconds = arguments[1:]
    print(uvloop.run(attack(kind, int(port), float(per_s), float(seconds))), flush=True)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
