"""The cases of the file tail: lines of files through emp-pipe to the `noop` exporter, and what files cost that nobody writes to.

Files appear whole, by a rename, before a running process; what is measured is its CPU time until the books say that every line was
filed and sent. Not in it: the start, and the writer. A run whose books do not say the number of lines is void.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.figures import Figure, quartiles
from bench.runs import VoidRun, Workbench
from bench.subjects import Subject, emp_pipe_command, free_ports

Say = Callable[[str], None]
LINES = 1_000_000
FILES = 1000
IDLE_S = 20.0
_WARM_LINES = 20_000
_PATIENCE_S = 120.0
_FILLER = "it did what it was told and this line says so at some length, as lines of services do when nobody has asked them to"


def plain(number: int) -> bytes:
    """A line of 132 bytes, its end included."""
    return f"2025-11-24 12:00:{number % 60:02d} INFO worker {number:07d} {_FILLER}"[:131].ljust(131, ".").encode() + b"\n"


def in_json(number: int) -> bytes:
    return (
        f'{{"timestamp":"2025-11-24T12:00:{number % 60:02d}.{number % 1000:03d}Z","level":"info","message":"job {number:07d} moved on",'
        f'"machine_id":"gpu-7f3a","worker_id":"worker-001","job_id":"job-{number:07d}","duration_ms":{number % 500}}}\n'
    ).encode()


def run(bench: Workbench, pairs: int, say: Say) -> list[Figure]:
    """Plain and JSON lines, of one file and of a thousand, and an idle process that watches a thousand."""
    figures = [
        _lines(bench, "tail_plain_lines", plain, 1, pairs, say, aim=0.45),
        _lines(bench, "tail_json_lines", in_json, 1, pairs, say, aim=1.0),
        _lines(bench, "tail_plain_lines_of_1000_files", plain, FILES, pairs, say, aim=0.45),
        _lines(bench, "tail_plain_lines_durable_gzip", plain, 1, pairs, say, aim=None, durable=True),
    ]
    figures.append(_idle(bench, say))
    return figures


def _lines(
    bench: Workbench, name: str, line: Callable[[int], bytes], files: int, pairs: int, say: Say, *, aim: float | None, durable: bool = False
) -> Figure:
    values, rates = [], []
    parts = [b"".join(line(number) for number in range(start, LINES, files)) for start in range(files)]
    for _ in range(pairs):
        with _running(bench, durable=durable) as (subject, logs, filed):
            (logs / "warm.log").write_bytes(b"".join(line(number) for number in range(_WARM_LINES)))
            _await(subject, filed, _WARM_LINES)
            hidden = logs / "hidden"
            hidden.mkdir()
            for number, part in enumerate(parts):
                (hidden / f"app-{number:04d}.log").write_bytes(part)
            cpu_s, began_s = subject.cpu_s(), time.monotonic()
            for number in range(files):
                (hidden / f"app-{number:04d}.log").rename(logs / f"app-{number:04d}.log")
            _await(subject, filed, _WARM_LINES + LINES)
            values.append((subject.cpu_s() - cpu_s) / LINES * 1e6)
            rates.append(LINES / (time.monotonic() - began_s))
    figure = Figure(name, statistics.median(values), "CPU µs per line", pairs=pairs, value_quartiles=quartiles(values), aim=aim)
    figure.note = f"{len(parts[0]) * files / LINES:.0f} bytes a line, {statistics.median(rates):,.0f} lines a second through"
    say(f"{name}: {figure.value:.2f} µs a line, {figure.note}")
    return figure


def _idle(bench: Workbench, say: Say) -> Figure:
    with _running(bench, durable=True) as (subject, logs, filed):
        for number in range(FILES):
            (logs / f"app-{number:04d}.log").write_bytes(plain(number) * 10)
        _await(subject, filed, FILES * 10)
        time.sleep(10)  # until the directory is watched for writes again
        cpu_s, began_s = subject.cpu_s(), time.monotonic()
        time.sleep(IDLE_S)
        percent = (subject.cpu_s() - cpu_s) / (time.monotonic() - began_s) * 100
        (logs / "app-0500.log").open("ab").write(plain(0))
        _await(subject, filed, FILES * 10 + 1)
    figure = Figure("tail_idle_1000_files", percent, "% of a core", aim=1.0, note=f"over {IDLE_S:.0f} s")
    say(f"{figure.name}: {percent:.2f} % of a core")
    return figure


@contextmanager
def _running(bench: Workbench, *, durable: bool) -> Iterator[tuple[Subject, Path, Callable[[], float]]]:
    folder = bench.folder / "tail"
    shutil.rmtree(folder, ignore_errors=True)
    logs = folder / "logs"
    logs.mkdir(parents=True)
    (port,) = free_ports(1)
    config = {
        "data_dir": str(folder / "data"),
        "http": {"listen": f"127.0.0.1:{port}"},
        "machine_id": "gpu-bench",
        "buffer": "sqlite" if durable else "memory",
        "receivers": {"tail": {"include": [str(logs / "*.log")]}},
        "exporters": {"noop": {"codec": "gzip" if durable else "none"}},
    }
    file = folder / "emp.json"
    file.write_text(json.dumps(config))

    def filed() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        return min(
            _value(text, "emp_pipe_receiver_records_total{", 'component="tail"', 'outcome="appended"'),
            _value(text, "emp_pipe_group_records_total{", 'group="noop"', 'outcome="acked"'),
        )

    subject = Subject("emp-pipe tail", folder)
    try:
        subject.start(emp_pipe_command("emp-pipe", file, [port]))
        yield subject, logs, filed
    finally:
        subject.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _value(text: str, *words: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if all(word in line for word in words))


def _await(subject: Subject, filed: Callable[[], float], count: int) -> None:
    until_s = time.monotonic() + _PATIENCE_S
    while (found := filed()) != count:
        subject.check_alive()
        if found > count or time.monotonic() > until_s:
            raise VoidRun(f"{found:,.0f} lines of {count:,} were filed and sent")
        time.sleep(0.2)
