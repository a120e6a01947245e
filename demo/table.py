"""Prints what arrived: some jobs record by record, then counts per machine and severity."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence

from demo.otlp_endpoint import LogRow

COLUMNS = ("machine", "worker", "level", "job", "message")


def step(text: str) -> None:
    """Say what happens next."""
    print(f"\n▸ {text}", flush=True)


def cells(row: LogRow) -> tuple[str, ...]:
    job = str(row.attributes.get("job_id", ""))
    return (
        str(row.resource.get("machine_id", "")),
        str(row.resource.get("worker_id", "")),
        row.severity_text.lower(),
        f"{job[:12]}…" if len(job) > 13 else job,
        str(row.body),
    )


def print_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    lines = list(lines)
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    room = shutil.get_terminal_size((120, 40)).columns
    for line in [header, ["-" * width for width in widths], *lines]:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()[: room - 2])


def print_jobs(rows: Sequence[LogRow], jobs_per_machine: int = 2) -> None:
    """Print all records of a few jobs of each machine, the failed ones first."""
    machines = sorted({str(row.resource.get("machine_id", "")) for row in rows})
    for machine in machines:
        own = [row for row in rows if row.resource.get("machine_id", "") == machine]
        failed = [row.attributes.get("job_id") for row in own if row.attributes.get("event_type") == "job_failed"]
        done = [row.attributes.get("job_id") for row in own if row.attributes.get("event_type") == "job_completed"]
        chosen = (failed[:1] + done)[:jobs_per_machine]
        shown = sorted(
            (row for row in own if row.attributes.get("job_id") in chosen),
            key=lambda row: (str(row.attributes["job_id"]), row.time_unix_nano),
        )
        print_table(COLUMNS, map(cells, shown))
        print()


def print_counts(rows: Sequence[LogRow]) -> None:
    """Print how many records of each severity each machine sent."""
    severities = sorted({(row.severity_number, row.severity_text.lower()) for row in rows})
    names = list(dict.fromkeys(name for _, name in severities))
    counts = Counter((str(row.resource.get("machine_id", "")), row.severity_text.lower()) for row in rows)
    machines = sorted({machine for machine, _ in counts})
    lines = [
        [machine, *(str(counts[machine, name]) for name in names), str(sum(counts[machine, n] for n in names))] for machine in machines
    ]
    lines.append(["all", *(str(sum(counts[m, name] for m in machines)) for name in names), str(len(rows))])
    print_table(["machine", *names, "all"], lines)
