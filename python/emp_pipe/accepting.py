"""Accepting connections for a receiver: limits first, then TLS where the port has it, then the connection's protocol takes over.

What differs between receivers is their `Door`: who has a place, what serves a peer, and what is said of one that does not get in.
Not here: opening the listeners (`listening.py`, `receivers/forward_listen.py`), closing who is silent (the receiver's sweep).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections import Counter, OrderedDict
from enum import StrEnum
from typing import Any, Protocol

from emp_pipe.clock import Clock
from emp_pipe.logs import RateLimitedLogger
from emp_pipe.self_metrics import Metrics
from emp_pipe.tls import WatchedContext

_OUT_OF_FILES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_WHEN_OUT_OF_FILES_S = 0.2
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))
_TLS_GOODBYE_S = 1.0
"""How long a closed TLS connection waits for the peer's own goodbye. A client that only writes never says it, and would hold up a stop."""
_MOST_STRIKERS = 4096
_STRIKES_BURST_S = 5.0
_STRIKES_LONGEST_S = 5.0
"""So long at most is an address turned away once it fails no more: well-behaved machines may be behind the same one."""
_MOST_A_TURN = 16
"""Connections that are accepted in one turn of the event loop."""
_NOT_BEFORE_US_S = 1.0
"""The event loop has a limit of its own for a handshake, which is not to be the first."""


ADVICE = {
    "too_many": "there are too many connections; raise `max_connections`",
    "too_many_from_address": "it has too many connections; raise `max_connections_per_address`",
    "refused_too_often": "too many of its handshakes failed of late (`max_refusals_per_address_per_s`)",
}
"""What is said of who finds no place."""


class Cut(StrEnum):
    """Which limit turned a connection away or ended it: the label `reason` of the counter."""

    TOO_MANY = "too_many"
    TOO_MANY_FROM_ADDRESS = "too_many_from_address"
    REFUSED_TOO_OFTEN = "refused_too_often"
    TLS_TIMED_OUT = "tls_timed_out"
    TLS_FAILED = "tls_failed"
    HEAD_TIMED_OUT = "head_timed_out"
    HEAD_TOO_LARGE = "head_too_large"
    BODY_NOT_TAKEN = "body_not_taken"
    REQUEST_TIMED_OUT = "request_timed_out"
    ANSWERS_UNREAD = "answers_unread"
    SILENT = "silent"
    HELD_TOO_MUCH = "held_too_much"
    MALFORMED = "malformed"
    TOO_MANY_PINGS = "too_many_pings"
    TOO_MANY_FRAMES = "too_many_frames"


class CutConnections:
    """Counts connections that a limit turned away or ended, by the limit."""

    def __init__(self, metrics: Metrics, component: str) -> None:
        counter = metrics.counter(
            "cut_connections",
            unit="connections",
            help="Connections that a limit turned away or ended, by reason.",
            labels=("component", "reason"),
        )
        self._by_reason = {reason: counter.labels(component, reason.value) for reason in Cut}

    def count(self, reason: Cut) -> None:
        self._by_reason[reason].inc()


class Strikes:
    """Failed handshakes and wrong tokens by address: who fails too often is turned away for a while, before it costs anything.

    Bounded: the oldest is forgotten."""

    def __init__(self, most_per_s: float, clock: Clock) -> None:
        self._most_per_s = most_per_s
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """How full an address's measure was, and when; it empties by `most_per_s`."""

    def strike(self, address: str) -> None:
        if address:
            most = self._most_per_s * (_STRIKES_BURST_S + _STRIKES_LONGEST_S)
            self._levels[address] = (min(self._level(address) + 1.0, most), self._clock.monotonic_s())
            self._levels.move_to_end(address)
            if len(self._levels) > _MOST_STRIKERS:
                self._levels.popitem(last=False)

    def is_out(self, address: str) -> bool:
        return address in self._levels and self._level(address) >= self._most_per_s * _STRIKES_BURST_S

    def _level(self, address: str) -> float:
        level, at_s = self._levels.get(address, (0.0, 0.0))
        return max(level - (self._clock.monotonic_s() - at_s) * self._most_per_s, 0.0)


