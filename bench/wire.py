"""The few protobuf encodings that the load needs, by hand: the official classes take ten times as long to build a request.

What these write is read back with the official classes by the sink, and by tests/unit/test_bench_otlp.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable


def varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def delimited(field: int, payload: bytes) -> bytes:
    """A string, bytes or message field."""
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def number(field: int, value: int) -> bytes:
    """A varint field."""
    return varint(field << 3) + varint(value)


def fixed64(field: int, value: int) -> bytes:
    return varint(field << 3 | 1) + value.to_bytes(8, "little")


def fixed32(field: int, value: int) -> bytes:
    return varint(field << 3 | 5) + value.to_bytes(4, "little")


def double(field: int, value: float) -> bytes:
    return varint(field << 3 | 1) + struct.pack("<d", value)


Value = str | int | float


def attribute(field: int, key: str, value: Value) -> bytes:
    """A KeyValue in a repeated field of that number."""
    if isinstance(value, str):
        any_value = delimited(1, value.encode())
    else:
        any_value = double(4, value) if isinstance(value, float) else number(3, value)
    return delimited(field, delimited(1, key.encode()) + delimited(2, any_value))


def attributes(field: int, pairs: Iterable[tuple[str, Value]]) -> bytes:
    return b"".join(attribute(field, key, value) for key, value in pairs)
