"""Hypothesis strategies for any OTLP message, by the official classes' own descriptors: every field set or not, at every level."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

_IDS = {"trace_id": 16, "span_id": 8, "parent_span_id": 8}
_RANGES = {
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
}
# Never left out: a request without rows shows nothing.
_FRAMING = {f"{level}_{rows}" for level in ("resource", "scope") for rows in ("logs", "spans", "metrics")} | {
    "log_records",
    "spans",
    "metrics",
}
# A field of a later version of the protocol.
UNKNOWN = b"\xc2\x3e\x06future"


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.name in _IDS:
        size = _IDS[field.name]
        return st.binary(min_size=size, max_size=size).filter(any)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values if value.number > 0])
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.text(max_size=6)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=6)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return st.one_of(st.floats(allow_nan=False), st.just(math.nan))
    low, high = _RANGES[field.type]
    return st.one_of(st.integers(low, high), st.integers(0, 3))


@st.composite
def messages(draw: st.DrawFn, kind: type[Message], *, depth: int = 4, unknown: bool = True) -> Any:
    """A message of a class; `unknown`: now and then with a field that no version knows yet."""
    message = kind()
    _fill(draw, message, depth, unknown)
    return message


def _fill(draw: st.DrawFn, message: Message, depth: int, unknown: bool) -> None:
    descriptor: Descriptor = message.DESCRIPTOR
    chosen = {oneof.name: draw(st.integers(0, len(oneof.fields))) for oneof in descriptor.oneofs if not _is_optional(oneof)}
    for field in descriptor.fields:
        # Profiles refer to strings by number; elsewhere these fields have no meaning.
        if field.name.endswith("strindex"):
            continue
        oneof = field.containing_oneof
        if oneof is not None and not _is_optional(oneof):
            if chosen[oneof.name] != [one.name for one in oneof.fields].index(field.name):
                continue
        elif field.name not in _FRAMING and not draw(st.booleans()):
            continue
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if depth == 0:
                continue
            if field.is_repeated:
                for _ in range(draw(st.integers(1, 2))):
                    _fill(draw, getattr(message, field.name).add(), depth - 1, unknown)
            else:
                getattr(message, field.name).SetInParent()
                _fill(draw, getattr(message, field.name), depth - 1, unknown)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(_scalar(field), max_size=3)))
        else:
            setattr(message, field.name, draw(_scalar(field)))
    if unknown and draw(st.integers(0, 4)) == 0:
        message.MergeFromString(UNKNOWN)


def _is_optional(oneof: Any) -> bool:
    """Whether a oneof is only how `optional` is written down."""
    return len(oneof.fields) == 1 and str(oneof.name).startswith("_")
