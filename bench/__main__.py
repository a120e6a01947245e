"""`python -m bench` (`make bench`): run the cases, print the table, write `bench/out/latest.json`.

BENCH_PAIRS (default 7), BENCH_CASES (comma-separated parts of names, `^part` for their beginning; default all; everything of OTLP is
`^otlp,tail,aggregation,idle`), BENCH_LONG=1 (memory over ten minutes instead of half a minute). A case that cannot run says why:
"not run: …". Ends with status 1 when a run was void, 0 otherwise: a missed bar is a result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import cases, cases_disk, cases_host, cases_otlp, cases_redis, cases_security, cases_tail, neighbours
from bench.figures import Figure, of_pairs
from bench.runs import VoidRun, Workbench
from bench.subjects import COLLECTOR, REPOSITORY

OUT = REPOSITORY / "bench" / "out"
POOL_RECORDS = 520_000
SHORT_STEADY_S, LONG_STEADY_S = 30.0, 600.0


def main() -> int:
    pairs = int(os.environ.get("BENCH_PAIRS", "7"))
    wanted = [part.strip() for part in os.environ.get("BENCH_CASES", "").split(",") if part.strip()]
    steady_s = LONG_STEADY_S if os.environ.get("BENCH_LONG") == "1" else SHORT_STEADY_S
    problem = _core_problem()
    if problem:
        print(problem, file=sys.stderr)
        return 2
    with_collector = _build_collector()
    began_s = time.monotonic()
    figures: list[Figure] = []
    void = False
    with Workbench(POOL_RECORDS, REPOSITORY / ".cache" / "bench") as bench:
        steps: dict[str, Callable[[], list[Figure]]] = {"forward_to_otlp_core_vs_msgpack": lambda: [_core_case(pairs)]}
        steps["otlp_json_decode_vs_json_loads"] = lambda: cases_otlp.run_json_decode(pairs, _say)
        for case in (*cases.paired_cases(), *cases_otlp.paired_cases()):
            steps[case.name] = lambda case=case: cases.run_paired(bench, case, pairs, with_collector, _say)  # type: ignore[misc]
        steps["ack_latency"] = lambda: cases.run_ack_latency(bench, pairs, with_collector, _say)
        steps["neighbour_in_trouble"] = lambda: neighbours.run(bench, pairs, _say)
        steps["durable_vs_memory_buffer"] = lambda: cases_disk.run_durable_cost(bench, pairs, _say)
        steps["restart_with_1_gb_of_backlog"] = lambda: cases_disk.run_restart(bench, pairs, _say)
        steps["redis_through"] = lambda: cases_redis.run(bench, pairs, _say)
        steps["idle_edge_resident"] = lambda: cases.run_idle_memory(bench, _say)
        steps["host_metrics_cost"] = lambda: cases_host.run_host_cost(pairs, _say)
        steps["steady_load_resident"] = lambda: cases.run_growth(bench, steady_s, _say)
        steps["tail_sampling_million_spans_in_flight"] = lambda: cases_otlp.run_tail_in_flight(bench, with_collector, _say)
        steps["aggregation_100k_streams_resident"] = lambda: cases_otlp.run_aggregation(bench, _say)
        steps["tail_lines"] = lambda: cases_tail.run(bench, pairs, _say)
        steps["good_clients_under_attack"] = lambda: cases_security.run_attacks(pairs, _say)
        steps["idle_tls_connections"] = lambda: cases_security.run_idle_tls(_say)
        for name, step in steps.items():
            if wanted and not any(name.startswith(part[1:]) if part.startswith("^") else part in name for part in wanted):
                continue
            try:
                figures += step()
            except (VoidRun, RuntimeError, OSError) as error:
                void = True
                print(f"{name}: void: {error}", file=sys.stderr)
                figures.append(Figure(name, None, "", note=f"not run: {str(error).splitlines()[0]}"))
    figures += cases.run_full_load_memory(figures)
    OUT.mkdir(exist_ok=True)
    (OUT / "latest.json").write_text(json.dumps([figure.as_json() for figure in figures], indent=1) + "\n")
    print(table(figures))
    print(f"{time.monotonic() - began_s:.0f} s; written to {(OUT / 'latest.json').relative_to(REPOSITORY)}")
    return 1 if void else 0


def _core_problem() -> str:
    try:
        from emp_pipe import _core
    except ImportError as error:
        return f"the native core is not built ({error}): make build"
    return "this is a debug build of the core, whose figures mean nothing: make build PROFILE=release" if _core.IS_DEBUG_BUILD else ""


def _build_collector() -> bool:
    if not COLLECTOR.exists():
        print("building the Collector, once; this takes some minutes")
    built = subprocess.run([str(Path(__file__).parent / "collector" / "build.sh")], stdout=subprocess.DEVNULL, check=False)
    return built.returncode == 0


def _core_case(pairs: int) -> Figure:
    driver = subprocess.run(
        [sys.executable, "-m", "bench.core_driver", str(pairs)], cwd=REPOSITORY, stdout=subprocess.PIPE, check=False, timeout=300
    )
    if driver.returncode:
        raise RuntimeError("the core's driver failed")
    measured = json.loads(driver.stdout)
    return of_pairs("forward_to_otlp_core_vs_msgpack", "CPU µs per record", measured["values"], measured["references"], bar=4)


def _say(line: str) -> None:
    print(f"  {line}", flush=True)


def table(figures: list[Figure]) -> str:
    """Return the figures as a Markdown table, bars met and missed."""
    rows = [("case", "emp-pipe", "reference", "ratio (quartiles)", "wanted", "")]
    for figure in figures:
        if figure.value is None:
            rows.append((figure.name, figure.note, "", "", "", ""))
            continue
        digits = 2 if figure.ratio is not None and figure.ratio < 2 else 1
        ratio = f"{figure.ratio:.{digits}f}" if figure.ratio is not None else ""
        if figure.ratio_quartiles:
            ratio += " ({} – {})".format(*(f"{one:.{digits}f}" for one in figure.ratio_quartiles))
        wanted = f"≥ {figure.bar:g} ×" if figure.bar is not None else f"≤ {figure.aim:g} {figure.unit}" if figure.aim is not None else ""
        verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
        reference = f"{figure.reference:.3g}" if figure.reference is not None else ""
        rows.append((figure.name, f"{figure.value:.3g} {figure.unit}", reference, ratio, wanted, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
