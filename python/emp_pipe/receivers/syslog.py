"""The syslog receiver: UDP, TCP and TLS, RFC 5424 and RFC 3164, and what is really sent for them.

Nothing that comes is refused for its form: a message that no rule fits is a body. Syslog has no acks, so a sender takes for delivered
what reached this machine's kernel: docs/syslog.md says what that means. Sockets are in `syslog_tcp.py` and `syslog_udp.py`, the way to
the log in `syslog_hub.py`, the parser in the core (`rust/emp-core/src/syslog`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from emp_pipe.accepting import Acceptor, Cut
from emp_pipe.component import ComponentConfig, Context, Intake
from emp_pipe.last_reads import read_what_has_come
from emp_pipe.listening import (
    Listen,
    allow_unauthenticated_setting,
    check_guard,
    close_all,
    max_connections_per_address_setting,
    max_connections_setting,
    max_refusals_setting,
    open_listeners,
)
from emp_pipe.logs import get_logger
from emp_pipe.receivers.syslog_hub import SyslogHub, Zone
from emp_pipe.receivers.syslog_tcp import SyslogConnection
from emp_pipe.receivers.syslog_udp import SyslogDatagrams, open_datagram_sockets
from emp_pipe.tls import TlsServerConfig, WatchedContext

_SWEEP_INTERVAL_S = 1.0
_MOST_LAST_READS_S = 2.0


class SyslogConfig(ComponentConfig):
    """Settings of a syslog receiver."""

    listen: Listen = Field(
        ("5140",),
        description="TCP: host:port, *:port for all interfaces, or a port alone: all interfaces where senders show a certificate or "
        "`allowed_peers` names them, else loopback. One or several; none ([]) for UDP alone.",
    )
    udp: Listen = Field(("5140",), description="UDP, likewise; none ([]) for TCP alone. A datagram's address can be forged.")
    allow_unauthenticated: bool = allow_unauthenticated_setting()
    allowed_peers: tuple[str, ...] = Field((), description="Addresses and networks that may send, such as 10.0.0.0/8; none named: all.")
    tls: TlsServerConfig | None = Field(None, description="Speak TLS on every TCP address; with client_ca_file, mutual TLS.")
    framing: Literal["auto", "octet_counting", "newline"] = Field(
        "auto", description="How messages of a stream are told apart: by a length in front, by lines, or by the look of each."
    )
    max_message_bytes: Annotated[int, Field(ge=480)] = Field(65_536, description="Longer messages become several records, marked.")
    timezone: str | None = Field(None, description="The zone of times without one, such as Europe/Berlin. Unset: this machine's.")
    udp_buffer_bytes: PositiveInt = Field(
        4_194_304, description="What the kernel is asked to keep of datagrams that are not read yet; net.core.rmem_max is its limit."
    )
    max_unstored_bytes: PositiveInt = Field(
        67_108_864, description="What may be under way to the log; over it nothing is read until half of it is durable."
    )
    max_connections: PositiveInt = max_connections_setting()
    max_connections_per_address: PositiveInt = max_connections_per_address_setting()
    max_refusals_per_address_per_s: PositiveFloat = max_refusals_setting()
    handshake_timeout_s: PositiveFloat = Field(10.0, description="The time that TLS may take.")
    message_timeout_s: PositiveFloat = Field(
        10.0, description="What has come of a message is taken for all of it after so long a silence inside it."
    )
    idle_timeout_s: PositiveFloat | None = Field(None, description="A connection that is silent for so long is closed. Off: never.")

    @field_validator("allowed_peers")
    @classmethod
    def _they_are_networks(cls, peers: tuple[str, ...]) -> tuple[str, ...]:
        for peer in peers:
            ipaddress.ip_network(peer, strict=False)
        return peers

    @model_validator(mode="after")
    def _it_makes_sense(self) -> SyslogConfig:
        if not self.listen and not self.udp:
            raise ValueError("there is nothing to listen on: give `listen` or `udp`")
        credentials = "`allowed_peers`, or `tls` with `client_ca_file`"
        check_guard(self.listen, guarded=self.is_guarded, allowed=self.allow_unauthenticated, credentials=credentials)
        for entry in self.udp:
            try:
                check_guard((entry,), guarded=bool(self.allowed_peers), allowed=self.allow_unauthenticated, credentials="`allowed_peers`")
            except ValueError as error:
                raise ValueError(str(error).replace("`listen`", "`udp`", 1)) from None
        return self

    @property
    def is_guarded(self) -> bool:
        """Not every stranger can send by TCP."""
        return bool(self.allowed_peers) or (self.tls is not None and self.tls.client_ca_file is not None)


class SyslogReceiver:
    """Takes syslog. `addresses` (TCP) and `udp_addresses` are those that it listens on, once started."""

    def __init__(self, id: str, config: SyslogConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self.addresses: list[tuple[str, int]] = []
        self.udp_addresses: list[tuple[str, int]] = []
        self._context = context
        self._log = get_logger(id)
        self._tls: WatchedContext | None = None
        self._hub: SyslogHub | None = None
        self._datagrams: list[SyslogDatagrams] = []
        self._stop_accepting = asyncio.Event()
        self._finish = asyncio.Event()
        self._finished = asyncio.Event()

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        """Listen until `stop`. Raises ConfigError where a file or an address cannot be used."""
        config = self.config
        sockets: list[socket.socket] = []
        udp: list[socket.socket] = []
        try:
            self._tls = WatchedContext.of_server(config.tls, self._context.clock, f"{self.id}: tls") if config.tls is not None else None
            zone = Zone(config.timezone, self.id)
            for entry in config.listen:
                sockets += open_listeners(entry, guarded=config.is_guarded, place=f"{self.id}: listen")
            for entry in config.udp:
                guarded = bool(config.allowed_peers)
                udp += open_datagram_sockets(entry, guarded=guarded, buffer_bytes=config.udp_buffer_bytes, place=f"{self.id}: udp")
            self.addresses = [sock.getsockname()[:2] for sock in sockets]
            self.udp_addresses = [sock.getsockname()[:2] for sock in udp]
            self._hub = hub = SyslogHub(self.id, config, self._context, intake, zone)
            self._datagrams = [SyslogDatagrams(hub, sock) for sock in udp]
            self._say_where()
            await self._serve(hub, sockets, started)
        finally:
            for datagrams in self._datagrams:
                datagrams.close()
            close_all([*sockets, *udp])
            self._finished.set()

    def _say_where(self) -> None:
        shown = [f"{host}:{port} (TCP, {'TLS' if self.config.tls else 'no TLS'})" for host, port in self.addresses]
        shown += [f"{host}:{port} (UDP)" for host, port in self.udp_addresses]
        self._log.info("listening on %s", ", ".join(shown))
        least = min((datagrams.buffer_bytes for datagrams in self._datagrams), default=self.config.udp_buffer_bytes)
        if least < self.config.udp_buffer_bytes:
            self._log.warning(
                "the kernel keeps %s bytes of datagrams, not the %s of `udp_buffer_bytes`; raise net.core.rmem_max, or lose datagrams "
                "when many come at once",
                f"{least:,}",
                f"{self.config.udp_buffer_bytes:,}",
            )

    async def _serve(self, hub: SyslogHub, sockets: list[socket.socket], started: asyncio.Event) -> None:
        acceptor = Acceptor(
            hub,
            tls=self._tls,
            handshake_timeout_s=self.config.handshake_timeout_s,
            clock=hub.clock,
            log=hub.log,
            places=hub.places,
        )
        async with asyncio.TaskGroup() as tasks:
            accepting = [tasks.create_task(acceptor.accept(sock, tasks), name=f"{self.id}: accept") for sock in sockets]
            others = [
                tasks.create_task(hub.run_admission(), name=f"{self.id}: admission"),
                tasks.create_task(self._sweep(hub), name=f"{self.id}: sweep"),
            ]
            started.set()
            try:
                await self._stop_accepting.wait()
                for task in accepting:
                    task.cancel()
                acceptor.close()
                await self._finish.wait()
            finally:
                for task in (*accepting, *others):
                    task.cancel()
                acceptor.close()
                for connection in list(hub.connections):
                    connection.close()
                hub.give_up_held()
                for datagrams in self._datagrams:
                    datagrams.close()
                hub.publish()

    async def stop(self, deadline_monotonic_s: float) -> None:
        """Accept nothing new, read what has come, hand it to the log before the deadline, close."""
        self._stop_accepting.set()
        hub = self._hub
        if hub is not None and not self._finished.is_set():
            clock = self._context.clock
            now_s = clock.monotonic_s()
            last_read_s = now_s + min(_MOST_LAST_READS_S, (deadline_monotonic_s - now_s) / 4)
            for datagrams in self._datagrams:
                await datagrams.read_rest(clock, last_read_s)
                datagrams.close()
            await read_what_has_come(hub.connections, clock, last_read_s)
            for connection in list(hub.connections):
                connection.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(deadline_monotonic_s - clock.monotonic_s(), 0.0)):
                    await hub.wait_idle()
        self._finish.set()
        if hub is not None:
            await self._finished.wait()

    async def reload(self) -> None:
        """Read certificates again; open connections stay. Raises ConfigError; then everything stays as it was."""
        if self._tls is not None:
            self._tls.reload()

    async def _sweep(self, hub: SyslogHub) -> None:
        """Every second: end messages that do not go on, close who is silent for too long, publish the counts."""
        while True:
            await self._context.clock.sleep(_SWEEP_INTERVAL_S)
            hub.now_s = now_s = self._context.clock.monotonic_s()
            for connection in list(hub.connections):
                self._look_after(hub, connection, now_s)
            for datagrams in self._datagrams:
                datagrams.count_dropped()
            hub.publish()

    def _look_after(self, hub: SyslogHub, connection: SyslogConnection, now_s: float) -> None:
        if connection.is_paused:
            connection.since_s = now_s
            return
        silent_s = now_s - connection.since_s
        if connection.pending_bytes and silent_s >= self.config.message_timeout_s:
            connection.flush()
        if self.config.idle_timeout_s is not None and silent_s >= self.config.idle_timeout_s:
            hub.cut.count(Cut.SILENT)
            hub.log.warning("silent", "%s: closed after %.0f s of silence", connection.address, silent_s)
            connection.close()


CONFIG = SyslogConfig
COMPONENT = SyslogReceiver
