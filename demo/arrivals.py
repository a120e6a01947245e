"""Says what arrived, and whether it is what was sent: record by record at the local endpoint, by central's own counters at Dash0."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from demo.otlp_endpoint import LogRow, OtlpEndpoint
from demo.processes import EmpPipe
from demo.story import Entry
from demo.table import print_counts, print_jobs, step

ARRIVAL_TIMEOUT_S = 30.0
DASH0_TIMEOUT_S = 45.0
SEVERITY_NUMBERS = {"debug": 5, "info": 9, "warn": 13, "error": 17}
SCHEMA_NAMES = {"duration": "duration_ms"}
"""What services write under another name than the standard schema's."""
IDENTITY = ("machine_id", "worker_id", "service_type")


def differences(sent: Mapping[str, Entry], rows: Sequence[LogRow]) -> list[str]:
    """Return what is wrong with what arrived: lost, repeated, strange or changed records. Empty: every record arrived exactly once."""
    counts = Counter(str(row.attributes.get("demo_id")) for row in rows)
    wrong = [f"lost: {entry.message} ({demo_id})" for demo_id, entry in sent.items() if not counts[demo_id]]
    wrong += [f"arrived {count} times: {demo_id}" for demo_id, count in counts.items() if count > 1]
    wrong += [f"never sent: {demo_id}" for demo_id in counts if demo_id not in sent]
    for row in rows:
        entry = sent.get(str(row.attributes.get("demo_id")))
        if entry is None:
            continue
        arrived = {**row.attributes, **{key: row.resource.get(key) for key in IDENTITY}, "message": row.body}
        expected = {**entry.fields, "message": entry.message}
        expected = {SCHEMA_NAMES.get(key, key): value for key, value in expected.items()}
        changed = {key: (value, arrived.get(key)) for key, value in expected.items() if arrived.get(key) != value}
        if row.severity_number != SEVERITY_NUMBERS[entry.level]:
            changed["level"] = (entry.level, row.severity_number)
        if changed:
            wrong.append(f"changed on its way: {changed}")
    return wrong


def report_endpoint(sent: Mapping[str, Entry], endpoint: OtlpEndpoint) -> bool:
    """Print what arrived at the local endpoint; return whether it is what was sent."""
    complete = endpoint.wait_for_rows(len(sent), ARRIVAL_TIMEOUT_S)
    time.sleep(0.5)  # a repeat would come now
    rows = list(endpoint.received.rows)
    requests, zipped = endpoint.received.requests, endpoint.received.gzip_requests
    print(f"  {len(rows)} records in {requests} requests, {zipped} of them gzip")
    step("What arrived: two jobs of each machine")
    print()
    print_jobs(rows)
    step("Records per machine and severity")
    print()
    print_counts(rows)
    wrong = differences(sent, rows)
    print()
    for line in wrong[:10]:
        print(f"  ✗ {line}")
    if len(wrong) > 10:
        print(f"  ✗ and {len(wrong) - 10} more")
    if complete and not wrong:
        print(f"✓ all {len(sent)} records arrived exactly once, with every field as it was sent")
    else:
        print(f"✗ {len(sent)} records were sent, {len(rows)} arrived")
    return complete and not wrong


def report_dash0(sent: Mapping[str, Entry], central: EmpPipe) -> bool:
    """Wait until central has delivered everything to Dash0, by its own counters; return whether it has."""
    deadline = time.monotonic() + DASH0_TIMEOUT_S
    delivered = lost = 0.0
    while time.monotonic() < deadline and delivered + lost < len(sent):
        time.sleep(0.25)
        metrics = central.metrics()
        delivered = counted(metrics, "emp_pipe_exporter_sent_records_total")
        lost = counted(metrics, "emp_pipe_exporter_rejected_records_total") + counted(metrics, "emp_pipe_exporter_dead_records_total")
    print(f"  {delivered:.0f} of {len(sent)} records delivered, {lost:.0f} refused")
    if delivered == len(sent) and not lost:
        print(f"✓ Dash0 has taken all {len(sent)} records: look for machine_id gpu-7f3a")
        return True
    print(f"✗ not everything was delivered; central says:\n{central.last_lines()}")
    return False


def counted(metrics: str, name: str) -> float:
    """Return the sum of a counter over all its labels, out of Prometheus' text."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", metrics, re.MULTILINE))
