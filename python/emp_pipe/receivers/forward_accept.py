"""Forward's door: a look at the first byte before TLS, and refusals that are counted by their reason.

A plain client on the TLS port is told so in its own protocol, and a port probe or a fluentd heartbeat leaves no line in the log.
Not here: the accepting itself (`emp_pipe/accepting.py`), the sweep (`forward.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from emp_pipe.accepting import ADVICE, Cut
from emp_pipe.forward_handshake import Refusal
from emp_pipe.receivers.forward_access import Access
from emp_pipe.receivers.forward_connection import ForwardConnection
from emp_pipe.receivers.forward_hub import Hub
from emp_pipe.receivers.forward_refusals import answer_without_tls

_TLS_HANDSHAKE_RECORD = b"\x16"
_LONGEST_METHOD_BYTES = 8


class ForwardDoor:
    """See the module's head. An `emp_pipe.accepting.Door`."""

    def __init__(self, hub: Hub, access: Access) -> None:
        self._hub = hub
        self._access = access

    def admit(self, address: str) -> bool:
        if self._hub.places.take(address):
            return True
        if (why := self._hub.places.why_not(address)) is not None:
            self._hub.cut.count(why)
            self._hub.refused(Refusal.TOO_MANY, address, detail=ADVICE[why])
        return False

    def open(self, address: str) -> ForwardConnection:
        may_come, credentials = self._access.credentials_of(address)
        return ForwardConnection(self._hub, address, credentials, None if may_come else Refusal.ANONYMOUS_SOURCE)

    async def expects_tls(self, sock: socket.socket, address: str) -> bool:
        await _readable(sock)
        first = sock.recv(_LONGEST_METHOD_BYTES, socket.MSG_PEEK)
        if first and not first.startswith(_TLS_HANDSHAKE_RECORD):
            self._hub.refused(Refusal.TLS_EXPECTED, address)
            with contextlib.suppress(OSError):
                sock.send(answer_without_tls(first))
                _discard(sock)
        return first.startswith(_TLS_HANDSHAKE_RECORD)

    def timed_out(self, address: str, timeout_s: float) -> None:
        self._hub.cut.count(Cut.TLS_TIMED_OUT)
        self._hub.refused(Refusal.TIMED_OUT, address, detail="no TLS handshake")

    def tls_failed(self, address: str, reason: str) -> None:
        self._hub.cut.count(Cut.TLS_FAILED)
        self._hub.refused(Refusal.TLS_FAILED, address, detail=reason)


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


def _discard(sock: socket.socket) -> None:
    """Read what is there, so that closing sends an end and not a reset that could overtake the refusal."""
    sock.shutdown(socket.SHUT_WR)
    for _ in range(64):
        if not sock.recv(65_536):
            return
