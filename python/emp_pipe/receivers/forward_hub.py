"""What the connections of one Forward receiver share: the intake, the counts, the budget of unacknowledged bytes, and who waits for room.

Nothing here runs per record; `ForwardConnection` calls it a few times a read. Read next: `forward_connection.py`, which owns one peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from emp_pipe.accepting import CutConnections, Places, Strikes
from emp_pipe.clock import Clock
from emp_pipe.clock_skew import ClockSkew
from emp_pipe.component import Arrival, Intake
from emp_pipe.errors import ErrorKind, LogError, Retry
from emp_pipe.forward_handshake import Refusal
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.receivers.forward_refusals import ADVICE
from emp_pipe.self_metrics import Metrics

if TYPE_CHECKING:
    from emp_pipe._core import ForwardDecoder
    from emp_pipe.receivers.forward_connection import ForwardConnection
    from emp_pipe.receivers.forward_http import HttpOnForward

# why a connection is not read from: bits of a number, not an enumeration, because they are asked for at every read
FOR_LOG, FOR_ROOM, FOR_WRITES, FOR_GOOD, FOR_MORE, FOR_OTHERS = 1, 2, 4, 8, 16, 32

_RETRY_AFTER_IO_ERROR_S = 1.0
_STRIKES = frozenset({Refusal.SHARED_KEY, Refusal.USER, Refusal.ANONYMOUS_SOURCE, Refusal.MALFORMED})
"""Refusals that count against an address; those of TLS are counted where connections are accepted."""


@dataclass(frozen=True, slots=True)
class HubSettings:
    """What the connections need of the receiver's configuration."""

    receiver: str
    hostname: str
    detect_duplicates: Literal["emp_pipe", "all", "none"]
    max_read_bytes: int
    max_unacked_bytes: int
    max_total_unacked_bytes: int
    max_connections: int
    max_connections_per_address: int
    max_refusals_per_address_per_s: float
    make_decoder: Callable[[str, bool], ForwardDecoder]
    """Called with the peer's name and whether it may send blocks."""


@dataclass(slots=True)
class Counts:
    """Running totals; plain integers because a metric's lock costs more than the addition. `Hub.publish` hands them on every second."""

    frames: int = 0
    records: int = 0
    bytes: int = 0
    invalid: int = 0
    acks: int = 0
    blocks: int = 0
    foreign_blocks: int = 0
    resources_over_limit: int = 0
    connections: int = 0
    torn: int = 0
    unreadable: int = 0
    lost: int = 0


_HELP = {
    "frames": ("frames", "Forward messages read."),
    "records": ("records", "Records read, the invalid ones included."),
    "bytes": ("bytes", "Bytes read after the handshake, before decompression."),
    "invalid": ("records", "Records that could not be read and became dead letters."),
    "acks": ("acks", "Chunks acknowledged, each after it was durable."),
    "blocks": ("blocks", "Whole blocks received from another emp-pipe."),
    "foreign_blocks": ("blocks", "Blocks refused because their sender did not prove to be an emp-pipe."),
    "resources_over_limit": ("records", "Records whose identity stayed on the record because the batch had too many resources."),
    "connections": ("connections", "Connections accepted."),
    "torn": ("connections", "Connections that ended inside a frame; their peers send it again."),
    "unreadable": ("connections", "Connections closed because the stream could not be followed."),
    "lost": ("records", "Records without a chunk, already read, that the log could not take; their senders cannot send them again."),
}


