"""What the sockets of one syslog receiver share: the decoder, the way to the log, who waits for room, and the counts.

Syslog has no acks: what was read is this receiver's to keep. What the log does not take is held and offered again; meanwhile nothing
more is read, so that TCP's senders wait and the kernel keeps datagrams as long as it has room. Read next: `syslog_tcp.py`, `syslog_udp.py`.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import zoneinfo
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from emp_pipe import xid
from emp_pipe.accepting import CutConnections, LimitedDoor, Places, Strikes
from emp_pipe.clock import Clock
from emp_pipe.clock_skew import ClockSkew
from emp_pipe.component import Arrival, Context, Intake
from emp_pipe.errors import ConfigError, ErrorKind, LogError, Retry
from emp_pipe.log.protocol import DeadLetter, DeadReason
from emp_pipe.logs import RateLimitedLogger, get_logger

if TYPE_CHECKING:
    from emp_pipe._core import SyslogDecoder, SyslogRead
    from emp_pipe.receivers.syslog import SyslogConfig
    from emp_pipe.receivers.syslog_tcp import SyslogConnection

_RETRY_AFTER_IO_ERROR_S = 1.0
_MOST_KNOWN_PEERS = 4096

_HELP = {
    "rows": ("records", "Messages received, and parts of those that were too long."),
    "malformed": ("records", "Messages of RFC 5424 whose header breaks off; what could not be read is in the body."),
    "without_priority": ("records", "Messages without a priority, kept as they came."),
    "split": ("records", "Parts of messages over `max_message_bytes`."),
    "blank": ("messages", "Messages with nothing in them."),
    "misframed": ("messages", "Messages of a stream that should have had a length and had none."),
    "torn": ("messages", "Messages that ended before their length was reached; their beginning is kept."),
}
LOST = {
    "kernel_buffer": "datagrams that the kernel had no room for",
    "log": "messages that the log did not take before the stop",
}
"""Why messages are lost: the label `reason`."""


class Pausable(Protocol):
    """What reads a socket."""

    def resume(self) -> None: ...


class Peers:
    """Which addresses may send. Nothing named: all."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ipaddress.ip_network(network, strict=False) for network in networks]
        self._known: dict[str, bool] = {}

    def may_send(self, address: str) -> bool:
        if not self._networks:
            return True
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= _MOST_KNOWN_PEERS:
                self._known.clear()
            known = self._known[address] = self._is_named(address)
        return known

    def _is_named(self, address: str) -> bool:
        try:
            source = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        return any(source.version == network.version and source in network for network in self._networks)


class Zone:
    """The zone of times without one. Raises ConfigError for a name that this machine does not know."""

    def __init__(self, name: str | None, place: str) -> None:
        self._zone: datetime.tzinfo | None = None
        if name is not None:
            try:
                self._zone = zoneinfo.ZoneInfo(name)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                raise ConfigError(
                    ErrorKind.CONFIG_INVALID,
                    place=f"{place}: timezone",
                    detail=f"this machine knows no time zone {name}",
                    advice="name one as in Europe/Berlin, or UTC",
                ) from None

    def offset_s(self, unix_nano: int) -> int:
        """Return seconds east of UTC."""
        now = datetime.datetime.fromtimestamp(unix_nano / 1e9, datetime.UTC).astimezone(self._zone)
        offset = now.utcoffset()
        return int(offset.total_seconds()) if offset is not None else 0


