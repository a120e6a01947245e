"""The calls of an OTLP/gRPC receiver: how each is judged by its headers, gets memory and its turn, and is answered.

    headers ─▶ known? token? room? ─▶ turn ─▶ memory as the message comes ─▶ OtlpIntake ─▶ … durable … ─▶ answer

Not here: listeners and the life of the receiver (`otlp_grpc.py`), the bytes of a connection (`emp_pipe/grpc_connection.py`).
"""

from __future__ import annotations

import math
import re
from binascii import b2a_base64
from typing import TYPE_CHECKING, Any

from emp_pipe.accepting import Cut, CutConnections
from emp_pipe.bearer import BearerTokens
from emp_pipe.clock import Clock
from emp_pipe.done import DONE_HEADER, Done
from emp_pipe.grpc_connection import GrpcConnection
from emp_pipe.otlp_answers import Code, Outcome, Signal, response_body, retry_info, status_body
from emp_pipe.otlp_intake import OtlpIntake
from emp_pipe.receivers import otlp_grpc_turns
from emp_pipe.receivers.otlp_grpc_turns import Turns
from emp_pipe.request_receiving import RequestService
from emp_pipe.tls import common_name

if TYPE_CHECKING:
    from emp_pipe._core import GrpcCall, GrpcMessage, GrpcNoMessage, GrpcWants
    from emp_pipe.receivers.otlp_grpc import OtlpGrpcConfig

_METHODS: dict[str, Signal] = {
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": "logs",
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": "traces",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
}
_HTTP_STATUSES = {"method": 405, "content type": 415}
"""Of calls that are none of gRPC."""
_CUT_OFF = "metadata"
"""The problem of a call with too much of it: a token may be in what was not kept."""
_ENHANCE_YOUR_CALM = 11
_CUT_OF_WORDS = {"too_many_pings": Cut.TOO_MANY_PINGS, "answers are not taken": Cut.ANSWERS_UNREAD}
_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_UNIT_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LINGER_S = 3.0


class _Call:
    """A call under way, until its message is handed over."""

    def __init__(self, service: Service, connection: GrpcConnection, head: GrpcCall, signal: Signal, peer: str) -> None:
        self.stream = head.stream
        self.signal: Signal = signal
        self.peer = peer
        self.encoding = head.header("grpc-encoding") or "identity"
        self.done = Done.parse(head.header(DONE_HEADER))
        self.own_timeout_s = _own_timeout_s(head.header("grpc-timeout"))
        self.granted_bytes = 0
        self.connection = connection
        self._service = service

    def has_turn(self) -> None:
        self.connection.give_turn(self.stream)

    def timed_out(self) -> None:
        within = f"{self._service.timeout_s:g} s, or {otlp_grpc_turns.TURN_S:g} s while others wait"
        self._service.refuse(self, Outcome(Code.DEADLINE_EXCEEDED, f"the request did not come whole within {within}"))


