"""Export requests as OTLP JSON, written from the official classes: what a sender that follows the specification to the letter writes.

`MessageToJson` of protobuf is not it: OTLP has hex for ids and numbers for enums.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_IDS = {"trace_id", "span_id", "parent_span_id"}
_64_BITS = {
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
    FieldDescriptor.TYPE_SINT64,
}


def to_dict(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for field, value in message.ListFields():
        one = [_value(field, element) for element in value] if field.is_repeated else _value(field, value)
        out[field.json_name] = one
    return out


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return to_dict(value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return value.hex() if field.name in _IDS else base64.b64encode(value).decode()
    if field.type in _64_BITS:
        return str(value)
    if field.type == FieldDescriptor.TYPE_DOUBLE and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def to_json(message: Message, *, compact: bool = True) -> bytes:
    return json.dumps(to_dict(message), separators=(",", ":") if compact else None, ensure_ascii=not compact).encode()
