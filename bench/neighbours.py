"""What a destination in trouble costs the one beside it: CPU for each record that the well one gets, and how far it lags behind.

The rule: with a dead or a slow neighbour a delivered record costs at most 10 % more CPU than with the well destination alone, and the age
of the oldest block that the well one has not got yet is under a second in 99 of 100 looks. Durable, gzip. The neighbour is required, with
room for all of the run, so that its backlog is kept: the dead one refuses connections, the slow one answers after two seconds.
CPU is that of the whole process, the neighbour's own attempts included. In each round the well destination is alone at the start and at the
end, and the mean of both is the reference of what lies between: other work on the machine comes and goes in minutes, a round takes less.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench import configs
from bench.figures import Figure, of_pairs, percentile
from bench.load import Load
from bench.runs import Variant, Workbench
from bench.sink import SinkAddress
from bench.subjects import Subject, emp_pipe_command, free_ports

CPU_BAR = 1 / 1.1
LAG_AIM_S = 1.0
_WELL = "otlp_http"
_SLOW_S = 2.0
_LOOK_EVERY_S = 0.02
_RATE, _LAG_RECORDS = 20_000.0, 200_000
_CPU_RECORDS = 200_000


class _SlowAnswers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(_SLOW_S)
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@contextlib.contextmanager
def _slow_destination() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _SlowAnswers)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _variant(name: str, neighbour: str | None, data_dirs: list[Path]) -> Variant:
    def start(subject: Subject, folder: Path, sink: SinkAddress) -> int:
        (port,) = free_ports(1)
        exporters = configs.otlp_http(sink.url, "gzip")
        if neighbour is not None:
            exporters["otlp_http/neighbour"] = {"endpoint": neighbour, "compression": "gzip", "required": True}
        config = configs.emp_pipe(data_dir=folder / "data", port=port, buffer="sqlite", exporters=exporters)
        config["shutdown"] = {"deadline_s": 2}
        data_dirs[:] = [folder / "data"]
        subject.start(emp_pipe_command("emp-pipe", configs.write(folder / "emp-pipe.yaml", config), [port]))
        return port

    return Variant(name, start)


def run(bench: Workbench, pairs: int, say: Callable[[str], None]) -> list[Figure]:
    """Return CPU and lag of the well destination beside a dead and beside a slow one, each compared with it alone."""
    (dead_port,) = free_ports(1)
    data_dirs: list[Path] = []
    with _slow_destination() as slow:
        alone = _variant("alone", None, data_dirs)
        troubled = [_variant("dead", f"http://127.0.0.1:{dead_port}", data_dirs), _variant("slow", slow, data_dirs)]
        cpu: dict[str, list[float]] = {variant.name: [] for variant in (alone, *troubled)}
        lag_s: dict[str, list[float]] = {variant.name: [] for variant in (alone, *troubled)}
        for round_number in range(pairs):
            between = troubled if round_number % 2 == 0 else troubled[::-1]
            measured: dict[str, list[float]] = {variant.name: [] for variant in (alone, *troubled)}
            for variant in (alone, *between, alone):
                run = bench.run(variant, Load(0, _CPU_RECORDS, ack=True))
                measured[variant.name].append(run.cpu_us_per_record)
                say(f"a neighbour {variant.name}: {run.cpu_us_per_record:.3f} µs")
            for name, values in measured.items():
                cpu[name].append(statistics.mean(values))
        for variant in (alone, *troubled):
            lag_s[variant.name] = _lags(bench, variant, data_dirs)
            say(f"a neighbour {variant.name}: lag p99 {percentile(lag_s[variant.name], 99):.3f} s")
    figures = []
    for variant in troubled:
        figure = of_pairs(f"{variant.name}_neighbour_cpu", "CPU µs per delivered record", cpu[variant.name], cpu["alone"], bar=CPU_BAR)
        figure.note = "the reference is the well destination alone, before and after"
        lag = Figure(f"{variant.name}_neighbour_lag_p99", percentile(lag_s[variant.name], 99), "s", aim=LAG_AIM_S)
        lag.reference = percentile(lag_s["alone"], 99)
        lag.note = f"of the well destination, {len(lag_s[variant.name])} looks at {_RATE:.0f} records a second; the reference is it alone"
        figures += [figure, lag]
    return figures


def _lags(bench: Workbench, variant: Variant, data_dirs: list[Path]) -> list[float]:
    """Return the age of the oldest block that the well destination had not got yet, at each look during a paced load."""
    from emp_pipe import control_client

    lags: list[float] = []
    bench.sink.reset(keep=False)
    with bench.subject(variant) as (subject, port):
        load = Load(0, _LAG_RECORDS, ack=True, records_per_s=_RATE)
        bench.load.prepare(load)
        bench.load.start(port)
        ends = time.monotonic() + load.records / _RATE
        while time.monotonic() < ends:
            groups = {row["group"]: row for row in map(json.loads, control_client.ask(data_dirs[0], {"ask": "groups list"}))}
            lags.append(groups[_WELL]["oldest_age_s"])
            time.sleep(_LOOK_EVERY_S)
        bench.load.wait(120)
        bench.await_arrival(subject, load.records)
    return lags
