"""Prints what arrived: some jobs record by record, then counts per machine and severity."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence

from demo.otlp_endpoint import LogRow

SEVERITY_NAMES = {5: "debug", 9: "info", 13: "warn", 17: "error"}
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


def print_jobs(rows: Sequence[LogRow]) -> None:
    """Print all records of two jobs of each machine, one that failed and one that was completed."""
    shown: list[LogRow] = []
    for machine in machines(rows):
        own = [row for row in rows if row.resource.get("machine_id") == machine]
        for end in ("job_failed", "job_completed"):
            jobs = [row.attributes.get("job_id") for row in own if row.attributes.get("event_type") == end]
            shown += sorted((row for row in own if row.attributes.get("job_id") in jobs[:1]), key=lambda row: row.time_unix_nano)
    print_table(COLUMNS, map(cells, shown))


def print_counts(rows: Sequence[LogRow]) -> None:
    """Print how many records of each severity each machine sent."""
    names = {number: SEVERITY_NAMES.get(number, str(number)) for number in sorted({row.severity_number for row in rows})}
    counts = Counter((str(row.resource.get("machine_id")), row.severity_number) for row in rows)
    lines = [[machine, *(str(counts[machine, number]) for number in names)] for machine in machines(rows)]
    lines.append(["all", *(str(sum(counts[machine, number] for machine in machines(rows))) for number in names)])
    print_table(["machine", *names.values(), "all"], [[*line, str(sum(map(int, line[1:])))] for line in lines])


def machines(rows: Sequence[LogRow]) -> list[str]:
    return sorted({str(row.resource.get("machine_id")) for row in rows})
