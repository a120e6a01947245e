"""How a Forward receiver turns away who is not for it: the answer in the peer's own protocol, and the advice for the reader of the log."""

from __future__ import annotations

from emp_pipe.forward_handshake import Refusal, refused_pong

_TLS_HANDSHAKE_RECORD = 0x16
_TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
"""A fatal protocol_version alert: what a TLS client understands from a port without TLS."""
_HTTP_ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
_NO_HTTP = b"This port speaks Fluent Forward, not HTTP.\n"
_NO_PLAIN_HTTP = b"This port speaks TLS.\n"
_HTTP_BEGINNINGS = (b"GET /", b"POST ", b"PUT /", b"HEAD ", b"OPTIO")

ADVICE = {
    Refusal.SHARED_KEY: "set the same `shared_key` on both sides",
    Refusal.USER: "add the user to `users`, or correct its password at the sender",
    Refusal.ANONYMOUS_SOURCE: "add its address to `clients`, or set `allow_anonymous_source`",
    Refusal.MALFORMED: "check that the sender speaks Fluent Forward with a shared key",
    Refusal.TIMED_OUT: "check that the sender has `shared_key` (and TLS where this port has it)",
    Refusal.TLS_EXPECTED: "set TLS at the sender",
    Refusal.TLS_UNEXPECTED: "send to the port with TLS, or set TLS off at the sender",
    Refusal.TLS_FAILED: "check the certificates and their authorities on both sides",
    Refusal.NOT_FORWARD: "send HTTP to an HTTP port",
    Refusal.TOO_MANY: "see docs/security.md for the limits",
}


def answer_to(first_bytes: bytes | memoryview) -> tuple[bytes, Refusal] | None:
    """Return what to say to a client that begins with TLS or HTTP on a port for plain Forward; None where it may be Forward."""
    if first_bytes[0] == _TLS_HANDSHAKE_RECORD:
        return _TLS_ALERT, Refusal.TLS_UNEXPECTED
    if bytes(first_bytes[:5]) in _HTTP_BEGINNINGS:
        return _HTTP_ANSWER % (len(_NO_HTTP), _NO_HTTP), Refusal.NOT_FORWARD
    return None


def answer_without_tls(first_bytes: bytes) -> bytes:
    """Return what to say to a client that begins without TLS on a port that has it."""
    if first_bytes[:5] in _HTTP_BEGINNINGS:
        return _HTTP_ANSWER % (len(_NO_PLAIN_HTTP), _NO_PLAIN_HTTP)
    return refused_pong(Refusal.TLS_EXPECTED)
