"""The log on Redis: how many records go through one Redis on cores that it shares with emp-pipe, and what CPU both take.

The rule: at least 100,000 records a second, from a Forward sender's first byte to the last one at the destination, load generator and sink
on the same cores. Forward in with acks, gzip, OTLP/HTTP out, all in one process; the Redis is one of our own with an append-only file:
`appendfsync always`, under which an ack is a promise, and `everysec`, which many run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from bench import configs
from bench.figures import Figure, quartiles
from bench.load import Load
from bench.runs import Run, Variant, Workbench
from bench.sink import SinkAddress
from bench.subjects import Subject, emp_pipe_command, free_ports

LEAST_PER_S = 100_000.0
RECORDS = 300_000
_APPENDFSYNC = ("always", "everysec")


def run(bench: Workbench, pairs: int, say: Callable[[str], None]) -> list[Figure]:
    """Records a second through one Redis, and the CPU of both, for each way to sync its file."""
    from tests.support.redis_server import RedisServer, program

    if program() is None:
        raise RuntimeError("there is no redis-server (tools/redis.sh)")
    runs: dict[str, list[Run]] = {how: [] for how in _APPENDFSYNC}
    for number in range(pairs):
        for how in _APPENDFSYNC if number % 2 == 0 else reversed(_APPENDFSYNC):
            with RedisServer(appendfsync=how) as server:
                run = bench.run(variant(how, server.url, server.pid), Load(0, RECORDS, ack=True))
            runs[how].append(run)
            say(
                f"redis {how}: {run.through_per_s:,.0f} records/s ({run.records_per_s:,.0f} acked), "
                f"{run.cpu_us_per_record:.2f} µs and Redis {run.beside_cpu_s / run.records * 1e6:.2f} µs a record"
            )
    return [_figure(how, measured) for how, measured in runs.items()]


def variant(name: str, url: str, pid: int) -> Variant:
    """Forward in, OTLP/HTTP out, the log in a Redis whose CPU is counted apart."""

    def start(subject: Subject, folder: Path, sink: SinkAddress) -> int:
        (port,) = free_ports(1)
        buffer = {"type": "redis", "url": f"{url}/0"}
        config = configs.emp_pipe(data_dir=folder / "data", port=port, buffer=buffer, exporters=configs.otlp_http(sink.url, "gzip"))
        subject.start(emp_pipe_command("emp-pipe", configs.write(folder / "emp-pipe.yaml", config), [port]))
        return port

    return Variant(name, start, lambda: [pid])


def _figure(how: str, runs: list[Run]) -> Figure:
    rates = [run.through_per_s for run in runs]
    ours = statistics.median([run.cpu_us_per_record for run in runs])
    theirs = statistics.median([run.beside_cpu_s / run.records * 1e6 for run in runs])
    figure = Figure(f"redis_through_{how}", statistics.median(rates), "records/s", pairs=len(runs), value_quartiles=quartiles(rates))
    figure.reference = LEAST_PER_S  # the rule itself; the ratio is turned round, for here more is better
    figure.ratio = figure.value / LEAST_PER_S if figure.value else None
    figure.ratio_quartiles = quartiles([rate / LEAST_PER_S for rate in rates])
    figure.bar = 1.0
    figure.note = f"{ours:.2f} CPU µs a record in emp-pipe, {theirs:.2f} in Redis; the reference is the rule"
    figure.more = {"cpu_us": ours, "redis_cpu_us": theirs, "acked_per_s": statistics.median([run.records_per_s for run in runs])}
    return figure
