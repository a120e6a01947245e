"""The cases of OTLP: logs and spans through emp-pipe and the Collector, tail sampling, memory with many streams or traces, JSON.

Every run has rows of its own (`otlp_data.py`). Loads are closed loops over four connections.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from bench import variants_otlp as variants
from bench.cases import MEGABYTE, REFERENCE, PairedCase
from bench.configs import Compression
from bench.figures import Figure, of_pairs
from bench.otlp_data import OtlpData
from bench.otlp_load import OtlpLoad
from bench.otlp_proof import Sampled
from bench.runs import Sampling, Variant, VoidRun, Workbench
from bench.subjects import REPOSITORY
from bench.variants_otlp import Protocol

Say = Callable[[str], None]
DECISION_WAIT_S = 5.0
IN_FLIGHT_WAIT_S = 25.0
IN_FLIGHT_SPANS = 1_000_000
STREAMS = 100_000
KEPT = Sampled(0.1)


def logs(count: int) -> OtlpData:
    return OtlpData("logs", count, 1000)


def spans(count: int) -> OtlpData:
    return OtlpData("traces", count, 500)


def paired_cases() -> list[PairedCase]:
    logs_http = [_logs_http("none", False, 300_000), _logs_http("none", True, 200_000)]
    logs_http += [_logs_http("gzip", False, 150_000), _logs_http("gzip", True, 100_000)]
    logs_grpc = [_logs_grpc(False, 300_000), _logs_grpc(True, 200_000)]
    return [*logs_http, *logs_grpc, _spans("grpc", 1.2), _spans("http", None), tail_sampling_case()]


def _logs_http(compression: Compression, durable: bool, count: int) -> PairedCase:
    return PairedCase(
        f"otlp_http_logs_{compression}_{'durable' if durable else 'memory'}",
        [variants.emp_pipe("", protocol="http", compression=compression, buffer="sqlite" if durable else "memory")],
        variants.collector(REFERENCE, protocol="http", compression=compression, durable=durable),
        OtlpLoad(logs(count), "http", compression),
        bar=5,
        note="requests come and go in the same compression",
    )


def _logs_grpc(durable: bool, count: int) -> PairedCase:
    return PairedCase(
        f"otlp_grpc_logs_{'durable' if durable else 'memory'}",
        [variants.emp_pipe("", protocol="grpc", buffer="sqlite" if durable else "memory")],
        variants.collector(REFERENCE, protocol="grpc", durable=durable),
        OtlpLoad(logs(count), "grpc"),
        bar=3,
    )


def _spans(protocol: Protocol, bar: float | None) -> PairedCase:
    return PairedCase(
        f"otlp_spans_{protocol}",
        [variants.emp_pipe("", protocol=protocol)],
        variants.collector(REFERENCE, protocol=protocol),
        OtlpLoad(spans(300_000), protocol),
        bar=bar,
    )


def tail_sampling_case() -> PairedCase:
    sampler = {"tail_sample": tail_sample(DECISION_WAIT_S)}
    return PairedCase(
        "tail_sampling",
        [
            variants.emp_pipe("", protocol="grpc", processors=sampler),
            variants.emp_pipe(".sqlite", protocol="grpc", buffer="sqlite", processors=sampler),
        ],
        variants.collector(REFERENCE, protocol="grpc", tail_sampling=variants.collector_tail_sampling(DECISION_WAIT_S, 400_000)),
        OtlpLoad(spans(250_000), "grpc"),
        bar=3,
        note="five spans a trace, scattered over requests; every error and 10 % of the others; receiving and sending included",
        sampling=Sampling(KEPT, DECISION_WAIT_S),
    )


def tail_sample(decision_wait_s: float) -> dict[str, object]:
    """The settings of our sampler that mean what `collector_tail_sampling` means."""
    policies = [{"name": "errors", "type": "error"}, {"name": "some", "type": "probability", "percent": KEPT.probability * 100}]
    return {"decision_wait_s": decision_wait_s, "decide_on_error": False, "policies": policies}


def run_tail_in_flight(bench: Workbench, with_reference: bool, say: Say) -> list[Figure]:
    """The highest resident size while a million spans of 200,000 traces wait for their decision. Out as to Dash0: HTTP, gzip."""
    load = OtlpLoad(spans(IN_FLIGHT_SPANS), "grpc")
    sampling = Sampling(KEPT, IN_FLIGHT_WAIT_S, all_in_flight=True)
    sampler = {"tail_sample": tail_sample(IN_FLIGHT_WAIT_S)}
    sides = [
        variants.emp_pipe("emp-pipe", protocol="grpc", compression="gzip", processors=sampler, out="http"),
        variants.emp_pipe("sqlite", protocol="grpc", compression="gzip", buffer="sqlite", processors=sampler, out="http"),
    ]
    if with_reference:
        settings = variants.collector_tail_sampling(IN_FLIGHT_WAIT_S, IN_FLIGHT_SPANS)
        sides.append(variants.collector(REFERENCE, protocol="grpc", compression="gzip", tail_sampling=settings, out="http"))
    peaks: dict[str, float] = {}
    for side in sides:
        run = bench.run_otlp(side, load, warm_items=0, sampling=sampling)
        peaks[side.name] = run.peak_rss_bytes / MEGABYTE
        sent_s = run.report.duration_s
        say(f"in flight, {side.name}: {peaks[side.name]:.0f} MB, {run.cpu_us_per_record:.2f} µs a span, sent in {sent_s:.1f} s")
    figures = []
    for name, suffix in (("emp-pipe", ""), ("sqlite", ".sqlite")):
        figure = Figure(f"tail_sampling_million_spans_in_flight{suffix}", peaks[name], "MB", aim=300)
        if with_reference:
            figure.reference = peaks[REFERENCE]
            figure.ratio = peaks[REFERENCE] / peaks[name]
        figures.append(figure)
    return figures


def run_aggregation(bench: Workbench, say: Say) -> list[Figure]:
    """The highest resident size while 100,000 streams are held, each of which got two points in the window. Out as to Dash0: HTTP, gzip."""
    figures = []
    buffers: tuple[tuple[str, variants.Buffer], ...] = (("", "sqlite"), (".memory", "memory"))
    for suffix, buffer in buffers:
        aggregator = {"aggregate": {"interval_s": 30}}
        variant = variants.emp_pipe("aggregation", protocol="http", compression="gzip", buffer=buffer, processors=aggregator)
        figure = _aggregate(bench, variant)
        figure.name += suffix
        say(f"{figure.name}: peak {figure.value:.0f} MB; {figure.note}")
        figures.append(figure)
    return figures


def _aggregate(bench: Workbench, variant: Variant) -> Figure:
    data = OtlpData("metrics", STREAMS, 500)
    bench.sink.reset()
    with bench.subject(variant) as (subject, port):
        idle_mb = subject.rss_bytes() / MEGABYTE
        subject.watch_memory()
        cpu_s = subject.cpu_s()
        for later_ns in (0, 10_000_000_000):
            bench.otlp_load.prepare(OtlpLoad(replace(data, later_ns=later_ns), "http"))
            bench.otlp_load.start(port)
            bench.otlp_load.wait(60)
        resident_mb = subject.rss_bytes() / MEGABYTE
        bench.await_arrival(subject, STREAMS)
        time.sleep(1)
        cpu_s = subject.cpu_s() - cpu_s
        peak_mb = subject.peak_rss_bytes / MEGABYTE
    verdict = bench.sink.verify_otlp([replace(data, later_ns=10_000_000_000)], merged=True)
    if not verdict.right:
        raise VoidRun(f"aggregation: {verdict}")
    note = f"{idle_mb:.0f} MB at the start, {resident_mb:.0f} MB when all points were in; {cpu_s / STREAMS / 2 * 1e6:.2f} CPU µs a point"
    return Figure("aggregation_100k_streams_resident", peak_mb, "MB", aim=150, note=note)


def run_json_decode(pairs: int, say: Say) -> list[Figure]:
    """JSON requests to batches in the core, beside `json.loads` of the same text, which leaves the work of a receiver still to be done."""
    command = [sys.executable, "-m", "bench.json_driver", str(pairs)]
    driver = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=False, timeout=300)
    if driver.returncode:
        raise RuntimeError("the JSON driver failed")
    figures = []
    for signal, measured in json.loads(driver.stdout).items():
        figure = of_pairs(f"otlp_json_decode_{signal}_vs_json_loads", "CPU µs per row", measured["values"], measured["references"], bar=4)
        say(f"{figure.name}: {figure.value:.2f} and {figure.reference:.2f} µs a row")
        figures.append(figure)
    return figures
