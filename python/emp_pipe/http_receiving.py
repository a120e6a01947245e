"""What every receiver by HTTP shares: its listeners, every connection's life, and the limits by which one is closed.

The bytes of a connection are in `emp_pipe/http_connection.py`, what happens with a whole request in `emp_pipe/otlp_intake.py`. What is
asked for and what is answered is the receiver's: `receivers/otlp_http.py`, `receivers/http_json.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from emp_pipe.accepting import Acceptor, Cut, CutConnections, LimitedDoor, Places, Strikes
from emp_pipe.bearer import BearerTokens
from emp_pipe.clock import Clock
from emp_pipe.component import Context, Intake
from emp_pipe.http_connection import HttpConnection, State
from emp_pipe.http_head import BadRequest, RequestHead
from emp_pipe.http_reply import Response
from emp_pipe.listening import (
    close_all,
    max_connections_per_address_setting,
    max_connections_setting,
    max_refusals_setting,
    open_listeners,
)
from emp_pipe.logs import get_logger
from emp_pipe.otlp_answers import Code, Outcome
from emp_pipe.otlp_intake import OtlpIntake, OtlpReceiverConfig
from emp_pipe.tls import WatchedContext, common_name

if TYPE_CHECKING:  # a configuration can be checked without the native core
    from emp_pipe._core import Body

_SWEEP_INTERVAL_S = 1.0
_LINGER_S = 3.0
_LAST_ANSWERS_S = 0.5
"""Before the deadline of a stop, for the answers to what has not become durable."""


class HttpReceiverConfig(OtlpReceiverConfig):
    """What every receiver that takes requests by HTTP can be told."""

    max_head_bytes: Annotated[int, Field(ge=1024)] = Field(16_384, description="The longest request line with its headers.")
    max_connections: PositiveInt = max_connections_setting()
    max_connections_per_address: PositiveInt = max_connections_per_address_setting()
    max_refusals_per_address_per_s: PositiveFloat = max_refusals_setting()
    head_timeout_s: PositiveFloat = Field(10.0, description="The time that TLS and the headers of a request may take.")
    idle_timeout_s: PositiveFloat = Field(180.0, description="A connection that is silent between requests for so long is closed.")


class HttpReceiver(ABC):
    """Takes requests by HTTP. `addresses` are those that it listens on, once started. A receiver says what serves them: `make_service`."""

    def __init__(self, id: str, config: HttpReceiverConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self.addresses: list[tuple[str, int]] = []
        self._context = context
        self._log = get_logger(id)
        self._tokens = BearerTokens(config, id)
        self._tls: WatchedContext | None = None
        self._service: HttpService | None = None
        self._stop_accepting = asyncio.Event()
        self._finish = asyncio.Event()
        self._finished = asyncio.Event()

    @abstractmethod
    def make_service(self, intake: Intake, tokens: BearerTokens, cut: CutConnections) -> HttpService:
        """Return what answers the requests."""

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        """Serve until `stop`. Raises ConfigError where a file, a secret or an address cannot be used."""
        config = self.config
        sockets: list[socket.socket] = []
        try:
            self._tls = WatchedContext.of_server(config.tls, self._context.clock, f"{self.id}: tls") if config.tls is not None else None
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

    async def _serve(self, service: HttpService, sockets: list[socket.socket], started: asyncio.Event) -> None:
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
                for connection in list(service.connections):
                    connection.close(at_once=True)

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

    async def _sweep(self, service: HttpService) -> None:
        """Every second: close who is too slow or silent for too long, publish the counts."""
        while True:
            await self._context.clock.sleep(_SWEEP_INTERVAL_S)
            service.now_s = now_s = self._context.clock.monotonic_s()
            for connection in list(service.connections):
                service.close_if_slow(connection, now_s)
            service.otlp.publish()


class HttpService(LimitedDoor, ABC):
    """What the connections share: their places, and how long each may take. It is the acceptor's door too.

    A receiver adds the rules by which a head is judged, and the answers."""

    def __init__(self, config: HttpReceiverConfig, tokens: BearerTokens, otlp: OtlpIntake, cut: CutConnections, clock: Clock) -> None:
        from emp_pipe._core import BodyPool

        strikes = Strikes(config.max_refusals_per_address_per_s, clock)
        super().__init__(Places(config.max_connections, config.max_connections_per_address, strikes), cut, otlp.log)
        self.max_head_bytes = config.max_head_bytes
        self.bodies = BodyPool()
        self.now_s = clock.monotonic_s()
        self.otlp = otlp
        self.connections: set[HttpConnection] = set()
        self._config = config
        self._tokens = tokens

    # --- connections --------------------------------------------------------------------------------

    def open(self, address: str) -> HttpConnection:
        connection = HttpConnection(self, address)
        self.connections.add(connection)
        return connection

    def closed(self, connection: HttpConnection) -> None:
        self.connections.discard(connection)
        self.places.leave(connection.address)

    def close_if_slow(self, connection: HttpConnection, now_s: float) -> None:
        config, state = self._config, connection.state
        waited_s = now_s - connection.since_s
        if state is State.CLOSING:
            if waited_s >= _LINGER_S:
                connection.close(at_once=True)
        elif state is State.HEAD:
            self._cut_while_waiting_for_a_head(connection, waited_s)
        elif state is not State.BUSY and waited_s >= config.request_timeout_s:
            self.cut.count(Cut.REQUEST_TIMED_OUT)
            if state is State.DISCARD:  # it has its answer: another one would be taken for that to its next request
                connection.close()
                return
            message = f"the request did not come whole within {config.request_timeout_s:g} s"
            connection.refuse(self._early_refusal(connection, Outcome(Code.DEADLINE_EXCEEDED, message)))

    def _cut_while_waiting_for_a_head(self, connection: HttpConnection, waited_s: float) -> None:
        """Its headers drip, it does not take its answers, or it is idle: the last is no offence and not counted."""
        config = self._config
        if connection.answers_unread:
            if waited_s < (config.request_timeout_s if connection.is_idle else config.head_timeout_s):
                return
            self.cut.count(Cut.ANSWERS_UNREAD)
            self.log.warning(Cut.ANSWERS_UNREAD, "%s: closed, it did not take its answers", connection.peer)
            connection.close(at_once=True)
        elif not connection.is_idle:
            if waited_s >= config.head_timeout_s:
                self.cut.count(Cut.HEAD_TIMED_OUT)
                self.log.warning(Cut.HEAD_TIMED_OUT, "%s: closed, its headers did not come in time", connection.peer)
                connection.close()
        elif waited_s >= config.idle_timeout_s:
            connection.close()

    def drain(self, connection: HttpConnection) -> None:
        """The receiver stops: see `HttpConnection.drain`."""
        if connection.drain():
            connection.refuse(self._early_refusal(connection, self.otlp.stopping_refusal()))

    @abstractmethod
    def _early_refusal(self, connection: HttpConnection, outcome: Outcome) -> Response:
        """Return the answer to a request of which at most the head has come."""

    # --- requests -----------------------------------------------------------------------------------

    @abstractmethod
    def begin(self, connection: HttpConnection, head: RequestHead) -> Response | None: ...

    @abstractmethod
    def grant(self, connection: HttpConnection, more_bytes: int) -> Response | None: ...

    @abstractmethod
    def complete(self, connection: HttpConnection, head: RequestHead, body: bytes | Body, granted_bytes: int) -> None: ...

    @abstractmethod
    def malformed(self, connection: HttpConnection, error: BadRequest) -> Response: ...

    def release(self, granted_bytes: int) -> None:
        self.otlp.release(granted_bytes)

    def client_of(self, connection: HttpConnection, headers: Mapping[str, str]) -> str | None:
        """Return the name of who asks; None without a valid token, which counts against the address whatever is asked for."""
        client = self._tokens.client_of(headers.get("authorization", ""))
        if client is None and self.places.strike(connection.address):  # on this connection it would go on
            connection.last = True
        return client

    def peer_of(self, connection: HttpConnection, client: str) -> str:
        """Return who sends, as dead letters say it: the token's name, else the certificate's, and the address."""
        if not client and self._config.tls is not None and self._config.tls.client_ca_file is not None:
            client = common_name(connection.certificate())
        return f"{client} ({connection.peer})" if client else connection.peer
