"""`python -m bench.profile KIND`: where the CPU goes, by symbol (Linux perf) or by Python line (py-spy).

KIND is plain, gzip, durable or chain (with `[role]`), or the name of a case of OTLP (otlp_http_logs_none_memory, tail_sampling, …).
The load is that of the case; the report covers the timed part only. PROFILER=perf (default) or py-spy, PROFILE_LINES=40.
Figures taken under a profiler are no results.
"""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil

from bench import cases_otlp, variants
from bench.load import Load
from bench.load_process import LoadProcess
from bench.otlp_data import fresh
from bench.otlp_load import OtlpLoad
from bench.runs import L, Sampling, Variant, Workbench
from bench.subjects import REPOSITORY

WARM_RECORDS, RECORDS = 20_000, 200_000


def _variant(kind: str, role: str) -> tuple[Variant, bool]:
    if kind == "chain":
        return variants.emp_pipe_chain(kind, roles=role != "run"), True
    compression, buffer = {"plain": ("none", "memory"), "gzip": ("gzip", "memory"), "durable": ("gzip", "sqlite")}[kind]
    return variants.emp_pipe(kind, compression=compression, buffer=buffer, role=role), kind == "durable"  # type: ignore[arg-type]


def main() -> int:
    kind = sys.argv[1]
    case = next((case for case in cases_otlp.paired_cases() if case.name == kind), None)
    with Workbench(WARM_RECORDS + RECORDS, REPOSITORY / ".cache" / "bench") as bench:
        if case is None:
            variant, ack = _variant(kind, sys.argv[2] if len(sys.argv) > 2 else "run")
            load = Load(0, WARM_RECORDS, ack=ack)
            _profile(bench, variant, bench.load, load, replace(load, first=WARM_RECORDS, count=RECORDS), None)
        else:
            otlp = case.load
            assert isinstance(otlp, OtlpLoad)
            warm = replace(otlp, data=fresh(otlp.data, WARM_RECORDS))
            variant = next(variant for variant in case.variants if variant.name == (sys.argv[2] if len(sys.argv) > 2 else ""))
            _profile(bench, variant, bench.otlp_load, warm, otlp, case.sampling)
    return 0


def _profile(bench: Workbench, variant: Variant, generator: LoadProcess[L], warm: L, load: L, sampling: Sampling | None) -> None:
    profiler = os.environ.get("PROFILER", "perf")
    bench.sink.reset()
    with bench.subject(variant) as (subject, port):
        generator.prepare(warm)
        generator.start(port)
        generator.wait(60)
        bench.await_all(subject, warm.records, sampling)
        generator.prepare(load)
        output = bench.folder / "profile"
        pids = subject.pids()
        recording = _record(profiler, pids, output)
        cpu_s = subject.cpu_s()
        generator.start(port)
        generator.wait(120)
        bench.await_all(subject, warm.records + load.records, sampling)
        cpu_s = subject.cpu_s() - cpu_s
        recording.send_signal(signal.SIGINT)
        recording.wait()
        print(f"{variant.name}: {cpu_s / load.records * 1e6:.2f} µs a record (under the profiler)")
        _print_threads(pids)
    _report(profiler, output, int(os.environ.get("PROFILE_LINES", "40")))


def _record(profiler: str, pids: list[int], output: Path) -> subprocess.Popen[bytes]:
    if profiler == "perf":
        command = ["perf", "record", "-q", "-F", "1999", "-e", "cpu-clock", "-o", str(output), "-p", ",".join(map(str, pids))]
    else:
        command = ["py-spy", "record", "-r", "500", "-f", "raw", "-o", str(output), "-p", str(pids[0])]
    recording = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        recording.wait(1.5)  # until it has attached
    except subprocess.TimeoutExpired:
        return recording
    raise SystemExit(f"{' '.join(command)}: ended at once; is it installed, and may it trace?")


def _print_threads(pids: list[int]) -> None:
    for pid in pids:
        for thread in psutil.Process(pid).threads():
            name = Path(f"/proc/{pid}/task/{thread.id}/comm").read_text().strip()
            if thread.user_time + thread.system_time > 0.02:
                print(f"  {pid} {name}: user {thread.user_time:.2f} s, system {thread.system_time:.2f} s since its start")


def _report(profiler: str, output: Path, lines: int) -> None:
    if profiler == "perf":
        for order in ("dso", "sym"):
            command = ["perf", "report", "-i", str(output), "--stdio", "--no-children", "-s", order]
            report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            wanted = [line.rstrip()[:140] for line in report.splitlines() if line.strip() and not line.startswith("#")]
            print("\n".join(wanted[: 8 if order == "dso" else lines]), end="\n\n")
        return
    leaves: collections.Counter[str] = collections.Counter()
    within: collections.Counter[str] = collections.Counter()
    total = 0
    for line in output.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        total += int(count)
        leaves[frames[-1]] += int(count)
        for function in {frame.rpartition(":")[0] for frame in frames}:
            within[function] += int(count)
    for title, counts in (("in this line", leaves), ("in this function and what it calls", within)):
        print(title)
        for frame, samples in counts.most_common(lines):
            print(f"{samples / total:7.2%}  {frame}")


if __name__ == "__main__":
    sys.exit(main())
