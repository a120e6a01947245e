"""Sends one chunk of numbered records by Forward and says whether it was acknowledged: for tests in which that is the question."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import msgpack


def send_acked(port: int, numbers: Iterable[int], *, patience_s: float = 20.0, padding_bytes: int = 0) -> bool:
    """Return True when the ack came, False when it did not in time or the connection was closed or refused."""
    entries = [[1_760_000_000 + number, {"message": f"record {number}", "padding": "x" * padding_bytes}] for number in numbers]
    chunk = f"chunk-{entries[0][0]}"
    frame = msgpack.packb(["disk.test", b"".join(msgpack.packb(entry) for entry in entries), {"chunk": chunk}])
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as peer:
            peer.sendall(frame)
            return chunk.encode() in peer.recv(4096)
    except OSError:
        return False
