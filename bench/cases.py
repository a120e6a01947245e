"""The cases: which variants are compared, under which load, and which ratio or size is wanted.

A round runs every variant of a case once, in an order that turns round each time; the ratio of a figure is the median over the rounds.
emp-pipe runs with `processors: []` and, as `<name>.role_defaults`, with the processors of its role.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench import variants
from bench.figures import Figure, of_pairs, percentile
from bench.load import Load
from bench.otlp_load import OtlpLoad
from bench.runs import Run, Sampling, Variant, VoidRun, Workbench

REFERENCE = "collector"
MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class PairedCase:
    """CPU per record of emp-pipe's variants beside the Collector's, under one load."""

    name: str
    variants: Sequence[Variant]
    """emp-pipe's first; each one's name is the suffix of its figure ("" or ".role_defaults")."""
    reference: Variant
    load: Load | OtlpLoad
    warm_records: int = 20_000
    bar: float | None = None
    note: str = ""
    sampling: Sampling | None = None
    """OTLP: a tail sampler is under test, which keeps a part of what is sent."""


def paired_cases() -> list[PairedCase]:
    plain = variants.collector(REFERENCE, compression="none", durable=False)
    gzip = variants.collector(REFERENCE, compression="gzip", durable=False)
    durable = variants.collector(REFERENCE, compression="gzip", durable=True)
    ours_durable = (
        variants.emp_pipe("", compression="gzip", buffer="sqlite"),
        variants.emp_pipe(".role_defaults", compression="gzip", buffer="sqlite", role="edge"),
    )
    ours_plain = (
        variants.emp_pipe("", compression="none", buffer="memory"),
        variants.emp_pipe(".role_defaults", compression="none", buffer="memory", role="edge"),
    )
    cases = [
        PairedCase("forward_to_otlp_http_vs_collector", ours_plain, plain, Load(0, 500_000), bar=8),
        PairedCase(
            "forward_to_otlp_gzip_vs_collector",
            (
                variants.emp_pipe("", compression="gzip", buffer="memory"),
                variants.emp_pipe(".role_defaults", compression="gzip", buffer="memory", role="edge"),
            ),
            gzip,
            Load(0, 250_000),
            bar=6,
        ),
        PairedCase("forward_to_otlp_durable_vs_collector", ours_durable, durable, Load(0, 100_000, ack=True), bar=8),
        PairedCase(
            "forward_to_forward_durable",
            (variants.emp_pipe_chain("", roles=False), variants.emp_pipe_chain(".role_defaults", roles=True)),
            variants.collector_chain(REFERENCE),
            Load(0, 60_000, ack=True),
            note="edge → central → sink; the Collector has no Forward exporter: its hop is OTLP/HTTP with gzip",
        ),
    ]
    for per_read, count in ((1, 1_000), (10, 8_000), (100, 40_000)):
        load = Load(0, count, per_segment=per_read, ack=True)
        cases.append(PairedCase(f"durable_{per_read}_per_read", ours_durable, durable, load, warm_records=count // 4))
    for per_segment, count, rate in ((1, 20_000, 10_000.0), (64, 100_000, 50_000.0)):
        load = Load(0, count, per_segment=per_segment, messages=True, records_per_s=rate)
        cases.append(
            PairedCase(f"message_mode_{per_segment}_per_segment", ours_plain, plain, load, note=f"paced at {rate:.0f} records a second")
        )
    return cases


def run_paired(bench: Workbench, case: PairedCase, pairs: int, with_reference: bool, say: Callable[[str], None]) -> list[Figure]:
    """Return one figure per variant of emp-pipe. A void run ends the case: there is no result then."""
    everyone = [*case.variants, *([case.reference] if with_reference else [])]
    runs: dict[str, list[Run]] = {variant.name: [] for variant in everyone}
    for round_number in range(pairs):
        for variant in everyone if round_number % 2 == 0 else reversed(everyone):
            if isinstance(case.load, OtlpLoad):
                run = bench.run_otlp(variant, case.load, warm_items=case.warm_records, sampling=case.sampling)
            else:
                run = bench.run(variant, case.load, warm_records=case.warm_records)
            runs[variant.name].append(run)
            say(f"{case.name}{variant.name if variant is not case.reference else ' (collector)'}: {run.cpu_us_per_record:.3f} µs")
    figures = []
    for variant in case.variants:
        mine = runs[variant.name]
        references = runs[case.reference.name] if with_reference else []
        figure = of_pairs(
            case.name + variant.name,
            "CPU µs per record",
            [run.cpu_us_per_record for run in mine],
            [run.cpu_us_per_record for run in references],
            bar=case.bar,
        )
        figure.note = case.note if with_reference else "the Collector is absent: no reference"
        figure.more = _more(mine)
        if references:
            figure.more["reference"] = _more(references)
        figures.append(figure)
    return figures


def _more(runs: Sequence[Run]) -> dict[str, Any]:
    middle = len(runs) // 2

    def median(values: list[float]) -> float:
        return sorted(values)[middle]

    return {
        "peak_rss_mb": median([run.peak_rss_bytes / MEGABYTE for run in runs]),
        "records_per_s": median([run.records_per_s for run in runs]),
        "requests": median([run.verdict.requests for run in runs]),
        "body_bytes_per_record": median([run.verdict.body_bytes / run.verdict.records for run in runs]),
        "records_verified_per_run": runs[0].verdict.records,
    }


def run_ack_latency(bench: Workbench, pairs: int, with_reference: bool, say: Callable[[str], None]) -> list[Figure]:
    """Ack latency at half of each side's own closed-loop rate, durable: sent to schedule, counted from the scheduled time."""
    sides = [variants.emp_pipe("emp-pipe", compression="gzip", buffer="sqlite")]
    if with_reference:
        sides.append(variants.collector(REFERENCE, compression="gzip", durable=True))
    latencies: dict[str, dict[int, list[float]]] = {}
    rates: dict[str, float] = {}
    for side in sides:
        full = bench.run(side, Load(0, 60_000, ack=True))
        rates[side.name] = full.records_per_s / 2
    for round_number in range(min(pairs, 3)):
        for side in sides if round_number % 2 == 0 else reversed(sides):
            rate = rates[side.name]
            count = int(min(bench.records - 20_000, rate * 4)) // 1000 * 1000
            run = bench.run(side, Load(0, count, ack=True, records_per_s=rate))
            if run.report.late_s > 0.5:
                raise VoidRun(f"ack latency: the load generator was {run.report.late_s:.2f} s late; half load was not held")
            for percent in (50, 99):
                latency_ms = percentile(run.report.ack_latency_s, percent) * 1e3
                latencies.setdefault(side.name, {}).setdefault(percent, []).append(latency_ms)
                say(f"ack latency {side.name}: p{percent} {latency_ms:.1f} ms at {rate:.0f} records a second")
    figures = []
    for percent, aim in ((50, None), (99, 50.0)):
        references = latencies[REFERENCE][percent] if with_reference else []
        figure = of_pairs(f"ack_latency_p{percent}_durable_half_load", "ms", latencies["emp-pipe"][percent], references)
        figure.aim = aim
        figure.note = f"at {rates['emp-pipe']:.0f} records a second"
        if with_reference:
            figure.note += f"; the Collector at its own half load, {rates[REFERENCE]:.0f}"
        figures.append(figure)
    return figures


