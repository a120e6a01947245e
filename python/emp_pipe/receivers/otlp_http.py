"""The OTLP/HTTP receiver: `POST /v1/{logs,traces,metrics}`, protobuf and JSON, none, gzip and zstd, on TCP and TLS.

It owns the listeners and every connection's life, and says what a request gets: by its head alone where that is enough to refuse it,
else when it is durable. The bytes of a connection are in `emp_pipe/http_connection.py`, what happens with a request in
`emp_pipe/otlp_intake.py`, browsers in `otlp_cors.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt

from emp_pipe.accepting import ADVICE, Acceptor, Cut, CutConnections, Places, Strikes
from emp_pipe.bearer import BearerTokens
from emp_pipe.clock import Clock
from emp_pipe.component import Context, Intake
from emp_pipe.done import DONE_HEADER, Done
from emp_pipe.http_body import first_grant_bytes
from emp_pipe.http_connection import HttpConnection, State
from emp_pipe.http_head import BadRequest, RequestHead
from emp_pipe.http_reply import Response
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
from emp_pipe.otlp_answers import DONE, Code, Encoding, Outcome, Signal, response_body, status_body
from emp_pipe.otlp_intake import Codec, OtlpIntake, OtlpReceiverConfig
from emp_pipe.receivers.otlp_cors import Cors, CorsConfig
from emp_pipe.tls import WatchedContext, common_name

if TYPE_CHECKING:  # a configuration can be checked without the native core
    from emp_pipe._core import Body

_SWEEP_INTERVAL_S = 1.0
_LINGER_S = 3.0
_LAST_ANSWERS_S = 0.5
"""Before the deadline of a stop, for the answers to what has not become durable."""
_PATHS: dict[str, Signal] = {"/v1/logs": "logs", "/v1/traces": "traces", "/v1/metrics": "metrics"}
_ENCODINGS: dict[str, Encoding] = {"application/x-protobuf": "protobuf", "application/json": "json"}
_CONTENT_TYPES: dict[Encoding, str] = {encoding: name for name, encoding in _ENCODINGS.items()}
_CODECS: dict[str, Codec] = {"": "none", "identity": "none", "gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}
_STATUSES = {
    Code.OK: HTTPStatus.OK,
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.DEADLINE_EXCEEDED: HTTPStatus.REQUEST_TIMEOUT,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.UNIMPLEMENTED: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
}


class OtlpHttpConfig(OtlpReceiverConfig):
    """Settings of an OTLP/HTTP receiver."""

    listen: Listen = listen_setting("4318", "a token or a certificate")
    max_head_bytes: Annotated[int, Field(ge=1024)] = Field(16_384, description="The longest request line with its headers.")
    max_connections: PositiveInt = max_connections_setting()
    max_connections_per_address: PositiveInt = max_connections_per_address_setting()
    max_refusals_per_address_per_s: PositiveFloat = max_refusals_setting()
    head_timeout_s: PositiveFloat = Field(10.0, description="The time that TLS and the headers of a request may take.")
    cors: CorsConfig | None = Field(None, description="Which web pages may send. Unset: none.")
    idle_timeout_s: PositiveFloat = Field(180.0, description="A connection that is silent between requests for so long is closed.")


class _Wanted(NamedTuple):
    """What a head asks for."""

    signal: Signal
    encoding: Encoding
    codec: Codec
    peer: str
    done: Done
    cors: str
    """Header lines for the page that sends."""


class OtlpHttpReceiver:
    """Takes OTLP by HTTP. `addresses` are those that it listens on, once started."""

    def __init__(self, id: str, config: OtlpHttpConfig, context: Context) -> None:
        self.id = id
        self.config = config
        self.addresses: list[tuple[str, int]] = []
        self._context = context
        self._log = get_logger(id)
        self._tokens = BearerTokens(config, id)
        self._tls: WatchedContext | None = None
        self._service: _Service | None = None
        self._stop_accepting = asyncio.Event()
        self._finish = asyncio.Event()
        self._finished = asyncio.Event()

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
            otlp = OtlpIntake(self.id, config, self._context, intake)
            cut = CutConnections(self._context.metrics, self.id)
            self._service = _Service(config, self._tokens, otlp, cut, self._context.clock)
            try:
                await self._serve(self._service, sockets, started)
            finally:
                otlp.publish()
                otlp.close()
        finally:
            close_all(sockets)
            self._finished.set()

    async def _serve(self, service: _Service, sockets: list[socket.socket], started: asyncio.Event) -> None:
        acceptor = Acceptor(
            service,
            tls=self._tls,
            handshake_timeout_s=self.config.head_timeout_s,
            clock=self._context.clock,
            log=service.otlp.log,
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

    async def _sweep(self, service: _Service) -> None:
        """Every second: close who is too slow or silent for too long, publish the counts."""
        while True:
            await self._context.clock.sleep(_SWEEP_INTERVAL_S)
            service.now_s = now_s = self._context.clock.monotonic_s()
            for connection in list(service.connections):
                service.close_if_slow(connection, now_s)
            service.otlp.publish()


class _Service:
    """What the connections share: their places, the rules by which a head is judged, and the answers. It is the acceptor's door too."""

    def __init__(self, config: OtlpHttpConfig, tokens: BearerTokens, otlp: OtlpIntake, cut: CutConnections, clock: Clock) -> None:
        from emp_pipe._core import BodyPool

        self.max_head_bytes = config.max_head_bytes
        self.bodies = BodyPool()
        self.now_s = clock.monotonic_s()
        self.otlp = otlp
        self.cut = cut
        self.connections: set[HttpConnection] = set()
        self.places = Places(
            config.max_connections, config.max_connections_per_address, Strikes(config.max_refusals_per_address_per_s, clock)
        )
        self._config = config
        self._tokens = tokens
        self._cors = Cors(config.cors)

    # --- connections --------------------------------------------------------------------------------

    def admit(self, address: str) -> bool:
        if self.places.take(address):
            return True
        if (why := self.places.why_not(address)) is not None:
            self.cut.count(why)
            self.otlp.log.warning(why, "%s: refused, %s", address, ADVICE[why])
        return False

    async def expects_tls(self, sock: socket.socket, address: str) -> bool:
        return True

    def timed_out(self, address: str, timeout_s: float) -> None:
        self.cut.count(Cut.TLS_TIMED_OUT)
        self.otlp.log.warning("tls time", "%s: refused, no TLS handshake within %.0f s", address, timeout_s)

    def tls_failed(self, address: str, reason: str) -> None:
        self.cut.count(Cut.TLS_FAILED)
        self.otlp.log.warning(
            "tls", "%s: refused, TLS failed (%s); check the certificates and their authorities on both sides", address, reason
        )

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
            message = f"the request did not come whole within {config.request_timeout_s:g} s"
            connection.refuse(self._early_refusal(connection, Outcome(Code.DEADLINE_EXCEEDED, message)))

    def _cut_while_waiting_for_a_head(self, connection: HttpConnection, waited_s: float) -> None:
        """Its headers drip, it does not take its answers, or it is idle: the last is no offence and not counted."""
        config = self._config
        if connection.answers_unread:
            if waited_s < (config.request_timeout_s if connection.is_idle else config.head_timeout_s):
                return
            self.cut.count(Cut.ANSWERS_UNREAD)
            self.otlp.log.warning(Cut.ANSWERS_UNREAD, "%s: closed, it did not take its answers", connection.peer)
            connection.close(at_once=True)
        elif not connection.is_idle:
            if waited_s >= config.head_timeout_s:
                self.cut.count(Cut.HEAD_TIMED_OUT)
                self.otlp.log.warning(Cut.HEAD_TIMED_OUT, "%s: closed, its headers did not come in time", connection.peer)
                connection.close()
        elif waited_s >= config.idle_timeout_s:
            connection.close()

    def drain(self, connection: HttpConnection) -> None:
        """The receiver stops: see `HttpConnection.drain`."""
        connection.drain(self._early_refusal(connection, self.otlp.stopping_refusal()))

    def _early_refusal(self, connection: HttpConnection, outcome: Outcome) -> Response:
        """Return the answer to a request of which at most the head has come."""
        wanted = connection.request if connection.state in (State.BODY, State.CHUNKS) else None
        if wanted is None:
            return _response(outcome, "logs", "json")
        return self._refused(wanted.signal, outcome, wanted.encoding, wanted.cors)

    # --- requests -----------------------------------------------------------------------------------

    def begin(self, connection: HttpConnection, head: RequestHead) -> Response | None:
        headers = head.headers
        origin = headers.get("origin")
        if origin is None:
            return self._judge(connection, head, "")
        if (preflight := self._cors.preflight(head.method, headers)) is not None:
            return preflight
        cors = self._cors.headers_of(origin)
        refused = self._judge(connection, head, cors)
        return None if refused is None else refused._replace(headers=refused.headers + cors)

    def _judge(self, connection: HttpConnection, head: RequestHead, cors: str) -> Response | None:
        headers = head.headers
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = _ENCODINGS.get(content_type)
        shown: Encoding = encoding or "json"
        signal = _PATHS.get(head.path)
        if signal is None:
            return self._refused("", Outcome(Code.NOT_FOUND, "there are /v1/logs, /v1/traces and /v1/metrics"), shown)
        if head.method != "POST":
            outcome = Outcome(Code.UNIMPLEMENTED, "only POST is answered here")
            return self._refused(signal, outcome, shown)._replace(status=HTTPStatus.METHOD_NOT_ALLOWED, headers="Allow: POST\r\n")
        client = self._tokens.client_of(headers.get("authorization", ""))
        if client is None:
            outcome = Outcome(Code.UNAUTHENTICATED, "no valid token; send the header Authorization: Bearer <token>")
            self.otlp.log.warning("token", "%s: refused, no valid token", connection.peer)
            if self.places.strike(connection.address):  # on this connection it would go on
                connection.last = True
            return self._refused(signal, outcome, shown)._replace(headers="WWW-Authenticate: Bearer\r\n")
        if encoding is None:
            outcome = Outcome(Code.UNIMPLEMENTED, "the content type must be application/x-protobuf or application/json")
            return self._refused(signal, outcome, shown)
        codec = _CODECS.get(headers.get("content-encoding", "").strip().lower())
        if codec is None:
            outcome = Outcome(Code.UNIMPLEMENTED, "the content encoding must be gzip, zstd, or none")
            return self._refused(signal, outcome, shown)._replace(headers="Accept-Encoding: gzip, zstd\r\n")
        refusal = self.otlp.refusal(head.content_length)
        if refusal is not None:
            return self._refused(signal, refusal, encoding)
        self.otlp.reserve(first_grant_bytes(head.content_length))
        connection.request = _Wanted(
            signal, encoding, codec, self._peer(connection, client), Done.parse(headers.get(DONE_HEADER, "")), cors
        )
        return None

    def _peer(self, connection: HttpConnection, client: str) -> str:
        """Return who sends, as dead letters say it: the token's name, else the certificate's, and the address."""
        if not client and self._config.tls is not None and self._config.tls.client_ca_file is not None:
            client = common_name(connection.certificate())
        return f"{client} ({connection.peer})" if client else connection.peer

    def grant(self, connection: HttpConnection, more_bytes: int) -> Response | None:
        wanted: _Wanted = connection.request
        refusal = self.otlp.refusal_of_more(connection.granted_bytes, more_bytes)
        if refusal is not None:
            return self._refused(wanted.signal, refusal, wanted.encoding, wanted.cors)
        self.otlp.reserve(more_bytes)
        return None

    def release(self, granted_bytes: int) -> None:
        self.otlp.release(granted_bytes)

    def complete(self, connection: HttpConnection, head: RequestHead, body: bytes | Body, granted_bytes: int) -> None:
        wanted: _Wanted = connection.request

        def answer(outcome: Outcome) -> None:
            connection.respond(_response(outcome, wanted.signal, wanted.encoding, wanted.cors))

        self.otlp.take(
            wanted.signal,
            body,
            answer,
            codec=wanted.codec,
            encoding=wanted.encoding,
            peer=wanted.peer,
            done=wanted.done,
            reserved_bytes=granted_bytes,
        )

    def malformed(self, connection: HttpConnection, error: BadRequest) -> Response:
        too_large = error.status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        outcome = Outcome(Code.RESOURCE_EXHAUSTED if too_large else Code.INVALID_ARGUMENT, error.message)
        self.otlp.count("", outcome)
        self.otlp.log.warning("malformed", "%s: refused, %s", connection.peer, error.message)
        return _response(outcome, "logs", "json")._replace(status=error.status)

    def _refused(self, signal: str, outcome: Outcome, encoding: Encoding, cors: str = "") -> Response:
        self.otlp.count(signal, outcome)
        return _response(outcome, "logs", encoding, cors)


def _response(outcome: Outcome, signal: Signal, encoding: Encoding, cors: str = "") -> Response:
    if outcome is DONE and not cors:
        return _SUCCESSES[encoding]
    status = _STATUSES[outcome.code]
    body = response_body(outcome, signal, encoding) if outcome.code is Code.OK else status_body(outcome, encoding)
    headers = f"Retry-After: {outcome.retry_after_s}\r\n" if outcome.retry_after_s else ""
    return Response(status, body, _CONTENT_TYPES[encoding], headers + cors)


_SUCCESSES: dict[Encoding, Response] = {
    encoding: Response(HTTPStatus.OK, response_body(DONE, "logs", encoding), content_type) for content_type, encoding in _ENCODINGS.items()
}


CONFIG = OtlpHttpConfig
COMPONENT = OtlpHttpReceiver