class SyslogHub(LimitedDoor):
    """See the module's head. An `emp_pipe.accepting.Door`."""

    def __init__(self, id: str, config: SyslogConfig, context: Context, intake: Intake, zone: Zone) -> None:
        from emp_pipe._core import Normalizer, SyslogDecoder  # on use: a configuration is checked without the native core

        clock: Clock = context.clock
        strikes = Strikes(config.max_refusals_per_address_per_s, clock)
        places = Places(config.max_connections, config.max_connections_per_address, strikes)
        super().__init__(places, CutConnections(context.metrics, id), RateLimitedLogger(get_logger(id)))
        normalizer = context.normalizer if context.normalizer is not None else Normalizer()
        self.decoder: SyslogDecoder = SyslogDecoder(normalizer, framing=config.framing, max_message_bytes=config.max_message_bytes)
        self.receiver = id
        self.clock = clock
        self.peers = Peers(config.allowed_peers)
        self.connections: set[SyslogConnection] = set()
        self.stopping = False
        self.unstored_bytes = 0
        self.now_s = clock.monotonic_s()
        self.skew = ClockSkew(id, context.metrics, self.log, behind_s=None, correct=False, prefix="syslog")
        self._intake = intake
        self._metrics = context.metrics
        self._max_unstored_bytes = config.max_unstored_bytes
        self._zone = zone
        self._zone_until_ns = self._offset_s = 0
        self._waiting: set[Pausable] = set()
        self._held: list[tuple[Arrival, int]] = []
        self._io_error = False
        self._blocked = asyncio.Event()
        self._less = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._published: dict[str, int] = {}

    # --- the door -----------------------------------------------------------------------------------

    def admit(self, address: str) -> bool:
        if self.peers.may_send(address):
            return super().admit(address)
        self.refuse(1, address, "connection")
        return False

    def open(self, address: str) -> SyslogConnection:
        from emp_pipe.receivers.syslog_tcp import SyslogConnection

        return SyslogConnection(self, address)

    def closed(self, connection: SyslogConnection) -> None:
        self.connections.discard(connection)
        self._waiting.discard(connection)
        self.places.leave(connection.address)

    def refuse(self, count: int, address: str, what: str) -> None:
        """Count what came from an address that is not allowed, and say so."""
        self._metrics.counter(
            "syslog_refused",
            unit="messages",
            help="Datagrams and connections of addresses that may not send.",
            labels=("component", "what"),
        ).labels(self.receiver, what).inc(count)
        self.log.warning(f"refused {what}", "%s: %s refused; name its network in `allowed_peers`", address, what)

    # --- from a read to the log ---------------------------------------------------------------------

    def when(self) -> tuple[int, int]:
        """Return now, and the offset of the zone of times without one."""
        now = self.clock.unix_nano()
        if not 0 <= self._zone_until_ns - now <= 60_000_000_000:
            self._offset_s, self._zone_until_ns = self._zone.offset_s(now), now + 60_000_000_000
        return now, self._offset_s

    def took(self, read: SyslogRead, size_bytes: int, peer: str) -> None:
        """Hand over what was read."""
        for address, age_ns in read.ages:
            self.skew.seen(address, age_ns, self.now_s)
        batch, rejected = read.batch, read.rejected
        if batch is None and not rejected:
            return
        if batch is not None:
            batch = xid.marked(batch, facility="kern")
        now = self.clock.unix_nano()
        dead = tuple(
            DeadLetter(
                component=self.receiver,
                reason=DeadReason.ENTRY_INVALID,
                detail=one.detail,
                payload=one.data,
                records=one.records,
                peer=peer,
                offset=one.offset,
                time_unix_nano=now,
            )
            for one in rejected
        )
        invalid = sum(one.records for one in rejected)
        size_bytes = max(size_bytes, batch.size_bytes if batch is not None else 0)
        self.unstored_bytes += size_bytes
        self._idle.clear()
        self._submit(Arrival(self.receiver, batch, received=read.received, invalid=invalid, dead=dead), size_bytes)

    def _submit(self, arrival: Arrival, size_bytes: int) -> None:
        self._intake.submit(arrival).add_done_callback(lambda future: self._done(arrival, size_bytes, future))

    def _done(self, arrival: Arrival, size_bytes: int, future: asyncio.Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        may_be_taken_later = isinstance(error, LogError) and error.retry is Retry.LATER and error.kind is not ErrorKind.LOG_CLOSED
        if isinstance(error, LogError) and may_be_taken_later and not self.stopping:
            self._held.append((arrival, size_bytes))
            self._io_error = self._io_error or error.kind is not ErrorKind.LOG_FULL
            self._blocked.set()
            self._less.set()
            return
        if error is not None or future.cancelled():
            self.lost(arrival.received, "log")
        self.unstored_bytes -= size_bytes
        if self.unstored_bytes * 2 <= self._max_unstored_bytes:
            self._less.set()
        if not self.unstored_bytes:
            self._idle.set()

    def lost(self, count: int, reason: str) -> None:
        """Count what cannot be sent again, and say so."""
        self._metrics.counter(
            "syslog_lost", unit="messages", help="Messages lost for good, by reason: syslog has no acks.", labels=("component", "reason")
        ).labels(self.receiver, reason).inc(count)
        if count:
            advice = "; raise `udp_buffer_bytes` (and net.core.rmem_max), or send by TCP" if reason == "kernel_buffer" else ""
            self.log.warning(f"lost {reason}", "%d %s are lost%s", count, LOST[reason], advice)

    # --- room ---------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        return not self._held and self.unstored_bytes <= self._max_unstored_bytes and self._intake.admitting

    def wait_for_room(self, reader: Pausable) -> None:
        """`reader.resume` is called when there is room."""
        self._waiting.add(reader)
        self._blocked.set()

    async def run_admission(self) -> None:
        """The one task that waits for the log on behalf of all."""
        while True:
            await self._blocked.wait()
            if self._io_error:
                await self.clock.sleep(_RETRY_AFTER_IO_ERROR_S)
            await self._intake.wait_admitting()
            self._io_error = False
            held, self._held = self._held, []
            for arrival, size_bytes in held:
                self._submit(arrival, size_bytes)
            while self.unstored_bytes * 2 > self._max_unstored_bytes and not self._held:
                self._less.clear()
                await self._less.wait()
            if not self.has_room:
                continue
            self._blocked.clear()
            waiting, self._waiting = self._waiting, set()
            for reader in waiting:
                reader.resume()

    async def wait_idle(self) -> None:
        """Return when nothing that was read still waits for the log."""
        await self._idle.wait()

    def give_up_held(self) -> None:
        """The end of a stop: what the log has not taken by now is lost, and counted."""
        self.stopping = True
        held, self._held = self._held, []
        for arrival, size_bytes in held:
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(LogError(ErrorKind.LOG_CLOSED))
            self._done(arrival, size_bytes, failed)

    def publish(self) -> None:
        """Hand the counts to the metrics."""
        for name, now in self.decoder.counts:
            unit, text = _HELP[name]
            gained = now - self._published.get(name, 0)
            counter = self._metrics.counter(f"syslog_received_{name}", unit=unit, help=text, labels=("component",)).labels(self.receiver)
            counter.inc(gained)
            self._published[name] = now
        for name, value, unit, text in (
            ("open_connections", len(self.connections), "connections", "Connections that are open."),
            ("unstored_bytes", self.unstored_bytes, "bytes", "Bytes read whose records are not yet durable."),
        ):
            self._metrics.gauge(f"syslog_{name}", unit=unit, help=text, labels=("component",)).labels(self.receiver).set(value)
        self.skew.publish()
