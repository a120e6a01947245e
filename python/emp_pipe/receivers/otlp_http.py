"""The OTLP/HTTP receiver: `POST /v1/{logs,traces,metrics}`, protobuf and JSON, none, gzip and zstd, on TCP and TLS.

It says what a request gets: by its head alone where that is enough to refuse it, else when it is durable. Listeners are in
`emp_pipe/request_receiving.py`, connections in `emp_pipe/http_receiving.py`, what happens with a request in `emp_pipe/otlp_intake.py`,
browsers in `otlp_cors.py`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from emp_pipe.accepting import CutConnections
from emp_pipe.bearer import BearerTokens
from emp_pipe.clock import Clock
from emp_pipe.component import Intake
from emp_pipe.done import DONE_HEADER, Done
from emp_pipe.http_body import first_grant_bytes
from emp_pipe.http_connection import HttpConnection, State
from emp_pipe.http_head import BadRequest, RequestHead
from emp_pipe.http_receiving import HttpReceiverConfig, HttpService
from emp_pipe.http_reply import Response
from emp_pipe.listening import Listen, listen_setting
from emp_pipe.otlp_answers import DONE, Code, Encoding, Outcome, Signal, response_body, status_body
from emp_pipe.otlp_intake import Codec, OtlpIntake
from emp_pipe.receivers.otlp_cors import Cors, CorsConfig
from emp_pipe.request_receiving import RequestReceiver

if TYPE_CHECKING:  # a configuration can be checked without the native core
    from emp_pipe._core import Body

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


class OtlpHttpConfig(HttpReceiverConfig):
    """Settings of an OTLP/HTTP receiver."""

    listen: Listen = listen_setting("4318", "a token or a certificate")
    cors: CorsConfig | None = Field(None, description="Which web pages may send. Unset: none.")


class _Wanted(NamedTuple):
    """What a head asks for."""

    signal: Signal
    encoding: Encoding
    codec: Codec
    peer: str
    done: Done
    cors: str
    """Header lines for the page that sends."""


class OtlpHttpReceiver(RequestReceiver):
    """Takes OTLP by HTTP."""

    config: OtlpHttpConfig

    def make_service(self, intake: Intake, tokens: BearerTokens, cut: CutConnections) -> HttpService:
        otlp = OtlpIntake(self.id, self.config, self._context, intake)
        return _Service(self.config, tokens, otlp, cut, self._context.clock)


class _Service(HttpService):
    """The rules by which a head is judged, and the answers."""

    def __init__(self, config: OtlpHttpConfig, tokens: BearerTokens, otlp: OtlpIntake, cut: CutConnections, clock: Clock) -> None:
        super().__init__(config, tokens, otlp, cut, clock)
        self._cors = Cors(config.cors)

    def _early_refusal(self, connection: HttpConnection, outcome: Outcome) -> Response:
        """Return the answer to a request of which at most the head has come."""
        wanted = connection.request if connection.state in (State.BODY, State.CHUNKS) else None
        if wanted is None:
            return self._refused("", outcome, "json")
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
        client = self.client_of(connection, headers)
        if signal is None:
            return self._refused("", Outcome(Code.NOT_FOUND, "there are /v1/logs, /v1/traces and /v1/metrics"), shown)
        if head.method != "POST":
            outcome = Outcome(Code.UNIMPLEMENTED, "only POST is answered here")
            return self._refused(signal, outcome, shown)._replace(status=HTTPStatus.METHOD_NOT_ALLOWED, headers="Allow: POST\r\n")
        if client is None:
            outcome = Outcome(Code.UNAUTHENTICATED, "no valid token; send the header Authorization: Bearer <token>")
            self.otlp.log.warning("token", "%s: refused, no valid token", connection.peer)
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
            signal, encoding, codec, self.peer_of(connection, client), Done.parse(headers.get(DONE_HEADER, "")), cors
        )
        return None

    def grant(self, connection: HttpConnection, more_bytes: int) -> Response | None:
        wanted: _Wanted = connection.request
        refusal = self.otlp.refusal_of_more(connection.granted_bytes, more_bytes)
        if refusal is not None:
            return self._refused(wanted.signal, refusal, wanted.encoding, wanted.cors)
        self.otlp.reserve(more_bytes)
        return None

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
