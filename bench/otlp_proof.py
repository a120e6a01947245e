"""What arrived against what was sent by OTLP: every row once, and a sample of them field by field with the official classes.

Of a sampler's output: every trace whole, every trace with an error there, of the others as many as the probability says.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.otlp_data import Built, OtlpData, Signal, build
from bench.proof import Arrived, Verdict, count_ids, plain_value

_SAMPLED_BODIES = 6
_SAMPLED_ROWS_PER_BODY = 40


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a tail sampler is to leave over: every trace with an error, and `probability` of the others."""

    probability: float


def verify_otlp(sent: Sequence[OtlpData], arrived: Arrived, sampled: Sampled | None = None, merged: bool = False) -> Verdict:
    """Compare with all that was sent. With `sampled`, spans of traces that were rightly left out are not missed. `merged`: the points are
    what an aggregator made of several; only their times and counts may then differ."""
    parts = [build(data) for data in sent]
    where = {unique: (part, index) for part in parts for index, unique in enumerate(part.ids)}
    verdict, counts = count_ids(arrived, where.keys())
    if sampled is not None:
        verdict.lost = 0
        for part in parts:
            _check_sampled(part, counts, sampled, verdict)
    # A sampler says in the trace state what it did; an aggregator sums delta histograms and sets a window's times.
    ignored = ("trace_state",) if sampled else ("start_time_unix_nano", "time_unix_nano", "count", "sum", "bucket_counts") if merged else ()
    bodies = [body for body in arrived.bodies if b"job-" in body]
    for body in random.sample(bodies, min(_SAMPLED_BODIES, len(bodies))):
        _compare_body(sent[0].signal, where, body, verdict, ignored)
    del verdict.differences[10:]
    return verdict


def _check_sampled(part: Built, counts: Counter[bytes], sampled: Sampled, verdict: Verdict) -> None:
    sent, came = Counter(part.trace_of), Counter(trace for trace, one in zip(part.trace_of, part.ids, strict=True) if one in counts)
    partial = sum(1 for trace, spans in came.items() if spans != sent[trace])
    if partial:
        verdict.differences.append(f"{partial} traces arrived without some of their spans")
    verdict.lost += sum(sent[trace] - came[trace] for trace in part.error_traces)
    others, kept = len(sent) - len(part.error_traces), len(came.keys() - part.error_traces)
    wanted, spread = others * sampled.probability, math.sqrt(others * sampled.probability * (1 - sampled.probability))
    if abs(kept - wanted) > 5 * spread + 1:
        verdict.differences.append(f"{kept} of {others} traces without an error were kept, {wanted:.0f} were to be")


def request_class(signal: Signal) -> Any:
    """Return the official class of an export request."""
    if signal == "logs":
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest as Request
    elif signal == "traces":
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest as Request
    else:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest as Request
    return Request


def rows_of(signal: Signal, body: bytes) -> Iterator[tuple[Any, Any, Any]]:
    """Yield (resource, scope, row) of a request; a row is a LogRecord, a Span or a data point."""
    request = request_class(signal).FromString(body)
    groups = {"logs": "resource_logs", "traces": "resource_spans", "metrics": "resource_metrics"}[signal]
    for group in getattr(request, groups):
        for scoped in getattr(group, groups.replace("resource", "scope")):
            rows = {"logs": "log_records", "traces": "spans", "metrics": "metrics"}[signal]
            for row in getattr(scoped, rows):
                if signal != "metrics":
                    yield group.resource, scoped.scope, row
                    continue
                for point in getattr(row, row.WhichOneof("data")).data_points:
                    yield group.resource, scoped.scope, point


def _compare_body(signal: Signal, where: dict[bytes, tuple[Built, int]], body: bytes, verdict: Verdict, ignored: Sequence[str]) -> None:
    rows = list(rows_of(signal, body))
    if len(rows) != body.count(b"job-"):
        verdict.differences.append(f"a request has {len(rows)} rows but {body.count(b'job-')} ids")
    for resource, scope, row in random.sample(rows, min(_SAMPLED_ROWS_PER_BODY, len(rows))):
        attributes = {pair.key: plain_value(pair.value) for pair in row.attributes}
        carried = {pair.key: plain_value(pair.value) for pair in (*resource.attributes, *scope.attributes)} | attributes
        job_id = str(carried.get("job_id", ""))
        found = where.get(job_id.removeprefix("job-").encode())
        if found is None:
            verdict.differences.append(f"a row with the job_id {job_id!r}, which was not sent")
            continue
        part, index = found
        encoded, resource_index = part.rows[index]
        expected = type(row).FromString(encoded)
        identity = type(resource).FromString(part.resources[resource_index])
        verdict.compared += 1
        for pair in (*expected.attributes, *identity.attributes):
            if carried.get(pair.key) != plain_value(pair.value):
                verdict.differences.append(f"{job_id}: {pair.key} was {plain_value(pair.value)!r}, arrived as {carried.get(pair.key)!r}")
        if signal != "logs" and len(attributes) != len(expected.attributes):
            verdict.differences.append(f"{job_id}: {len(expected.attributes)} attributes were sent, {len(attributes)} arrived")
        for part_of_row in (expected, row):
            for name in ("attributes", *ignored):
                if name in part_of_row.DESCRIPTOR.fields_by_name:
                    part_of_row.ClearField(name)
        if expected != row:
            verdict.differences.append(f"{job_id}: was {expected}, arrived as {row}")