def run_idle_memory(bench: Workbench, say: Callable[[str], None]) -> list[Figure]:
    """Resident memory of an edge that has nothing to do, five seconds after its start: with Forward and HTTP, and with OTLP too."""
    figures = []
    for name, otlp, aim in (("idle_edge_resident", False, 64), ("idle_edge_resident_with_otlp", True, 90)):
        with bench.subject(variants.idle_edge("idle", otlp=otlp)) as (subject, _):
            time.sleep(5)
            subject.check_alive()
            resident_mb = subject.rss_bytes() / MEGABYTE
        say(f"{name}: {resident_mb:.1f} MB")
        figures.append(Figure(name, resident_mb, "MB", aim=aim))
    return figures


def run_growth(bench: Workbench, duration_s: float, say: Callable[[str], None]) -> list[Figure]:
    """Resident memory under a steady durable load: its highest, and what it grew between the first and the last third after warm-up."""
    variant = variants.emp_pipe("growth", compression="gzip", buffer="sqlite")
    rate, count = 40_000.0, bench.records // 1000 * 1000
    repeat = max(1, round(rate * duration_s / count))
    samples: list[float] = []
    bench.sink.reset(keep=False)
    with bench.subject(variant) as (subject, port):
        load = Load(0, count, ack=False, records_per_s=rate, repeat=repeat)
        bench.load.prepare(load)
        subject.watch_memory()
        bench.load.start(port)
        ends = time.monotonic() + load.records / rate
        while time.monotonic() < ends:
            time.sleep(0.5)
            samples.append(subject.rss_bytes() / MEGABYTE)
        bench.load.wait(120)
        bench.await_arrival(subject, load.records)
        peak_mb = subject.peak_rss_bytes / MEGABYTE
    third = len(samples) // 3
    first, last = sorted(samples[third // 2 : third + third // 2]), sorted(samples[-third:])
    growth_mb = last[len(last) // 2] - first[len(first) // 2]
    say(f"steady load for {duration_s:.0f} s: peak {peak_mb:.1f} MB, growth {growth_mb:+.1f} MB")
    note = f"{load.records} records at {rate:.0f} a second, durable, gzip"
    return [
        Figure("steady_load_resident_peak", peak_mb, "MB", aim=200, note=note),
        Figure("steady_load_resident_growth", growth_mb, "MB", aim=5, note=f"median of the last third less that of the first; {note}"),
    ]


def run_full_load_memory(paired: Sequence[Figure]) -> list[Figure]:
    """The highest resident size seen in the paired runs at full speed, from what those figures hold already."""
    figures = []
    for figure in paired:
        if figure.name.startswith("forward_to_otlp_") and "peak_rss_mb" in figure.more:
            line = Figure(f"{figure.name}.resident_peak", figure.more["peak_rss_mb"], "MB", aim=200)
            if "reference" in figure.more:
                line.reference = figure.more["reference"]["peak_rss_mb"]
                line.ratio = line.reference / line.value if line.value else None
            figures.append(line)
    return figures