class Service(RequestService[GrpcConnection]):
    """What the connections share: the rules by which a call is judged, and the answers."""

    def __init__(self, config: OtlpGrpcConfig, tokens: BearerTokens, otlp: OtlpIntake, cut: CutConnections, clock: Clock) -> None:
        super().__init__(config, tokens, otlp, cut, clock)
        self.timeout_s = config.request_timeout_s
        self.turns = Turns(config.max_concurrent_reads, config.request_timeout_s)
        self._config = config
        self._clock = clock
        self._knows_clients = config.tls is not None and config.tls.client_ca_file is not None

    # --- connections --------------------------------------------------------------------------------

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s()

    def new_core(self) -> Any:
        from emp_pipe._core import GrpcServerConnection

        config = self._config
        return GrpcServerConnection(
            max_concurrent_streams=config.max_streams_per_connection, min_ping_interval_s=config.min_ping_interval_s
        )

    def end(self) -> None:
        self.turns.close()
        super().end()

    def _connection(self, address: str) -> GrpcConnection:
        return GrpcConnection(self, address)

    def broken(self, connection: GrpcConnection, why: str, code: int) -> None:
        reason = _CUT_OF_WORDS.get(why, Cut.TOO_MANY_FRAMES if code == _ENHANCE_YOUR_CALM else Cut.MALFORMED)
        self._cut(connection, reason, why)

    def close_if_overdue(self, connection: GrpcConnection, now_s: float) -> None:
        waited_s = now_s - connection.since_s
        if connection.is_closing:
            if waited_s >= _LINGER_S:
                connection.abort()
        elif connection.answers_unread:
            if waited_s >= self._config.request_timeout_s:
                self._cut(connection, Cut.ANSWERS_UNREAD, "it did not take its answers")
                connection.abort()
        elif not connection.is_greeted:
            if waited_s >= self._config.head_timeout_s:
                self._cut(connection, Cut.HEAD_TIMED_OUT, "it did not begin to speak HTTP/2 in time")
                connection.abort()
        elif connection.awaits_pong:
            if now_s - max(connection.since_s, connection.asked_s) >= self._config.keepalive_timeout_s:
                self._cut(connection, Cut.SILENT, "it did not say that it is there")
                connection.abort()
        elif waited_s >= self._config.keepalive_s:
            connection.ping()

    def _cut(self, connection: GrpcConnection, reason: Cut, why: str) -> None:
        self.cut.count(reason)
        self.log.warning(f"{reason} {why}", "%s: closed, %s", connection.peer, why)

    def drain(self, connection: GrpcConnection) -> None:
        """The receiver stops: a call whose message is not whole is refused."""
        for call in list(connection.calls.values()):
            self.refuse(call, self.otlp.stopping_refusal())
        connection.drain()

    # --- the way of a call --------------------------------------------------------------------------

    def begin(self, connection: GrpcConnection, head: GrpcCall) -> None:
        """Judge a call by its headers. One without a valid token counts against the address, whatever it calls."""
        client = "" if self._tokens.is_open else self._tokens.client_of(head.header("authorization"))
        self._judge(connection, head, client)
        if client is None and head.problem != _CUT_OFF and self.places.strike(connection.address):  # on this connection it would go on
            connection.drain()

    def _judge(self, connection: GrpcConnection, head: GrpcCall, client: str | None) -> None:
        otlp, stream = self.otlp, head.stream
        signal = _METHODS.get(head.path)
        problem = head.problem
        if problem in _HTTP_STATUSES:
            otlp.count("", Outcome(Code.UNIMPLEMENTED))
            connection.reject(stream, _HTTP_STATUSES[problem])
            return
        if problem:
            self._fail(connection, stream, "", Outcome(Code.RESOURCE_EXHAUSTED, "the metadata is longer than 16,384 bytes"))
            return
        if signal is None:
            self._fail(connection, stream, "", Outcome(Code.UNIMPLEMENTED, "there is Export of logs, traces and metrics"))
            return
        if client is None:
            self.log.warning("token", "%s: refused, no valid token", connection.peer)
            why = "no valid token; send `authorization: Bearer <token>`"
            self._fail(connection, stream, signal, Outcome(Code.UNAUTHENTICATED, why))
            return
        if not client and self._knows_clients:
            client = common_name(connection.certificate())
        call = _Call(self, connection, head, signal, f"{client} ({connection.peer})" if client else connection.peer)
        if call.encoding not in ("identity", "gzip"):
            outcome = Outcome(Code.UNIMPLEMENTED, f"the compression {call.encoding[:40]} is not taken: send gzip or none")
            self._fail(connection, stream, signal, outcome, (("grpc-accept-encoding", "identity,gzip"),))
            return
        no_room = otlp.refusal()
        if no_room is not None:
            self._fail(connection, stream, signal, no_room)
            return
        connection.calls[stream] = call
        self.turns.ask(call)

    def wants(self, connection: GrpcConnection, wants: GrpcWants) -> None:
        """Grant memory to a message; its length alone may be a reason not to."""
        call: _Call = connection.calls[wants.stream]
        granted_bytes, more_bytes = wants.granted_bytes, wants.more_bytes
        refusal = self.otlp.refusal_of_more(granted_bytes, more_bytes) if granted_bytes else self.otlp.refusal(wants.size_bytes)
        if refusal is not None:
            self.refuse(call, refusal)
            return
        self.otlp.reserve(more_bytes)
        call.granted_bytes += more_bytes
        connection.grant(wants.stream, more_bytes)

    def message(self, connection: GrpcConnection, message: GrpcMessage) -> None:
        """A message is whole, be it its turn or not (those who wait must not keep it waiting): from here on it is the intake's."""
        stream = message.stream
        call: _Call = connection.calls[stream]
        signal, granted_bytes = call.signal, call.granted_bytes
        if message.flag > 1 or (message.flag and call.encoding == "identity"):
            self.refuse(call, Outcome(Code.INVALID_ARGUMENT, "the message is marked as compressed, and nothing says how"))
            return
        call.granted_bytes = 0
        self._forget(call)

        def answer(outcome: Outcome) -> None:
            if outcome.code is Code.OK:
                connection.respond(stream, response_body(outcome, signal, "protobuf"))
            else:
                connection.fail(stream, outcome.code, outcome.message, _trailers(outcome))

        codec = "gzip" if message.flag else "none"
        self.otlp.take(signal, message, answer, codec=codec, peer=call.peer, done=call.done, reserved_bytes=granted_bytes)  # type: ignore[arg-type]

    def no_message(self, connection: GrpcConnection, ended: GrpcNoMessage) -> None:
        call: _Call = connection.calls[ended.stream]
        self.refuse(call, Outcome(Code.INVALID_ARGUMENT, "the message is not whole" if ended.is_torn else "there was no message"))

    def gone(self, connection: GrpcConnection, stream: int) -> None:
        """The client has given a call up, or has gone. What is whole goes its way; nobody is told."""
        call: _Call | None = connection.calls.get(stream)
        if call is not None:
            self._forget(call)

    def refuse(self, call: _Call, outcome: Outcome) -> None:
        """End a call whose message is not taken."""
        self._forget(call)
        self._fail(call.connection, call.stream, call.signal, outcome)

    def _forget(self, call: _Call) -> None:
        self.otlp.release(call.granted_bytes)
        call.granted_bytes = 0
        del call.connection.calls[call.stream]
        self.turns.end(call)

    def _fail(self, connection: GrpcConnection, stream: int, signal: str, outcome: Outcome, more: tuple[tuple[str, str], ...] = ()) -> None:
        self.otlp.count(signal, outcome)
        connection.fail(stream, outcome.code, outcome.message, (*_trailers(outcome), *more))


def _own_timeout_s(timeout: str) -> float:
    """Return the seconds that `grpc-timeout` gives a call; infinite where it does not say."""
    match = _TIMEOUT.fullmatch(timeout)
    return int(match[1]) * _UNIT_S[match[2]] if match else math.inf


def _trailers(outcome: Outcome) -> tuple[tuple[str, str], ...]:
    status = ("grpc-status-details-bin", _base64(status_body(outcome, "protobuf")))
    if not outcome.retry_after_s:
        return (status,)
    return ("google.rpc.retryinfo-bin", _base64(retry_info(outcome.retry_after_s))), status


def _base64(value: bytes) -> str:
    return b2a_base64(value, newline=False).rstrip(b"=").decode()
