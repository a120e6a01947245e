"""Accepting: limits first, then TLS where the port has it, then the connection's protocol object takes over.

TLS is begun only after a look at the first byte, so that a plain client on the TLS port is told so in its own protocol, and a port probe
or a fluentd heartbeat leaves no line in the log. Not here: opening the listeners (`emp_pipe/listening.py`), the sweep (`forward.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl

from emp_pipe.forward_handshake import Refusal, refused_pong
from emp_pipe.receivers.forward_access import Access
from emp_pipe.receivers.forward_connection import ForwardConnection
from emp_pipe.receivers.forward_hub import Hub
from emp_pipe.tls import WatchedContext

_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_WHEN_OUT_OF_FILES_S = 0.2
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
_TLS_HANDSHAKE_RECORD = b"\x16"
_TLS_GOODBYE_S = 1.0
"""How long a closed TLS connection waits for the peer's own goodbye. A client that only writes never says it, and would hold up a stop."""


class Acceptor:
    """Brings accepted sockets to their connection. `accept` runs once for each listener; `close` ends the handshakes under way."""

    def __init__(self, hub: Hub, access: Access, tls: WatchedContext | None, handshake_timeout_s: float) -> None:
        self._hub = hub
        self._access = access
        self._tls = tls
        self._timeout_s = handshake_timeout_s
        self._handshakes: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket, tasks: asyncio.TaskGroup) -> None:
        loop, hub = asyncio.get_running_loop(), self._hub
        is_tcp = listener.family != socket.AF_UNIX
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _OUT_OF_FILES:
                    hub.log.log(logging.ERROR, "accept", "cannot accept a connection (%s); raise the limit of open files", error.strerror)
                    await hub.clock.sleep(_PAUSE_WHEN_OUT_OF_FILES_S)
                continue
            host = str(address[0]) if is_tcp else ""
            if not hub.admit(host):
                hub.refused(Refusal.TOO_MANY, host)
                sock.close()
                continue
            sock.setblocking(False)
            if is_tcp:
                _set_options(sock)
            if self._tls is None or not is_tcp:
                await self._open(sock, host, None)
                continue
            task = tasks.create_task(self._open(sock, host, self._tls.current()), name=f"TLS handshake with {host}")
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    def close(self) -> None:
        for task in self._handshakes:
            task.cancel()

    async def _open(self, sock: socket.socket, host: str, context: ssl.SSLContext | None) -> None:
        """Hand the socket over to a connection, which releases its place when it is lost; release it here where that fails."""
        may_come, credentials = self._access.credentials_of(host)
        connection = ForwardConnection(self._hub, host, credentials, None if may_come else Refusal.ANONYMOUS_SOURCE)
        try:
            if context is None or await self._hears_tls(sock, host):
                encrypted = context is not None
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: connection,
                    sock,
                    ssl=context,
                    ssl_handshake_timeout=self._timeout_s if encrypted else None,
                    ssl_shutdown_timeout=_TLS_GOODBYE_S if encrypted else None,
                )
        except (TimeoutError, ConnectionAbortedError):  # the latter is how the event loop says it
            self._hub.refused(Refusal.TIMED_OUT, host, detail="no TLS handshake")
        except ssl.SSLError as error:
            self._hub.refused(Refusal.TLS_FAILED, host, detail=(error.reason or str(error)).replace("_", " ").lower())
        except OSError as error:  # the peer went away
            self._hub.log.log(logging.DEBUG, "gone", "%s went away while connecting: %s", host, error)
        finally:
            if not connection.is_made:
                self._hub.release(host)
                sock.close()

    async def _hears_tls(self, sock: socket.socket, host: str) -> bool:
        async with asyncio.timeout(self._timeout_s):
            await _readable(sock)
            first = sock.recv(1, socket.MSG_PEEK)
        if first and first != _TLS_HANDSHAKE_RECORD:
            self._hub.refused(Refusal.TLS_EXPECTED, host)
            with contextlib.suppress(OSError):
                sock.send(refused_pong(Refusal.TLS_EXPECTED))
                _discard(sock)
        return first == _TLS_HANDSHAKE_RECORD


def _set_options(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the peer may be gone already
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


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
