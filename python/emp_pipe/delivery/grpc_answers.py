"""What a gRPC status means to who sends telemetry, by the rules of OTLP/gRPC; the sibling of `http_answers.py`.

CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE and DATA_LOSS are tried again, after the delay of a RetryInfo if there is
one. INVALID_ARGUMENT and its like refuse the data: it is split down to the row. A request that is too large for the server is split;
servers say so in words only, under several codes. What a change of configuration can mend stays buffered.

Two deviations, on purpose, as `http_answers.py` has them. OTLP calls INTERNAL and UNKNOWN final, but servers answer so while they are down:
they are tried again, and held against the data only where other data passes. RESOURCE_EXHAUSTED without a RetryInfo is final too; where it
is not the size it is a quota, and to give up all that is sent until it is renewed would be a loss: it is tried again at the slow pace.

Codes are named by their words, as logs and documentation have them.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Iterable

from emp_pipe._core import parse_retry_delay_s
from emp_pipe.errors import DeliveryError, ErrorKind, Retry

_NAMES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED"),
    *("RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE"),
    *("DATA_LOSS", "UNAUTHENTICATED"),
)
_OF_HTTP = {400: "INTERNAL", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "UNIMPLEMENTED"}
_OF_HTTP |= dict.fromkeys((429, 502, 503, 504), "UNAVAILABLE")
_LATER = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
_DOUBTFUL = frozenset({"INTERNAL", "UNKNOWN"})
_CONFIGURATION = {
    "UNIMPLEMENTED": "check `endpoint`: the server does not take this signal, or is no OTLP/gRPC endpoint",
    "NOT_FOUND": "check `endpoint` and `headers`: the destination does not know what they name",
}
_QUOTA_ADVICE = "the destination's quota is used up, or too small for this request; settle it there, or lower `max_request_bytes`"
_TOO_LARGE = re.compile(
    # gRPC core, Go and Node: "received message larger than max (5 vs. 4)"; Java: "message exceeds maximum size"; .NET: "exceeds the maximum
    # configured message size"; tonic, under OUT_OF_RANGE: "message length too large"; a proxy's 413 as grpc clients tell it.
    r"larger than max|exceeds (?:the )?maximum|message (?:length |size )?(?:is )?too (?:large|big)|request (?:entity |is )?too large"
    r"|http2? (?:header with )?status:? 413",
    re.IGNORECASE,
)
_MAY_MEAN_SIZE = frozenset({"RESOURCE_EXHAUSTED", "OUT_OF_RANGE", *_DOUBTFUL})
_USUAL_MOST_BYTES = 4 << 20
"""What a gRPC server takes when nobody told it otherwise."""


def code_name(status: int) -> str:
    """Return the name of a gRPC status; one that there is not is UNKNOWN."""
    return _NAMES[status] if status < len(_NAMES) else "UNKNOWN"


def code_of_http(status: int) -> str:
    """Return what gRPC makes of an answer without a gRPC status: of a proxy, or of a server that is none of gRPC."""
    return _OF_HTTP.get(status, "UNKNOWN")


def unpadded_base64(text: str) -> bytes:
    """Return the bytes of a trailer that ends in -bin; nothing where it holds none."""
    try:
        return a2b_base64(text + "=" * (-len(text) % 4))
    except ValueError:
        return b""


def retry_delay_s(trailers: Iterable[tuple[str, str | bytes]]) -> float | None:
    """Return the seconds that a RetryInfo in the trailers asks for: on its own, or among the details of the status; None without one."""
    found: dict[str, float | None] = {}
    for key, value in trailers:
        if key in ("google.rpc.retryinfo-bin", "grpc-status-details-bin") and isinstance(value, bytes):
            found[key] = parse_retry_delay_s(value, in_status=key == "grpc-status-details-bin")
    return found.get("google.rpc.retryinfo-bin") or found.get("grpc-status-details-bin")


def error_of(
    code: str, message: str, trailers: Iterable[tuple[str, str | bytes]], *, place: str, request_bytes: int, key_advice: str = ""
) -> DeliveryError:
    """Return what a status that is not OK means. `message` is what the server says; `request_bytes` is what it was sent, inflated."""
    detail = f"gRPC {code}" + (f": {message}" if message else "")
    delay_s = retry_delay_s(trailers)
    if code in _MAY_MEAN_SIZE and _TOO_LARGE.search(message):
        return DeliveryError(ErrorKind.TOO_LARGE, place=place, detail=detail, code=code)
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return DeliveryError(ErrorKind.UNAUTHENTICATED, place=place, detail=f"key refused ({detail})", advice=key_advice, code=code)
    if delay_s is not None and (code in _LATER or code in _DOUBTFUL or code == "RESOURCE_EXHAUSTED"):
        return DeliveryError(ErrorKind.THROTTLED, place=place, detail=detail, retry_after_s=delay_s, code=code)
    if code == "RESOURCE_EXHAUSTED":
        if request_bytes > _USUAL_MOST_BYTES:
            return DeliveryError(ErrorKind.TOO_LARGE, place=place, detail=detail, code=code)
        slowly = Retry.AFTER_CONFIG_CHANGE
        return DeliveryError(ErrorKind.THROTTLED, place=place, detail=detail, advice=_QUOTA_ADVICE, retry=slowly, code=code)
    if code == "DEADLINE_EXCEEDED":
        return DeliveryError(ErrorKind.TIMED_OUT, place=place, detail=detail, code=code)
    if code in _LATER:
        return DeliveryError(ErrorKind.SERVER_ERROR, place=place, detail=detail, code=code)
    if code in _DOUBTFUL:
        return DeliveryError(ErrorKind.SERVER_ERROR, place=place, detail=detail, code=code, maybe_poisoned=True)
    if code in _CONFIGURATION:
        advice, slowly = _CONFIGURATION[code], Retry.AFTER_CONFIG_CHANGE
        return DeliveryError(ErrorKind.REFUSED, place=place, detail=detail, advice=advice, retry=slowly, code=code)
    return DeliveryError(ErrorKind.REFUSED, place=place, detail=detail, retry=Retry.SMALLER, code=code)
