"""Records as JSON by `POST`: what a request's head is judged by, how its body is read, and the answers.

For every receiver that takes them: `receivers/http_json.py` on a port of its own, `receivers/forward_http.py` on Forward's. Connections
are in `http_receiving.py`, the way of a request in `otlp_intake.py`, JSON in the core (`rust/emp-core/src/http_json`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from emp_pipe.http_body import first_grant_bytes
from emp_pipe.http_connection import HttpConnection
from emp_pipe.http_head import BadRequest, RequestHead
from emp_pipe.http_receiving import HttpService
from emp_pipe.http_reply import Response
from emp_pipe.otlp_answers import DONE, Code, Outcome, Signal
from emp_pipe.otlp_intake import Codec, OtlpIntake

if TYPE_CHECKING:
    from emp_pipe._core import Body, Normalizer, OtlpRead

Form = Literal["json", "lines", "urlencoded"]
_MOST_MESSAGE_CHARACTERS = 1024
_MOST_TAG_BYTES = 1024
_FORMS: dict[str, Form] = {
    "application/x-ndjson": "lines",
    "application/ndjson": "lines",
    "application/jsonl": "lines",
    "application/x-jsonlines": "lines",
    "application/x-www-form-urlencoded": "urlencoded",
}
"""What says more than that it may be JSON; any other content type, and none, is taken for JSON."""
_NOT_JSON = frozenset({"multipart/form-data", "application/msgpack", "application/x-msgpack", "application/x-protobuf"})
_CODECS: dict[str, Codec] = {"": "none", "identity": "none", "gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd", "deflate": "deflate"}
_STATUSES = {
    Code.OK: HTTPStatus.OK,
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.DEADLINE_EXCEEDED: HTTPStatus.REQUEST_TIMEOUT,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.UNIMPLEMENTED: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
}


class _How(NamedTuple):
    """How a body is to be read."""

    form: Form
    tag: bytes
    time: bytes


class _Wanted(NamedTuple):
    """What a head asks for."""

    how: _How
    codec: Codec
    peer: str


class HttpJsonIntake(OtlpIntake):
    """The way of a request, with the decoder for records in JSON."""

    prefix = "http_json"

    def _make_decoders(self, normalizer: Normalizer, limit_bytes: int) -> Mapping[Signal, Any]:
        from emp_pipe._core import HttpJsonDecoder

        return {"logs": HttpJsonDecoder(normalizer, max_inflated_bytes=limit_bytes)}

    def _decode(self, decoder: Any, request: Any, body: Any) -> OtlpRead:
        how: _How = request.how
        read: OtlpRead = decoder.decode(
            body, coding=request.codec, form=how.form, tag=how.tag, time=how.time, now_unix_nano=self._clock.unix_nano()
        )
        return read


class HttpJsonService(HttpService):
    """The rules by which a head is judged, and the answers."""

    def begin(self, connection: HttpConnection, head: RequestHead) -> Response | None:
        headers = head.headers
        client = self.client_of(connection, headers)
        if "origin" in headers:  # a page could else write into the log of whoever looks at it: bodies of text need no permission
            self.otlp.count("logs", Outcome(Code.UNAUTHENTICATED))
            return _response(Outcome(Code.UNAUTHENTICATED, "web pages may not send here"))._replace(status=HTTPStatus.FORBIDDEN)
        if head.method not in ("POST", "PUT"):
            outcome = Outcome(Code.UNIMPLEMENTED, "only POST and PUT are answered here")
            return self._refused(outcome)._replace(status=HTTPStatus.METHOD_NOT_ALLOWED, headers="Allow: POST, PUT\r\n")
        if client is None:
            self.otlp.log.warning("token", "%s: refused, no valid token", connection.peer)
            outcome = Outcome(Code.UNAUTHENTICATED, "no valid token; send the header Authorization: Bearer <token>")
            return self._refused(outcome)._replace(headers="WWW-Authenticate: Bearer\r\n")
        content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type in _NOT_JSON:
            return self._refused(Outcome(Code.UNIMPLEMENTED, f"{content_type} is not read here; send application/json"))
        codec = _CODECS.get(headers.get("content-encoding", "").strip().lower())
        if codec is None:
            outcome = Outcome(Code.UNIMPLEMENTED, "the content encoding must be gzip, zstd, deflate, or none")
            return self._refused(outcome)._replace(headers="Accept-Encoding: gzip, zstd, deflate\r\n")
        tag = _tag(head.path)
        if len(tag) > _MOST_TAG_BYTES:
            return self._refused(Outcome(Code.INVALID_ARGUMENT, f"the tag is longer than {_MOST_TAG_BYTES} bytes"))
        if (refusal := self.otlp.refusal(head.content_length)) is not None:
            return self._refused(refusal)
        self.otlp.reserve(first_grant_bytes(head.content_length))
        how = _How(_FORMS.get(content_type, "json"), tag, _time(head.query))
        connection.request = _Wanted(how, codec, self.peer_of(connection, client))
        return None

    def grant(self, connection: HttpConnection, more_bytes: int) -> Response | None:
        refusal = self.otlp.refusal_of_more(connection.granted_bytes, more_bytes)
        if refusal is not None:
            return self._refused(refusal)
        self.otlp.reserve(more_bytes)
        return None

    def complete(self, connection: HttpConnection, head: RequestHead, body: bytes | Body, granted_bytes: int) -> None:
        wanted: _Wanted = connection.request
        self.otlp.take(
            "logs",
            body,
            lambda outcome: connection.respond(_response(outcome)),
            codec=wanted.codec,
            encoding="json",
            peer=wanted.peer,
            reserved_bytes=granted_bytes,
            how=wanted.how,
        )

    def malformed(self, connection: HttpConnection, error: BadRequest) -> Response:
        too_large = error.status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        outcome = Outcome(Code.RESOURCE_EXHAUSTED if too_large else Code.INVALID_ARGUMENT, error.message)
        self.otlp.log.warning("malformed", "%s: refused, %s", connection.peer, error.message)
        return self._refused(outcome)._replace(status=error.status)

    def _early_refusal(self, connection: HttpConnection, outcome: Outcome) -> Response:
        return self._refused(outcome)

    def _refused(self, outcome: Outcome) -> Response:
        self.otlp.count("logs", outcome)
        return _response(outcome)


def _tag(path: str) -> bytes:
    """Return the tag that a path names: its parts, joined by dots."""
    return b".".join(part for part in unquote_to_bytes(path).split(b"/") if part)


def _time(query: str) -> bytes:
    """Return the time that a query names, as it is written; b"" where it names none."""
    for field in query.split("&"):
        name, _, value = field.partition("=")
        if name == "time":
            return unquote_to_bytes(value)
    return b""


def _response(outcome: Outcome) -> Response:
    if outcome is DONE:
        return _SUCCESS
    said: dict[str, object] = {"refused": outcome.rejected} if outcome.code is Code.OK else {}
    if outcome.message:
        said["error"] = outcome.message[:_MOST_MESSAGE_CHARACTERS]
    headers = f"Retry-After: {outcome.retry_after_s}\r\n" if outcome.retry_after_s else ""
    return Response(_STATUSES[outcome.code], json.dumps(said).encode(), "application/json", headers)


_SUCCESS = Response(HTTPStatus.OK, b'{"refused": 0}', "application/json")
