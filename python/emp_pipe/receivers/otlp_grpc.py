"""The OTLP/gRPC receiver: Logs, Trace and Metrics Export over HTTP/2, on TCP and TLS.

It owns the listeners and every connection's life, and says what a call gets: by its headers alone where that is enough to refuse it, else
when it is durable. The bytes of a connection are in `emp_pipe/grpc_connection.py` and in the core, what happens with a request in
`emp_pipe/otlp_intake.py`; how a call is judged in `otlp_grpc_calls.py`. gRPC does not inflate: the core does, under our limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from pydantic import Field, PositiveFloat, PositiveInt

from emp_pipe.accepting import Acceptor, CutConnections
from emp_pipe.bearer import BearerTokens
from emp_pipe.component import Context, Intake
from emp_pipe.listening import (
    Listen,
    close_all,
    listen_setting,
    max_connections_per_address_setting,
    max_connections_setting,
    max_refusals_setting,
    open_listeners,
)
from emp_pipe.logs import get_logger
from emp_pipe.otlp_intake import OtlpIntake, OtlpReceiverConfig
from emp_pipe.receivers.otlp_grpc_calls import Service
from emp_pipe.tls import WatchedContext

_SWEEP_INTERVAL_S = 1.0
_LAST_ANSWERS_S = 0.5
"""Before the deadline of a stop, for the answers to what has not become durable."""


class OtlpGrpcConfig(OtlpReceiverConfig):
    """Settings of an OTLP/gRPC receiver."""

    listen: Listen = listen_setting("4317", "a token or a certificate")
    max_concurrent_reads: PositiveInt = Field(32, description="The most requests over 1 MiB received at once; others wait.")
    max_streams_per_connection: PositiveInt = Field(1000, description="The most requests under way on one connection.")
    max_connections: PositiveInt = max_connections_setting()
    max_connections_per_address: PositiveInt = max_connections_per_address_setting()
    max_refusals_per_address_per_s: PositiveFloat = max_refusals_setting()
    head_timeout_s: PositiveFloat = Field(10.0, description="The time that TLS, and then the first frames of a client, may take, each.")
    keepalive_s: PositiveFloat = Field(60.0, description="A client that is silent for so long is asked whether it is there.")
    keepalive_timeout_s: PositiveFloat = Field(20.0, description="The time it has to answer that.")
    min_ping_interval_s: PositiveFloat = Field(10.0, description="Clients that ping more often are turned away (too_many_pings).")


class OtlpGrpcReceiver:
    """Takes OTLP by gRPC. `addresses` are those that it listens on, once started."""

    def __init__(self, id: str, config: OtlpGrpcConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self.addresses: list[tuple[str, int]] = []
        self._context = context
        self._log = get_logger(id)
        self._tokens = BearerTokens(config, id)
        self._tls: WatchedContext | None = None
        self._service: Service | None = None
        self._stop_accepting = asyncio.Event()
        self._finish = asyncio.Event()
        self._finished = asyncio.Event()

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        """Serve until `stop`. Raises ConfigError where a file, a secret or an address cannot be used."""
        config = self.config
        sockets: list[socket.socket] = []
        try:
            if config.tls is not None:
                self._tls = WatchedContext.of_server(config.tls, self._context.clock, f"{self.id}: tls", ["h2"])
            self._tokens.prepare()
            for entry in config.listen:
                sockets += open_listeners(entry, guarded=config.is_guarded, place=f"{self.id}: listen")
            self.addresses = [sock.getsockname()[:2] for sock in sockets]
            shown = ", ".join(f"{host}:{port}" for host, port in self.addresses)
            how = "TLS" if config.tls else "no TLS"
            self._log.info("listening on %s (%s, %s)", shown, how, "token" if config.asks_for_a_token else "no token")
            otlp = OtlpIntake(self.id, config, self._context, intake)
            cut = CutConnections(self._context.metrics, self.id)
            self._service = Service(config, self._tokens, otlp, cut, self._context.clock)
            try:
                await self._serve(self._service, sockets, started)
            finally:
                otlp.publish()
                otlp.close()
        finally:
            close_all(sockets)
            self._finished.set()

    async def _serve(self, service: Service, sockets: list[socket.socket], started: asyncio.Event) -> None:
        clock = self._context.clock
        acceptor = Acceptor(
            service,
            tls=self._tls,
            handshake_timeout_s=self.config.head_timeout_s,
            clock=clock,
            log=service.log,
            places=service.places,
        )
        async with asyncio.TaskGroup() as tasks:
            accepting = [tasks.create_task(acceptor.accept(sock, tasks), name=f"{self.id}: accept") for sock in sockets]
            sweeping = tasks.create_task(self._sweep(service), name=f"{self.id}: sweep")
            started.set()
            try:
                await self._stop_accepting.wait()
                for task in accepting:
                    task.cancel()
                acceptor.close()
                await self._finish.wait()
            finally:
                for task in (*accepting, sweeping):
                    task.cancel()
                acceptor.close()
                service.turns.close()
                for connection in list(service.connections):
                    connection.close()

    async def stop(self, deadline_monotonic_s: float) -> None:
        """Take nothing new, answer what becomes durable before the deadline, refuse the rest, close."""
        self._stop_accepting.set()
        service = self._service
        if service is not None and not self._finished.is_set():
            service.otlp.stopping = True
            for connection in list(service.connections):
                service.drain(connection)
            now_s = self._context.clock.monotonic_s()
            await service.otlp.finish(deadline_monotonic_s - min(_LAST_ANSWERS_S, (deadline_monotonic_s - now_s) / 4))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(deadline_monotonic_s - self._context.clock.monotonic_s(), 0.0)):
                    for connection in list(service.connections):
                        await connection.closed.wait()
        self._finish.set()
        if service is not None:
            await self._finished.wait()

    async def reload(self) -> None:
        """Read certificates and secrets again; open connections stay. Raises ConfigError; then everything stays as it was."""
        self._tokens.prepare()
        if self._tls is not None:
            self._tls.reload()

    async def _sweep(self, service: Service) -> None:
        """Every second: close who is silent for too long, publish the counts."""
        while True:
            await self._context.clock.sleep(_SWEEP_INTERVAL_S)
            service.now_s = now_s = self._context.clock.monotonic_s()
            for connection in list(service.connections):
                service.close_if_silent(connection, now_s)
            service.otlp.publish()


CONFIG = OtlpGrpcConfig
COMPONENT = OtlpGrpcReceiver
