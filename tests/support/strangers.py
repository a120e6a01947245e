"""What tests of limits do to a listener: connect and say little, drip, do not read; and how they see that it was stopped."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.support.command import PATIENCE_S, Running, until

HTTP_HEAD = b"POST /v1/logs HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"


def connected(port: int) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


@contextlib.contextmanager
def several(port: int, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connected(port)) for _ in range(count)]


def is_closed(peer: socket.socket) -> bool:
    """Read until the server closes. Raises TimeoutError where it does not."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while peer.recv(65_536):
            pass
    return True


def drips(peer: socket.socket, data: bytes, pause_s: float = 0.1) -> bool:
    """Send byte by byte until the server closes; False where all could be sent."""
    until_s = time.monotonic() + PATIENCE_S
    for byte in data:
        try:
            peer.sendall(bytes([byte]))
        except OSError:
            return True
        time.sleep(pause_s)
        if time.monotonic() > until_s:
            return False
    return False


def client_hello() -> bytes:
    begins = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), begins, server_hostname="localhost").do_handshake()
    return begins.read()


def listening(command: Running, receiver: str) -> int:
    """Return the port of a receiver."""
    for line in list(command.lines):
        if f'"{receiver}"' in line and (match := re.search(r"listening on \S*?:(\d+)", line)):
            return int(match[1])
    raise AssertionError(f"{receiver} does not say where it listens:\n" + "\n".join(command.lines))


def health(command: Running) -> str:
    return command.wait_for("health: ").split()[1].removesuffix("/readyz")


def get(url: str, cafile: Path | None = None, **headers: str) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(cafile)) if cafile else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE_S, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metric(text: str, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = [line for line in text.splitlines() if line.startswith((f"emp_pipe_{name}{{", f"emp_pipe_{name} "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(label in line for label in wanted))


def counted(command: Running, name: str, at_least: int = 1, **labels: str) -> None:
    """Wait until a counter of the running command has reached a number."""
    base = health(command)

    def reached() -> bool:
        with contextlib.suppress(OSError):  # the port may have no place for us at this moment
            return metric(get(f"{base}/metrics")[1], name, **labels) >= at_least
        return False

    until(reached, f"{name} {labels} reaches {at_least}")
