"""The Fluent Forward receiver: listens on TCP, TLS and a Unix socket, answers UDP heartbeats, and owns every connection's life.

Fluentd, Fluent Bit, fluent-logger clients and other emp-pipes send here unmodified. What a connection does is in `forward_connection.py`,
what they share in `forward_hub.py`, who may send in `forward_access.py`, the sockets in `forward_listen.py` and `emp_pipe/listening.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from emp_pipe.accepting import Acceptor, Cut
from emp_pipe.clock_skew import ClockSkew
from emp_pipe.component import Context, FileMode, Intake
from emp_pipe.errors import ConfigError
from emp_pipe.forward_handshake import Refusal
from emp_pipe.last_reads import read_what_has_come
from emp_pipe.listening import (
    Listen,
    allow_unauthenticated_setting,
    check_guard,
    close_all,
    listen_setting,
    max_connections_per_address_setting,
    max_connections_setting,
    max_refusals_setting,
    open_listeners,
)
from emp_pipe.logs import RateLimitedLogger, get_logger
from emp_pipe.receivers.forward_accept import ForwardDoor
from emp_pipe.receivers.forward_access import Access, AccessConfig
from emp_pipe.receivers.forward_connection import ForwardConnection
from emp_pipe.receivers.forward_http import ForwardHttpConfig, HttpOnForward
from emp_pipe.receivers.forward_hub import FOR_WRITES, Hub, HubSettings
from emp_pipe.receivers.forward_listen import open_datagram, open_unix
from emp_pipe.tls import TlsServerConfig, WatchedContext

if TYPE_CHECKING:
    from emp_pipe._core import ForwardDecoder, Normalizer

_SWEEP_INTERVAL_S = 1.0
_LOOK_NAMES_UP_EVERY_S = 60.0
_MOST_LAST_READS_S = 2.0


class ForwardConfig(AccessConfig):
    """Settings of a Fluent Forward receiver."""

    listen: Listen = listen_setting("24224", "a key or a certificate")
    allow_unauthenticated: bool = allow_unauthenticated_setting()
    unix_path: Path | None = Field(None, description="A Unix socket to listen on as well.")
    unix_mode: FileMode = Field(FileMode(0o660), description="The permissions of the Unix socket.")
    tls: TlsServerConfig | None = Field(None, description="Speak TLS on every TCP address of `listen`; with client_ca_file, mutual TLS.")
    self_hostname: str | None = Field(
        None, min_length=1, max_length=200, description="The name in the handshake; made of the machine's id."
    )
    udp_heartbeat: bool = Field(True, description="Answer fluentd's UDP heartbeats on the same ports.")
    http: ForwardHttpConfig = Field(
        default_factory=lambda: ForwardHttpConfig.model_validate({}), description="Records as JSON by HTTP `POST` on the same TCP ports."
    )
    detect_duplicates: Literal["emp_pipe", "all", "none"] = Field(
        "emp_pipe", description="Whose repeated chunks are acknowledged and not stored again. Fluent Bit's ids are hashes of the content."
    )
    correct_clock_skew: bool = Field(False, description="Move the times of a source whose clock is wrong; it is reported in any case.")
    clock_behind_s: PositiveFloat | None = Field(
        None, description="A source with no younger record for a minute has a clock that is behind."
    )
    max_frame_bytes: PositiveInt = Field(268_435_456, description="The largest message; fluentd's file chunks can be that big.")
    max_inflated_bytes: PositiveInt = Field(268_435_456, description="What a compressed message may inflate to.")
    max_entry_bytes: PositiveInt = Field(67_108_864, description="The largest record.")
    max_read_bytes: Annotated[int, Field(ge=16_384)] = Field(
        131_072, description="The most bytes that one read of a socket takes; more does not stay in the processor's cache."
    )
    max_unacked_bytes: PositiveInt = Field(16_777_216, description="What one connection may have under way to the log.")
    max_total_unacked_bytes: PositiveInt = Field(67_108_864, description="What all connections together may have under way to the log.")
    max_total_unfinished_bytes: PositiveInt = Field(
        536_870_912,
        description="What the unfinished messages of all connections may hold of memory, inflated. Over it the connections that hold "
        "most are closed; their peers send again.",
    )
    max_connections: PositiveInt = max_connections_setting()
    max_connections_per_address: PositiveInt = max_connections_per_address_setting()
    max_refusals_per_address_per_s: PositiveFloat = max_refusals_setting()
    handshake_timeout_s: PositiveFloat = Field(10.0, description="The time that TLS and the key's handshake may take.")
    frame_timeout_s: PositiveFloat = Field(
        120.0, description="A connection that is silent inside a message, or does not take its acks, for so long is closed."
    )
    idle_timeout_s: PositiveFloat | None = Field(
        None,
        description="A connection that is silent between messages for so long is closed. Off: a client without acks would lose what it "
        "sends next.",
    )

    @model_validator(mode="after")
    def _it_makes_sense(self) -> ForwardConfig:
        if not self.listen and self.unix_path is None:
            raise ValueError("there is nothing to listen on: give `listen` or `unix_path`")
        if self.users and not self.shared_key and not any(client.shared_key for client in self.clients):
            raise ValueError("`users` are asked for in the handshake, which needs a `shared_key`")
        known = set(self.users)
        for client in self.clients:
            for name in client.users:
                if name not in known:
                    raise ValueError(f"clients: {client.network}: there is no user {name} in `users`")
        credentials = "`shared_key`, or `tls` with `client_ca_file`"
        check_guard(self.listen, guarded=self.is_guarded, allowed=self.allow_unauthenticated, credentials=credentials)
        return self

    @property
    def is_guarded(self) -> bool:
        """Every peer on TCP has to show a key or a certificate."""
        return self.asks_for_a_key or (self.tls is not None and self.tls.client_ca_file is not None)


class ForwardReceiver:
    """Takes Fluent Forward from sockets. `addresses` are those that it listens on, once started."""

    def __init__(self, id: str, config: ForwardConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self.addresses: list[tuple[str, int]] = []
        self._context = context
        self._log = get_logger(id)
        self._limited = RateLimitedLogger(self._log)
        self._access = Access(config, id)
        self._tls: WatchedContext | None = None
        self._hub: Hub | None = None
        self._http: HttpOnForward | None = None
        self._stop_accepting = asyncio.Event()
        self._finish = asyncio.Event()
        self._finished = asyncio.Event()

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        """Listen until `stop`. Raises ConfigError where a file, a secret or an address cannot be used."""
        config = self.config
        try:
            self._tls = WatchedContext.of_server(config.tls, self._context.clock, f"{self.id}: tls") if config.tls is not None else None
            await self._access.prepare()
            self._http = HttpOnForward.of(self.id, config, self._context)
            self._hub = hub = self._make_hub(intake)
            if self._http is not None:
                self._http.start(hub)
            async with contextlib.AsyncExitStack() as stack:
                sockets = await self._listen(stack)
                await self._serve(hub, sockets, started)
        finally:
            self._finished.set()

    async def _serve(self, hub: Hub, sockets: list[socket.socket], started: asyncio.Event) -> None:
        acceptor = Acceptor(
            ForwardDoor(hub, self._access),
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
            if self._access.looks_names_up:
                others.append(tasks.create_task(self._look_names_up(), name=f"{self.id}: names"))
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
                hub.give_up_held()
                for connection in list(hub.connections):
                    connection.close(at_once=True)
                hub.publish()
                if self._http is not None:
                    self._http.close()

    async def stop(self, deadline_monotonic_s: float) -> None:
        """Accept nothing new, read what has come, acknowledge what becomes durable before the deadline, close."""
        self._stop_accepting.set()
        hub = self._hub
        if hub is not None and not self._finished.is_set():
            now_s = self._context.clock.monotonic_s()
            last_read_s = now_s + min(_MOST_LAST_READS_S, (deadline_monotonic_s - now_s) / 4)
            await read_what_has_come(hub.connections, self._context.clock, last_read_s)
            hub.stopping = True
            for connection in list(hub.connections):
                connection.drain()
            if self._http is not None:
                await self._http.finish(deadline_monotonic_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(deadline_monotonic_s - self._context.clock.monotonic_s(), 0.0)):
                    await hub.wait_idle()
                    await hub.wait_closed()
        self._finish.set()
        if hub is not None:
            await self._finished.wait()

    async def reload(self) -> None:
        """Read certificates and secrets again; open connections stay. Raises ConfigError; then everything stays as it was."""
        await self._access.prepare()
        if self._http is not None:
            self._http.reload()
        if self._tls is not None:
            self._tls.reload()

    # --- set-up -------------------------------------------------------------------------------------

    def _make_hub(self, intake: Intake) -> Hub:
        config, context = self.config, self._context
        decoder_class, normalizer = _core(context)

        def make_decoder(peer: str, accept_blocks: bool) -> ForwardDecoder:
            return decoder_class(
                normalizer,
                max_frame_bytes=config.max_frame_bytes,
                max_inflated_bytes=config.max_inflated_bytes,
                max_entry_bytes=config.max_entry_bytes,
                accept_blocks=accept_blocks,
                peer=peer,
            )

        settings = HubSettings(
            receiver=self.id,
            hostname=config.self_hostname or f"{context.machine_id}.{context.role}"[:200],
            detect_duplicates=config.detect_duplicates,
            max_read_bytes=config.max_read_bytes,
            max_unacked_bytes=config.max_unacked_bytes,
            max_total_unacked_bytes=config.max_total_unacked_bytes,
            max_connections=config.max_connections,
            max_connections_per_address=config.max_connections_per_address,
            max_refusals_per_address_per_s=config.max_refusals_per_address_per_s,
            make_decoder=make_decoder,
        )
        skew = ClockSkew(self.id, context.metrics, self._limited, behind_s=config.clock_behind_s, correct=config.correct_clock_skew)
        return Hub(settings, intake, context.clock, skew, context.metrics)

    async def _listen(self, stack: contextlib.AsyncExitStack) -> list[socket.socket]:
        """Open everything that the configuration names; the stack closes it."""
        config = self.config
        sockets: list[socket.socket] = []
        stack.callback(close_all, sockets)
        for entry in config.listen:
            sockets += open_listeners(entry, guarded=config.is_guarded, place=f"{self.id}: listen")
        self.addresses = [sock.getsockname()[:2] for sock in sockets]
        if config.udp_heartbeat:
            for host, port in self.addresses:
                await self._answer_heartbeats(host, port, stack)
        if config.unix_path is not None:
            sockets.append(open_unix(config.unix_path, config.unix_mode, f"{self.id}: unix_path"))
            stack.callback(config.unix_path.unlink, missing_ok=True)
        shown = [f"{host}:{port}" for host, port in self.addresses] + ([str(config.unix_path)] if config.unix_path else [])
        how = "TLS" if config.tls else "no TLS"
        self._log.info("listening on %s (%s, %s)", ", ".join(shown), how, "shared key" if config.asks_for_a_key else "no shared key")
        return sockets

    async def _answer_heartbeats(self, host: str, port: int, stack: contextlib.AsyncExitStack) -> None:
        try:
            sock = open_datagram(host, port, f"{self.id}: udp_heartbeat")
        except ConfigError as error:  # records come by TCP all the same
            self._log.warning("%s Heartbeats by UDP are not answered there.", error)
            return
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Heartbeat, sock=sock)
        stack.callback(transport.close)

    # --- tasks --------------------------------------------------------------------------------------

    async def _sweep(self, hub: Hub) -> None:
        """Every second: close who is silent for too long, report clocks, publish the counts."""
        while True:
            await self._context.clock.sleep(_SWEEP_INTERVAL_S)
            now_s = self._context.clock.monotonic_s()
            for connection in list(hub.connections):
                self._close_if_silent(hub, connection, now_s)
                connection.report_age(now_s)
            self._close_who_holds_most(hub)
            if self._http is not None:
                self._http.sweep(now_s)
            hub.skew.publish()
            hub.publish()

    def _close_if_silent(self, hub: Hub, connection: ForwardConnection, now_s: float) -> None:
        config = self.config
        if connection.is_closing:  # the peer does not take what was written last
            if now_s - connection.waits_since_s >= config.frame_timeout_s:
                connection.close(at_once=True)
            return
        if connection.in_handshake:  # a drip of bytes does not extend the handshake
            if now_s - connection.waits_since_s >= config.handshake_timeout_s:
                connection.turn_away(Refusal.TIMED_OUT)
            return
        if connection.paused & FOR_WRITES:
            if now_s - connection.waits_since_s >= config.frame_timeout_s:
                hub.cut.count(Cut.ANSWERS_UNREAD)
                self._limited.warning("unread", "%s: closed, it did not take its acks", connection.peer)
                connection.close(at_once=True)
            return
        if connection.heard or connection.is_waiting_for_us:
            connection.heard = False
            connection.waits_since_s = now_s
            return
        connection.give_memory_back()
        silent_s = now_s - connection.waits_since_s
        limit_s = config.frame_timeout_s if connection.unfinished_bytes else config.idle_timeout_s
        if limit_s is not None and silent_s >= limit_s:
            if connection.unfinished_bytes:  # a silence between messages is no offence
                hub.cut.count(Cut.SILENT)
            self._limited.warning("silent", "%s: closed after %.0f s of silence", connection.peer, silent_s)
            connection.close()

    def _close_who_holds_most(self, hub: Hub) -> None:
        """A few kilobytes can inflate to a record of megabytes whose end never comes: many such connections must not fill the memory."""
        limit = self.config.max_total_unfinished_bytes
        held = {connection: connection.unfinished_bytes for connection in hub.connections}
        total = sum(held.values())
        for connection in sorted(held, key=held.__getitem__, reverse=True):
            if total <= limit:
                return
            if connection.is_closing or connection.is_waiting_for_us:
                continue
            hub.cut.count(Cut.HELD_TOO_MUCH)
            self._limited.warning(
                "unfinished",
                "%s: closed, its unfinished message holds %s bytes and all of them together %s; raise `max_total_unfinished_bytes`, or "
                "send smaller messages",
                connection.peer,
                f"{held[connection]:,}",
                f"{total:,}",
            )
            connection.close(at_once=True)
            total -= held[connection]

    async def _look_names_up(self) -> None:
        while True:
            await self._context.clock.sleep(_LOOK_NAMES_UP_EVERY_S)
            await self._access.prepare()


class _Heartbeat(asyncio.DatagramProtocol):
    """One zero byte is answered with one zero byte."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if data == b"\0":
            self._transport.sendto(b"\0", addr)


def _core(context: Context) -> tuple[type[ForwardDecoder], Normalizer]:
    from emp_pipe._core import ForwardDecoder, Normalizer  # on use: a configuration is checked without the native core

    return ForwardDecoder, context.normalizer if context.normalizer is not None else Normalizer()


CONFIG = ForwardConfig
COMPONENT = ForwardReceiver