class Places:
    """How many connections there may be, in all and from one address, and none for an address that fails its handshakes too often."""

    def __init__(self, most: int, most_per_address: int, strikes: Strikes | None = None) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._by_address: Counter[str] = Counter()
        self._strikes = strikes
        self.taken = 0

    def take(self, address: str) -> bool:
        """Take a place; False where the limits leave none."""
        if self.why_not(address) is not None:
            return False
        self._by_address[address] += 1
        self.taken += 1
        return True

    def why_not(self, address: str) -> Cut | None:
        """Return which limit leaves an address no place; None: there is one."""
        if self._strikes is not None and self._strikes.is_out(address):
            return Cut.REFUSED_TOO_OFTEN
        if self.taken >= self._most:
            return Cut.TOO_MANY
        return Cut.TOO_MANY_FROM_ADDRESS if self._by_address.get(address, 0) >= self._most_per_address else None

    def strike(self, address: str) -> bool:
        """A handshake of this address failed, or its token is wrong; return whether it is turned away from now on."""
        if self._strikes is None:
            return False
        self._strikes.strike(address)
        return self._strikes.is_out(address)

    def leave(self, address: str) -> None:
        self.taken -= 1
        self._by_address[address] -= 1
        if self._by_address[address] <= 0:
            del self._by_address[address]


class Accepted(Protocol):
    """A connection's protocol; it gives its place back when it is lost, also where it was never made."""

    is_made: bool

    def connection_lost(self, exc: Exception | None) -> None: ...


class AcceptedProtocol(asyncio.BufferedProtocol):
    """An `Accepted` that says where bytes go."""

    is_made = False


class Door(Protocol):
    """What an acceptor asks of its receiver. An address is "" for a Unix socket."""

    def admit(self, address: str) -> bool:
        """Take a place; False where the limits leave none, and then that has been said."""
        ...

    def open(self, address: str) -> Accepted:
        """Return what serves a peer that was admitted; when it is lost it gives the place back."""
        ...

    async def expects_tls(self, sock: socket.socket, address: str) -> bool:
        """Return whether TLS is to begin, maybe after a look at what has come, within the handshake's time; False: the peer was told."""
        ...

    def timed_out(self, address: str, timeout_s: float) -> None:
        """Say that TLS took longer."""
        ...

    def tls_failed(self, address: str, reason: str) -> None:
        """Say that the TLS handshake failed."""
        ...


class LimitedDoor:
    """The part of a `Door` that is the same for all who say nothing of their own before TLS: its limits, and what is counted and said."""

    def __init__(self, places: Places, cut: CutConnections, log: RateLimitedLogger) -> None:
        self.places = places
        self.cut = cut
        self.log = log

    def admit(self, address: str) -> bool:
        if self.places.take(address):
            return True
        if (why := self.places.why_not(address)) is not None:
            self.cut.count(why)
            self.log.warning(why, "%s: refused, %s", address, ADVICE[why])
        return False

    async def expects_tls(self, sock: socket.socket, address: str) -> bool:
        return True

    def timed_out(self, address: str, timeout_s: float) -> None:
        self.cut.count(Cut.TLS_TIMED_OUT)
        self.log.warning(Cut.TLS_TIMED_OUT, "%s: refused, no TLS handshake within %g s", address, timeout_s)

    def tls_failed(self, address: str, reason: str) -> None:
        self.cut.count(Cut.TLS_FAILED)
        advice = "check the certificates and their authorities on both sides"
        self.log.warning(Cut.TLS_FAILED, "%s: refused, TLS failed (%s); %s", address, reason, advice)