@dataclass(slots=True)
class Hub:
    """The shared state of a receiver's connections."""

    settings: HubSettings
    intake: Intake
    clock: Clock
    skew: ClockSkew
    metrics: Metrics
    counts: Counts = field(default_factory=Counts)
    connections: set[ForwardConnection] = field(default_factory=set)
    unacked_bytes: int = 0
    stopping: bool = False
    http: HttpOnForward | None = None
    """What takes HTTP on the same port."""
    log: RateLimitedLogger = field(init=False)
    places: Places = field(init=False)
    cut: CutConnections = field(init=False)
    _waiting_for_room: set[ForwardConnection] = field(default_factory=set)
    _waiting_for_log: set[ForwardConnection] = field(default_factory=set)
    _held: list[tuple[Arrival, Callable[[Arrival, asyncio.Future[None]], None]]] = field(default_factory=list)
    _log_is_closed_to_us: asyncio.Event = field(default_factory=asyncio.Event)
    _io_error: bool = False
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _published: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.log = RateLimitedLogger(get_logger(self.settings.receiver))
        strikes = Strikes(self.settings.max_refusals_per_address_per_s, self.clock)
        self.places = Places(self.settings.max_connections, self.settings.max_connections_per_address, strikes)
        self.cut = CutConnections(self.metrics, self.settings.receiver)
        self._idle.set()

    # --- the books of what is on its way to the log -------------------------------------------------

    def took(self, size_bytes: int) -> None:
        self.unacked_bytes += size_bytes
        self._idle.clear()

    def settled(self, size_bytes: int) -> None:
        self.unacked_bytes -= size_bytes
        if self._waiting_for_room and self.unacked_bytes * 2 <= self.settings.max_total_unacked_bytes:
            for connection in [one for one in self._waiting_for_room if one.has_room]:
                self._waiting_for_room.discard(connection)
                connection.resume(FOR_ROOM)
        if not self.unacked_bytes:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when nothing that was read still waits for the log."""
        await self._idle.wait()

    async def wait_closed(self) -> None:
        """Return when no connection is open."""
        for connection in list(self.connections):
            await connection.closed.wait()

    # --- backpressure -------------------------------------------------------------------------------

    def wait_for_room(self, connection: ForwardConnection) -> None:
        self._waiting_for_room.add(connection)

    def wait_for_log(self, connection: ForwardConnection) -> None:
        self._waiting_for_log.add(connection)
        self._log_is_closed_to_us.set()

    def forget(self, connection: ForwardConnection) -> None:
        self.connections.discard(connection)
        self.places.leave(connection.address)
        if self._waiting_for_room and not self.unacked_bytes:
            self.settled(0)
        self._waiting_for_room.discard(connection)
        self._waiting_for_log.discard(connection)

    def hold(
        self, arrival: Arrival, done: Callable[[Arrival, asyncio.Future[None]], None], error: BaseException, unchunked_records: int
    ) -> bool:
        """Keep what the log did not take until it takes something again, where the log is full or the sender has no chunk to send again.

        Return whether it is kept."""
        if self.stopping or not isinstance(error, LogError) or error.retry is not Retry.LATER or error.kind is ErrorKind.LOG_CLOSED:
            return False
        if error.kind is not ErrorKind.LOG_FULL and not unchunked_records:
            return False
        self._held.append((arrival, done))
        self._io_error = self._io_error or error.kind is not ErrorKind.LOG_FULL
        self._log_is_closed_to_us.set()
        return True

    def give_up_held(self) -> None:
        """The end of a stop: what the log has not taken by now fails, so that a record that nobody can send again is counted as lost."""
        held, self._held = self._held, []
        for arrival, done in held:
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(LogError(ErrorKind.LOG_CLOSED))
            done(arrival, failed)

    def lost(self, records: int, peer: str, error: BaseException) -> None:
        """Count records that were read without a chunk and did not get into the log, and say so."""
        self.counts.lost += records
        if records:
            self.log.warning("lost", "%s: %d records without a chunk are lost: %s", peer, records, error)

    async def run_admission(self) -> None:
        """The one task that waits for the log on behalf of all connections."""
        while True:
            await self._log_is_closed_to_us.wait()
            if self._io_error:
                await self.clock.sleep(_RETRY_AFTER_IO_ERROR_S)
            await self.intake.wait_admitting()
            self._log_is_closed_to_us.clear()
            self._io_error = False
            held, self._held = self._held, []
            for arrival, done in held:
                self.submit(arrival, done)
            if not self.intake.admitting:
                self._log_is_closed_to_us.set()
                continue
            waiting, self._waiting_for_log = self._waiting_for_log, set()
            for connection in waiting:
                connection.resume(FOR_LOG)

    def submit(self, arrival: Arrival, done: Callable[[Arrival, asyncio.Future[None]], None]) -> None:
        self.intake.submit(arrival).add_done_callback(lambda future: done(arrival, future))

    # --- what is said about it ----------------------------------------------------------------------

    def refused(self, refusal: Refusal, address: str, peer: str = "", detail: str = "") -> None:
        """Count a peer that did not get in, and say so in one line, at most once in a while for each reason."""
        if refusal in _STRIKES:
            self.places.strike(address)
        self.metrics.counter(
            "forward_refused_handshakes", unit="handshakes", help="Peers turned away, by reason.", labels=("component", "reason")
        ).labels(self.settings.receiver, refusal.name.lower()).inc()
        who = f"{peer} ({address})" if peer else address or "a local peer"
        self.log.warning(refusal.name, "refused %s: %s%s; %s", who, refusal.value, f" ({detail})" if detail else "", ADVICE[refusal])

    def refused_blocks(self, blocks: int, peer: str) -> None:
        self.counts.foreign_blocks += blocks
        self.log.warning("blocks", "%s: %d blocks refused: only another emp-pipe that knows the shared key may send any", peer, blocks)

    def publish(self) -> None:
        """Hand the counts to the metrics."""
        for name, (unit, text) in _HELP.items():
            now: int = getattr(self.counts, name)
            gained = now - getattr(self._published, name)
            counter = self.metrics.counter(f"forward_received_{name}", unit=unit, help=text, labels=("component",))
            child = counter.labels(self.settings.receiver)
            if gained:
                child.inc(gained)
                setattr(self._published, name, now)
        for name, value, unit, text in (
            ("open_connections", len(self.connections), "connections", "Connections that are open."),
            ("unacked_bytes", self.unacked_bytes, "bytes", "Bytes read whose records are not yet durable."),
        ):
            self.metrics.gauge(f"forward_{name}", unit=unit, help=text, labels=("component",)).labels(self.settings.receiver).set(value)
