"""What arrived against what was sent by Forward: every record once, and a sample of them field by field with the official classes."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.records import TAG, Pool, decode_entry

ID = re.compile(rb"job-([0-9a-f]{32})")
_SAMPLED_BODIES = 4
_SAMPLED_RECORDS_PER_BODY = 40


@dataclass(slots=True)
class Verdict:
    """What arrived, against what was sent. Anything in `lost`, `repeated`, `foreign` or `differences` makes the run void."""

    records: int = 0
    requests: int = 0
    body_bytes: int = 0
    inflated_bytes: int = 0
    lost: int = 0
    repeated: int = 0
    foreign: int = 0
    compared: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        return not (self.lost or self.repeated or self.foreign or self.differences) and self.compared > 0

    def __str__(self) -> str:
        counts = f"{self.records} records, {self.lost} lost, {self.repeated} repeated, {self.foreign} foreign, {self.compared} compared"
        return f"{counts}; {len(self.differences)} differences: " + "; ".join(text[:500] for text in self.differences[:2])


@dataclass(slots=True)
class Arrived:
    """What the sink holds: the inflated bodies, how many bytes came, and what was wrong with requests as such."""

    bodies: Sequence[bytes]
    body_bytes: int
    problems: Sequence[str]


def count_ids(arrived: Arrived, expected: Collection[bytes]) -> tuple[Verdict, Counter[bytes]]:
    """Return a verdict with its counts, and how often each id came."""
    verdict = Verdict(requests=len(arrived.bodies), body_bytes=arrived.body_bytes, inflated_bytes=sum(map(len, arrived.bodies)))
    verdict.differences += arrived.problems
    counts: Counter[bytes] = Counter()
    for body in arrived.bodies:
        counts.update(ID.findall(body))
    verdict.records = counts.total()
    verdict.lost = sum(1 for one in expected if one not in counts)
    verdict.foreign = len(counts) - (len(expected) - verdict.lost)
    verdict.repeated = verdict.records - len(counts)
    return verdict, counts


def verify_forward(pool: Pool, arrived: Arrived, first: int, count: int) -> Verdict:
    """Compare with records [first, first + count) of the pool, each expected exactly once."""
    index_of = {pool.ids[index]: index for index in range(first, first + count)}
    verdict, _ = count_ids(arrived, index_of.keys())
    for body in random.sample(arrived.bodies, min(_SAMPLED_BODIES, len(arrived.bodies))):
        _compare_body(pool, index_of, body, verdict)
    del verdict.differences[10:]
    return verdict


def _compare_body(pool: Pool, index_of: dict[bytes, int], body: bytes, verdict: Verdict) -> None:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    request = ExportLogsServiceRequest.FromString(body)
    rows = [
        (resource_logs.resource, scope_logs.scope, record)
        for resource_logs in request.resource_logs
        for scope_logs in resource_logs.scope_logs
        for record in scope_logs.log_records
    ]
    if len(rows) != len(ID.findall(body)):
        verdict.differences.append(f"a request has {len(rows)} log records but {len(ID.findall(body))} ids")
    for resource, scope, record in random.sample(rows, min(_SAMPLED_RECORDS_PER_BODY, len(rows))):
        carried = {kv.key: plain_value(kv.value) for kv in (*resource.attributes, *scope.attributes, *record.attributes)}
        job_id = str(carried.get("job_id", ""))
        index = index_of.get(job_id.removeprefix("job-").encode())
        if index is None:
            verdict.differences.append(f"a record with the job_id {job_id!r}, which was not sent")
            continue
        time_unix_nano, sent = decode_entry(pool.entries[index])
        verdict.compared += 1
        carried["fluent.tag"] = carried.get("fluent.tag")
        # Where OTLP has a field for it, a value may stand there instead of among the attributes.
        fields = {
            "message": plain_value(record.body),
            "timestamp": sent["timestamp"] if record.time_unix_nano == time_unix_nano else record.time_unix_nano,
            "level": record.severity_text,
            "trace_id": record.trace_id.hex(),
            "span_id": record.span_id.hex(),
        }
        for key, value in (*sent.items(), ("fluent.tag", TAG)):
            if carried.get(key) != value and fields.get(key) != value:
                verdict.differences.append(f"{job_id}: {key} was {value!r}, arrived as {carried.get(key)!r} (field {fields.get(key)!r})")
        if record.time_unix_nano != time_unix_nano:
            verdict.differences.append(f"{job_id}: time_unix_nano was {time_unix_nano}, arrived as {record.time_unix_nano}")


def plain_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "kvlist_value":
        return {kv.key: plain_value(kv.value) for kv in value.kvlist_value.values}
    if kind == "array_value":
        return [plain_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
