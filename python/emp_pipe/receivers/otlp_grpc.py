"""The OTLP/gRPC receiver: Logs, Trace and Metrics Export on grpcio's asyncio server, on raw bytes.

An Export is taken as a stream of one message, which looks the same on the wire: so the token, and whether there is room, are looked at
before the message is read, and reading it has a time limit. gRPC does not inflate: a message is inflated by the core, under our limit.
What happens with a request is in `emp_pipe/otlp_intake.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat, PositiveInt

from emp_pipe.bearer import BearerTokens
from emp_pipe.component import Context, Intake
from emp_pipe.done import DONE_HEADER, Done
from emp_pipe.errors import ConfigError, ErrorKind
from emp_pipe.listening import Listen, close_all, listen_setting, max_connections_setting, open_listeners
from emp_pipe.logs import get_logger
from emp_pipe.otlp_answers import Code, Outcome, Signal, response_body, retry_info, status_body
from emp_pipe.otlp_intake import SIGNALS, OtlpIntake, OtlpReceiverConfig
from emp_pipe.tls import ServerPem, Watched, server_pem

if TYPE_CHECKING:
    import grpc

_SERVICES: dict[Signal, str] = {
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
_GZIP_MAGIC = b"\x1f\x8b"
"""No OTLP request begins so: it would be field 3 with the wire type 7, which does not exist."""
_IDENTITY_AND_GZIP = 1 << 0 | 1 << 2
_SWEEP_INTERVAL_S = 1.0
_TURN_S = 5.0
"""How long a message may take to come whole while others wait for a turn: SDKs for Python give up after 10 s in all."""
_LAST_ANSWERS_S = 0.5
"""Before the deadline of a stop, for the answers to what has not become durable."""


class OtlpGrpcConfig(OtlpReceiverConfig):
    """Settings of an OTLP/gRPC receiver."""

    listen: Listen = listen_setting("4317", "a token or a certificate")
    max_concurrent_reads: PositiveInt = Field(32, description="The most requests that are being received at once; others wait their turn.")
    max_streams_per_connection: PositiveInt = Field(1000, description="The most requests under way on one connection.")
    max_connections: PositiveInt = max_connections_setting()
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
        self._tls: Watched[ServerPem] | None = None
        self._otlp: OtlpIntake | None = None
        self._service: _Service | None = None
        self._server: grpc.aio.Server | None = None
        self._stop = asyncio.Event()
        self._stopped = asyncio.Event()

    async def run(self, intake: Intake, started: asyncio.Event) -> None:
        """Serve until `stop`. Raises ConfigError where a file, a secret or an address cannot be used."""
        import grpc

        try:
            self._tokens.prepare()
            if (tls := self.config.tls) is not None:
                place = f"{self.id}: tls"
                self._tls = Watched(lambda: server_pem(tls, place), tls.files(), self._context.clock, place)
            self._otlp = otlp = OtlpIntake(self.id, self.config, self._context, intake)
            self._service = service = _Service(self.config, self._tokens, otlp)
            self._server = server = grpc.aio.server(handlers=[service], options=self._options())
            self._listen(server)
            starting = asyncio.ensure_future(server.start())
            try:
                await asyncio.shield(starting)
                started.set()
                while not self._stop.is_set():
                    otlp.publish()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_SWEEP_INTERVAL_S):
                            await self._stop.wait()
            finally:
                await asyncio.wait([starting])  # a server that is stopped while it starts leaves a task that fails
                await server.stop(None)
                otlp.publish()
                otlp.close()
        finally:
            self._stopped.set()

    async def stop(self, deadline_monotonic_s: float) -> None:
        """Take nothing new, answer what becomes durable before the deadline, refuse the rest, close."""
        otlp, server = self._otlp, self._server
        if otlp is not None and server is not None and not self._stopped.is_set():
            otlp.stopping = True
            left_s = max(deadline_monotonic_s - self._context.clock.monotonic_s(), 0.0)
            stopping = asyncio.ensure_future(server.stop(left_s))
            await otlp.finish(deadline_monotonic_s - min(_LAST_ANSWERS_S, left_s / 4))
            await stopping
        self._stop.set()
        if otlp is not None:
            await self._stopped.wait()

    async def reload(self) -> None:
        """Read certificates and secrets again. Raises ConfigError; then everything stays as it was."""
        self._tokens.prepare()
        if self._tls is not None:
            self._tls.reload()

    def _credentials(self, tls: Watched[ServerPem]) -> grpc.ServerCredentials:
        """Return credentials that ask for the files' content at each handshake."""
        import grpc

        def configuration(pem: ServerPem) -> Any:
            return grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.client_roots)

        used = tls.current()

        def fetch() -> Any:  # called in a thread of gRPC's; None: as before
            nonlocal used
            pem = tls.current()
            if pem is used:
                return None
            used = pem
            return configuration(pem)

        return grpc.dynamic_ssl_server_credentials(configuration(used), fetch, require_client_authentication=used.client_roots is not None)

    def _options(self) -> list[tuple[str, Any]]:
        config = self.config
        return [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", config.max_request_bytes),
            ("grpc.per_message_decompression", 0),
            ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_AND_GZIP),
            ("grpc.max_concurrent_streams", config.max_streams_per_connection),
            ("grpc.max_allowed_incoming_connections", config.max_connections),
            ("grpc.keepalive_time_ms", int(config.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(config.keepalive_timeout_s * 1000)),
            ("grpc.http2.ping_timeout_ms", int(config.keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", int(config.min_ping_interval_s * 1000)),
        ]

    def _listen(self, server: grpc.aio.Server) -> None:
        config = self.config
        for entry in config.listen:
            place = f"{self.id}: listen"
            probes = open_listeners(entry, guarded=config.is_guarded, place=place)  # for the error that says why
            wanted = [sock.getsockname()[:2] for sock in probes]
            close_all(probes)
            for host, port in wanted:
                self._bind(server, host, port, place)
        shown = ", ".join(f"{host}:{port}" for host, port in self.addresses)
        how = "TLS" if config.tls else "no TLS"
        self._log.info("listening on %s (%s, %s)", shown, how, "token" if config.asks_for_a_token else "no token")

    def _bind(self, server: grpc.aio.Server, host: str, port: int, place: str) -> None:
        shown = f"[{host}]" if ":" in host else host
        try:
            if self._tls is not None:
                bound = server.add_secure_port(f"{shown}:{port}", self._credentials(self._tls))
            else:
                bound = server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError:
            bound = 0
        if not bound:
            raise ConfigError(ErrorKind.ADDRESS_IN_USE, place=place, detail=f"gRPC cannot listen on {shown}:{port}")
        self.addresses.append((host, bound))


class _Turns:
    """So many messages are received at once. Who begins one and does not send it has a turn for long only while nobody waits for it."""

    def __init__(self, most: int, timeout_s: float) -> None:
        self._free = asyncio.Semaphore(most)
        self._timeout_s = timeout_s
        self._waiting = 0
        self._limits: dict[asyncio.Timeout, float] = {}
        """Of those who have a turn, with the times until which nobody may take it from them."""

    @property
    def reading(self) -> int:
        """Messages that are being received."""
        return len(self._limits)

    async def read(self, read: Callable[[], Awaitable[Any]]) -> Any:
        """Return what `read` returns. Raises TimeoutError when that does not come in time."""
        self._waiting += 1
        try:
            if self._free.locked():
                for limit, fair_s in self._limits.items():
                    if not limit.expired():
                        limit.reschedule(min(limit.when() or fair_s, fair_s))
            await self._free.acquire()
        finally:
            self._waiting -= 1
        now_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(_TURN_S, self._timeout_s) if self._waiting else self._timeout_s) as limit:
                self._limits[limit] = now_s + _TURN_S
                try:
                    return await read()
                finally:
                    del self._limits[limit]
        finally:
            self._free.release()


class _Service:
    """The three Export methods."""

    def __init__(self, config: OtlpGrpcConfig, tokens: BearerTokens, otlp: OtlpIntake) -> None:
        import grpc

        self._grpc = grpc
        self._codes = {code.value[0]: code for code in grpc.StatusCode}
        self._tokens = tokens
        self._otlp = otlp
        self._loop = asyncio.get_running_loop()
        self._knows_clients = config.tls is not None and config.tls.client_ca_file is not None
        self._timeout_s = config.request_timeout_s
        self._turns = _Turns(config.max_concurrent_reads, config.request_timeout_s)

        self._methods = {
            _SERVICES[signal]: grpc.stream_unary_rpc_method_handler(functools.partial(self._export, signal)) for signal in SIGNALS
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method; None: there is none (this is grpc.GenericRpcHandler)."""
        return self._methods.get(handler_call_details.method)

    async def _export(self, signal: Signal, _: Any, context: grpc.aio.ServicerContext) -> bytes:
        otlp = self._otlp
        peer = context.peer()
        metadata = context.invocation_metadata()
        client: str | None = ""
        if not self._tokens.is_open:
            authorization = next((value for key, value in metadata if key == "authorization"), "")
            client = self._tokens.client_of(authorization)
            if client is None:
                otlp.log.warning("token", "%s: refused, no valid token", peer)
                why = "no valid token; send `authorization: Bearer <token>`"
                return await self._refuse(signal, context, Outcome(Code.UNAUTHENTICATED, why))
        if not client and self._knows_clients:
            client = _common_name(context.auth_context())
        if client:
            peer = f"{client} ({peer})"
        no_room = otlp.refusal()
        if no_room is not None:
            return await self._refuse(signal, context, no_room)
        try:
            message = await self._turns.read(context.read)
        except TimeoutError:
            within = f"{self._timeout_s:g} s, or {_TURN_S:g} s while others wait"
            why = f"the request did not come whole within {within}"
            return await self._refuse(signal, context, Outcome(Code.DEADLINE_EXCEEDED, why))
        if message is self._grpc.aio.EOF:  # the client has gone, or sent no message
            return await self._refuse(signal, context, Outcome(Code.INVALID_ARGUMENT, "there was no message"))
        answered: asyncio.Future[Outcome] = self._loop.create_future()

        def answer(outcome: Outcome) -> None:
            if not answered.done():  # the client may have gone meanwhile
                answered.set_result(outcome)

        done = Done.parse(",".join([value for key, value in metadata if key == DONE_HEADER]))
        otlp.take(signal, message, answer, codec="gzip" if message[:2] == _GZIP_MAGIC else "none", peer=peer, done=done)
        outcome = await answered
        if outcome.code is Code.OK:
            return response_body(outcome, signal, "protobuf")
        return await self._fail(context, outcome)

    async def _refuse(self, signal: Signal, context: grpc.aio.ServicerContext, outcome: Outcome) -> bytes:
        """Answer a request that is not taken."""
        self._otlp.count(signal, outcome)
        return await self._fail(context, outcome)

    async def _fail(self, context: grpc.aio.ServicerContext, outcome: Outcome) -> bytes:
        trailers: tuple[tuple[str, bytes], ...] = (("grpc-status-details-bin", status_body(outcome, "protobuf")),)
        if outcome.retry_after_s:
            trailers = (("google.rpc.retryinfo-bin", retry_info(outcome.retry_after_s)), *trailers)
        await context.abort(self._codes[outcome.code], outcome.message, trailers)
        return b""


def _common_name(auth_context: Mapping[str, Sequence[bytes]]) -> str:
    names = (*auth_context.get("x509_common_name", ()), *auth_context.get("x509_subject_alternative_name", ()))
    return next((name.decode("utf-8", "replace") for name in names if name), "")


CONFIG = OtlpGrpcConfig
COMPONENT = OtlpGrpcReceiver
