"""Hypothesis strategies for OTLP logs: every kind of value, ids right and wrong, times from 0 to the end of time."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs

from tests.support.otlp_rows import any_value, attributes

CODECS: list[Any] = ["none", "gzip", "zstd"]

scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=20), st.binary(max_size=20))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2), max_leaves=4
)
maps = st.dictionaries(st.text(max_size=8), values, max_size=5)
log_records = st.builds(
    lambda time, observed, severity, text, body, attrs, ids, flags, event: LogRecord(
        time_unix_nano=time,
        observed_time_unix_nano=observed,
        severity_number=severity,
        severity_text=text,
        body=any_value(body),
        attributes=attributes(attrs),
        trace_id=ids[0],
        span_id=ids[1],
        flags=flags,
        event_name=event,
    ),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 24),
    st.text(max_size=8),
    values,
    maps,
    st.sampled_from([(b"", b""), (bytes(range(16)), bytes(range(8)))]),
    st.integers(0, 2**32 - 1),
    st.text(max_size=5),
)


def resource_logs(rows: list[LogRecord], resource: dict[str, Any], scope: str, schema_url: str) -> ResourceLogs:
    of_scope = ScopeLogs(log_records=rows, schema_url=schema_url)
    of_scope.scope.name = scope
    of_resource = ResourceLogs(scope_logs=[of_scope], schema_url=schema_url)
    of_resource.resource.attributes.extend(attributes(resource))
    return of_resource


requests = st.lists(
    st.builds(resource_logs, st.lists(log_records, max_size=2), maps, st.sampled_from(["", "a", "b"]), st.sampled_from(["", "url"])),
    max_size=4,
).map(lambda resources: ExportLogsServiceRequest(resource_logs=resources))
small_requests = st.builds(lambda row: ExportLogsServiceRequest(resource_logs=[resource_logs([row], {"k": "v"}, "a", "url")]), log_records)
