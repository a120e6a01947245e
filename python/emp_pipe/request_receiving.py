"""What the receivers by HTTP and by gRPC share: listeners, the connections' life from accept to stop, and their limits.

Not here: a connection's bytes and what is overdue on it (`http_receiving.py`, `receivers/otlp_grpc_calls.py`), what happens with a whole
request (`otlp_intake.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from pydantic import PositiveFloat, PositiveInt

from emp_pipe.accepting import Accepted, Acceptor, CutConnections, LimitedDoor, Places, Strikes
from emp_pipe.bearer import BearerTokens
from emp_pipe.clock import Clock
from emp_pipe.component import Context, Intake
from emp_pipe.listening import (
    close_all,
    max_connections_per_address_setting,
    max_connections_setting,
    max_refusals_setting,
    open_listeners,
)
from emp_pipe.logs import get_logger
from emp_pipe.otlp_intake import OtlpIntake, OtlpReceiverConfig
from emp_pipe.tls import WatchedContext

_SWEEP_INTERVAL_S = 1.0
_LAST_ANSWERS_S = 0.5
"""Before the deadline of a stop, for the answers to what has not become durable."""


class RequestReceiverConfig(OtlpReceiverConfig):
    """What every receiver of requests can be told."""

    max_connections: PositiveInt = max_connections_setting()
    max_connections_per_address: PositiveInt = max_connections_per_address_setting()
    max_refusals_per_address_per_s: PositiveFloat = max_refusals_setting()
    head_timeout_s: PositiveFloat = 10.0


class Connection(Accepted, Protocol):
    """One peer."""

    address: str
    closed: asyncio.Event

    def abort(self) -> None:
        """Close at once."""
        ...


AnyConnection = TypeVar("AnyConnection", bound=Connection)


class RequestService(LimitedDoor, ABC, Generic[AnyConnection]):
    """What the connections share: their places, the tokens, the way of a whole request. It is the acceptor's door too."""

    def __init__(self, config: RequestReceiverConfig, tokens: BearerTokens, otlp: OtlpIntake, cut: CutConnections, clock: Clock) -> None:
        strikes = Strikes(config.max_refusals_per_address_per_s, clock)
        super().__init__(Places(config.max_connections, config.max_connections_per_address, strikes), cut, otlp.log)
        self.now_s = clock.monotonic_s()
        self.otlp = otlp
        self.connections: set[AnyConnection] = set()
        self._tokens = tokens

    def open(self, address: str) -> AnyConnection:
        connection = self._connection(address)
        self.connections.add(connection)
        return connection

    def closed(self, connection: AnyConnection) -> None:
        self.connections.discard(connection)
        self.places.leave(connection.address)

    def end(self) -> None:
        """The receiver has stopped: close what is still open."""
        for connection in list(self.connections):
            connection.abort()

    @abstractmethod
    def _connection(self, address: str) -> AnyConnection:
        """Return what serves a peer."""

    @abstractmethod
    def close_if_overdue(self, connection: AnyConnection, now_s: float) -> None:
        """Close a connection that is too slow, or silent for too long, and count it."""

    @abstractmethod
    def drain(self, connection: AnyConnection) -> None:
        """The receiver stops: refuse what is not whole; end the connection once what is has its answers."""


class RequestReceiver(ABC):
    """Serves requests. `addresses` are those that it listens on, once started."""

    protocols: Sequence[str] = ()
    """What is offered to TLS clients to speak (ALPN)."""

    def __init__(self, id: str, config: RequestReceiverConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self.addresses: list[tuple[str, int]] = []
        self._context = context
        self._log = get_logger(id)
        self._tokens = BearerTokens(config, id)
        self._tls: WatchedContext | None = None
        self._service: RequestService[Any] | None = None
        self._stop_accepting = asyncio.Event()
        self._finish = asyncio.Event()
        self._finished = asyncio.Event()

    @abstractmethod
    def make_service(self, intake: Intake, tokens: BearerTokens, cut: CutConnections) -> RequestService[Any]:
        """Return what answers the requests."""

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        """Serve until `stop`. Raises ConfigError where a file, a secret or an address cannot be used."""
        config = self.config
        sockets: list[socket.socket] = []
        try:
            if config.tls is not None:
                self._tls = WatchedContext.of_server(config.tls, self._context.clock, f"{self.id}: tls", self.protocols)
            self._tokens.prepare()
            for entry in config.listen:
                sockets += open_listeners(entry, guarded=config.is_guarded, place=f"{self.id}: listen")
            self.addresses = [sock.getsockname()[:2] for sock in sockets]
            shown = ", ".join(f"{host}:{port}" for host, port in self.addresses)
            how = "TLS" if config.tls else "no TLS"
            self._log.info("listening on %s (%s, %s)", shown, how, "token" if config.asks_for_a_token else "no token")
            cut = CutConnections(self._context.metrics, self.id)
            self._service = service = self.make_service(intake, self._tokens, cut)
            try:
                await self._serve(service, sockets, started)
            finally:
                service.otlp.publish()
                service.otlp.close()
        finally:
            close_all(sockets)
            self._finished.set()

    async def _serve(self, service: RequestService[Any], sockets: list[socket.socket], started: asyncio.Event) -> None:
        acceptor = Acceptor(
            service,
            tls=self._tls,
            handshake_timeout_s=self.config.head_timeout_s,
            clock=self._context.clock,
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
                service.end()

    async def stop(self, deadline_monotonic_s: float) -> None:
        """Accept nothing new, answer what becomes durable before the deadline, refuse what still comes, close."""
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

    async def _sweep(self, service: RequestService[Any]) -> None:
        """Every second: close who is overdue, publish the counts."""
        while True:
            await self._context.clock.sleep(_SWEEP_INTERVAL_S)
            service.now_s = now_s = self._context.clock.monotonic_s()
            for connection in list(service.connections):
                service.close_if_overdue(connection, now_s)
            service.otlp.publish()
