"""What an OTLP receiver says: an outcome, and its bytes as google.rpc.Status, RetryInfo or Export…ServiceResponse, protobuf or JSON.

Written out by hand: four short messages are no reason to load protobuf's runtime into every process; the tests hold them against the
official classes. Not here: when what is said (`otlp_intake.py`), and how it travels (`receivers/otlp_http.py`, `receivers/otlp_grpc.py`).
Source: opentelemetry-proto (`collector/*/v1`), googleapis (`rpc/{status,code,error_details}.proto`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

Signal = Literal["logs", "traces", "metrics"]
Encoding = Literal["protobuf", "json"]

_REJECTED_IN_JSON = {"logs": "rejectedLogRecords", "traces": "rejectedSpans", "metrics": "rejectedDataPoints"}
_RETRY_INFO_URL = b"type.googleapis.com/google.rpc.RetryInfo"
_MOST_MESSAGE_CHARACTERS = 1024
"""A message travels in an HTTP/2 header of limited size, and in the sender's log."""


class Code(IntEnum):
    """The codes of google.rpc.Code that a receiver answers with."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request. `rejected` items of a success were refused for good: the others are durable."""

    code: Code
    message: str = ""
    rejected: int = 0
    retry_after_s: int = 0
    """Of UNAVAILABLE: when to come again, seconds."""


DONE = Outcome(Code.OK)


def response_body(outcome: Outcome, signal: Signal, encoding: Encoding) -> bytes:
    """Return the Export…ServiceResponse of a success; the partial success only where something was refused, as the protocol demands."""
    if not outcome.rejected:
        return b"" if encoding == "protobuf" else b"{}"
    message = outcome.message[:_MOST_MESSAGE_CHARACTERS]
    if encoding == "json":
        partial = {_REJECTED_IN_JSON[signal]: str(outcome.rejected), "errorMessage": message}
        return json.dumps({"partialSuccess": partial}).encode()
    return _bytes_field(1, _varint_field(1, outcome.rejected) + _bytes_field(2, message.encode("utf-8", "replace")))


def status_body(outcome: Outcome, encoding: Encoding) -> bytes:
    """Return the google.rpc.Status of a failure, with RetryInfo among its details where there is a time to come again."""
    message = outcome.message[:_MOST_MESSAGE_CHARACTERS]
    if encoding == "json":
        status: dict[str, object] = {"code": int(outcome.code), "message": message}
        if outcome.retry_after_s:
            status["details"] = [{"@type": _RETRY_INFO_URL.decode(), "retryDelay": f"{outcome.retry_after_s}s"}]
        return json.dumps(status).encode()
    encoded = _varint_field(1, outcome.code) + _bytes_field(2, message.encode("utf-8", "replace"))
    if outcome.retry_after_s:
        encoded += _bytes_field(3, _bytes_field(1, _RETRY_INFO_URL) + _bytes_field(2, retry_info(outcome.retry_after_s)))
    return encoded


def retry_info(retry_after_s: int) -> bytes:
    """Return a google.rpc.RetryInfo."""
    return _bytes_field(1, _varint_field(1, retry_after_s))


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value) if value else b""


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value