class Acceptor:
    """Brings accepted sockets to their protocol. `accept` runs once for each listener; `close` ends the TLS handshakes under way.

    TLS is for TCP only: on a Unix socket the file's permissions say who connects."""

    def __init__(
        self,
        door: Door,
        *,
        tls: WatchedContext | None,
        handshake_timeout_s: float,
        clock: Clock,
        log: RateLimitedLogger,
        places: Places | None = None,
    ) -> None:
        """`places`: where a TLS handshake that fails is remembered."""
        self._door = door
        self._places = places
        self._tls = tls
        self._timeout_s = handshake_timeout_s
        self._clock = clock
        self._log = log
        self._opening: set[asyncio.Task[None]] = set()

    async def accept(self, listener: socket.socket, tasks: asyncio.TaskGroup) -> None:
        """Accept until cancelled: a few in each turn of the loop, so that those who are connected have their turn too."""
        loop = asyncio.get_running_loop()
        somebody = asyncio.Event()
        listener.setblocking(False)
        while True:
            loop.add_reader(listener, somebody.set)
            try:
                out_of_files = False
                while not out_of_files:
                    await somebody.wait()
                    somebody.clear()
                    out_of_files = self._accept_some(listener, tasks)
            finally:
                loop.remove_reader(listener)
            await self._clock.sleep(_PAUSE_WHEN_OUT_OF_FILES_S)

    def _accept_some(self, listener: socket.socket, tasks: asyncio.TaskGroup) -> bool:
        """Accept those who wait, up to a turn's share; return whether there is nothing left to accept them with."""
        is_tcp = listener.family != socket.AF_UNIX
        for _ in range(_MOST_A_TURN):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:  # of the connection, not of the listener: its peer has given up
                if error.errno not in _OUT_OF_FILES:
                    continue
                self._log.log(logging.ERROR, "accept", "cannot accept a connection (%s); raise the limit of open files", error.strerror)
                return True
            sock.setblocking(False)
            host = str(address[0]) if is_tcp else ""
            if _is_gone(sock):  # before anything is made for it: that costs ten times as much
                if self._tls is not None and is_tcp:
                    self._strike(host)
                sock.close()
                continue
            if not self._door.admit(host):
                sock.close()
                continue
            if is_tcp:
                _set_options(sock)
            context = self._tls.current() if self._tls is not None and is_tcp else None
            task = tasks.create_task(self._open(sock, host, context), name=f"connecting {host}")
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        return False

    def close(self) -> None:
        for task in self._opening:
            task.cancel()

    async def _open(self, sock: socket.socket, host: str, context: ssl.SSLContext | None) -> None:
        protocol = self._door.open(host)
        made: Any = protocol
        try:
            if context is None:
                await asyncio.get_running_loop().connect_accepted_socket(lambda: made, sock)
                return
            # One limit over all of it: the look at the first byte and the handshake would else have the whole time each.
            async with asyncio.timeout(self._timeout_s):
                if await self._door.expects_tls(sock, host):
                    await asyncio.get_running_loop().connect_accepted_socket(
                        lambda: made,
                        sock,
                        ssl=context,
                        ssl_handshake_timeout=self._timeout_s + _NOT_BEFORE_US_S,
                        ssl_shutdown_timeout=_TLS_GOODBYE_S,
                    )
        except (TimeoutError, ConnectionAbortedError):  # the latter is how the event loop says it
            self._strike(host)
            self._door.timed_out(host, self._timeout_s)
        except ssl.SSLError as error:
            reason = (error.reason or str(error)).replace("_", " ").lower()
            if isinstance(error, ssl.SSLCertVerificationError) and error.verify_message:
                reason += f": {error.verify_message}"
            self._strike(host)
            self._door.tls_failed(host, reason)
        except OSError as error:  # the peer went away
            if context is not None:
                self._strike(host)
            self._log.log(logging.DEBUG, "gone", "%s went away while connecting: %s", host, error)
        finally:
            if not protocol.is_made:  # nobody else tells it: it gives its place back, and nobody waits for its end
                protocol.connection_lost(None)
                sock.close()

    def _strike(self, host: str) -> None:
        if self._places is not None:
            self._places.strike(host)


def _is_gone(sock: socket.socket) -> bool:
    """Whether the peer has gone, or ended what it sends, before its first byte: it can be served nothing."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _set_options(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the peer may be gone already
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
