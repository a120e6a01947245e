"""What an OTLP endpoint has received, flat: spans and log records with their resource, as plain values to compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.otlp_strict import Received


def plain(value: Any) -> Any:
    """Return an AnyValue as Python's own."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return mapping(value.kvlist_value.values)
    return getattr(value, kind) if kind else None


def mapping(attributes: Iterable[Any]) -> dict[str, Any]:
    return {attribute.key: plain(attribute.value) for attribute in attributes}


@dataclass(frozen=True)
class Seen:
    """One span or log record. `name`: a span's name, a record's body."""

    name: Any
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    scope: str
    row: Any


def spans(received: Iterable[Received]) -> list[Seen]:
    return list(_rows(received, "traces", "resource_spans", "scope_spans", "spans"))


def logs(received: Iterable[Received]) -> list[Seen]:
    return list(_rows(received, "logs", "resource_logs", "scope_logs", "log_records"))


def metrics(received: Iterable[Received]) -> list[Seen]:
    return list(_rows(received, "metrics", "resource_metrics", "scope_metrics", "metrics"))


def _rows(received: Iterable[Received], signal: str, resources: str, scopes: str, rows: str) -> Iterator[Seen]:
    for request in received:
        if request.signal != signal or request.status != 200:
            continue
        for resource in getattr(request.message, resources):
            for scope in getattr(resource, scopes):
                for row in getattr(scope, rows):
                    yield _seen(row, mapping(resource.resource.attributes), scope.scope.name)


def _seen(row: Any, resource: dict[str, Any], scope: str) -> Seen:
    def hexed(name: str) -> str:
        return getattr(row, name, b"").hex()

    name = plain(row.body) if hasattr(row, "body") else row.name
    attributes = mapping(getattr(row, "attributes", ()))
    return Seen(name, hexed("trace_id"), hexed("span_id"), hexed("parent_span_id"), attributes, resource, scope, row)
