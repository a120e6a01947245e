"""One measured run: start a subject, warm it up, send, wait until the sink has every record, stop, verify.

CPU is counted from after the warm-up until the sink holds the last record, so start-up is left out and draining is in.
A run in which a record was lost, repeated or changed raises `VoidRun`: it is no result.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from bench.load import Load, LoadGenerator
from bench.load_process import LoadProcess, LoadReport
from bench.otlp_data import fresh
from bench.otlp_load import OtlpLoad, OtlpLoadGenerator
from bench.otlp_proof import Sampled
from bench.proof import Verdict
from bench.records import make_pool
from bench.sink import Sink, SinkAddress
from bench.subjects import Subject, cpu_of

ARRIVAL_TIMEOUT_S = 60.0
SETTLED_S = 1.5
L = TypeVar("L", Load, OtlpLoad)
Start = Callable[[Subject, Path, SinkAddress], int]
"""Starts the processes of a subject (folder for its files, where the sink is) and returns the port that takes the load."""


class VoidRun(RuntimeError):
    """The run lost, repeated or changed a record, or never finished."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the things that a case compares. `beside`: processes that do a part of the work, and whose CPU is counted apart."""

    name: str
    start: Start
    beside: Callable[[], Sequence[int]] = tuple


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured."""

    cpu_s: float
    records: int
    duration_s: float
    peak_rss_bytes: int
    report: LoadReport
    verdict: Verdict
    beside_cpu_s: float
    through_s: float
    """From the first byte that was sent until the last one reached the sink."""

    @property
    def cpu_us_per_record(self) -> float:
        return self.cpu_s / self.records * 1e6

    @property
    def records_per_s(self) -> float:
        return self.records / self.report.duration_s

    @property
    def through_per_s(self) -> float:
        return self.records / self.through_s


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a tail sampler under test does: what it is to leave over, and how long it waits after the first span of a trace."""

    expected: Sampled
    decision_wait_s: float
    all_in_flight: bool = False
    """Nothing may be decided before everything is sent."""


class Workbench:
    """The load generators, the sink and a folder on a real disk; one for all cases. Processes and records are made when first wanted."""

    def __init__(self, records: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=folder)).resolve()
        self.records = records
        self._pool_file = self.folder / "pool"
        self.sink = Sink(self._pool_file)
        self._runs = 0

    @cached_property
    def load(self) -> LoadGenerator:
        make_pool(self.records).save(self._pool_file)
        return LoadGenerator(self._pool_file)

    @cached_property
    def otlp_load(self) -> OtlpLoadGenerator:
        return OtlpLoadGenerator()

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("load", "otlp_load"):
            if name in self.__dict__:
                getattr(self, name).close()
        self.sink.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, variant: Variant, load: Load, *, warm_records: int = 20_000) -> Run:
        """Measure one variant under one load; `warm_records` more are sent before, at full speed, in frames of the same size."""
        warm = replace(load, first=0, count=warm_records, records_per_s=None)
        load = replace(load, first=warm_records)
        return self._measure(variant, self.load, warm, load, lambda: self.sink.verify(0, warm.count + load.count))

    def run_otlp(self, variant: Variant, load: OtlpLoad, *, warm_items: int = 20_000, sampling: Sampling | None = None) -> Run:
        """Measure one variant under one load of fresh rows, after `warm_items` others.

        With `sampling` the run ends when, after the decision wait, nothing more arrives; CPU is then counted until that silence."""
        load = replace(load, data=fresh(load.data, load.data.items))
        warm = replace(load, data=fresh(load.data, warm_items), rows_per_s=None)
        expected = sampling.expected if sampling else None
        return self._measure(
            variant, self.otlp_load, warm, load, lambda: self.sink.verify_otlp([warm.data, load.data], expected), sampling=sampling
        )

    def _measure(
        self,
        variant: Variant,
        generator: LoadProcess[L],
        warm: L,
        load: L,
        verify: Callable[[], Verdict],
        sampling: Sampling | None = None,
    ) -> Run:
        self.sink.reset()
        with self.subject(variant) as (subject, port):
            if warm.records:
                generator.prepare(warm)
                generator.start(port)
                generator.wait(ARRIVAL_TIMEOUT_S)
                self.await_all(subject, warm.records, sampling)
            generator.prepare(load)
            subject.watch_memory()
            beside = variant.beside()
            cpu_before_s, beside_before_s, began_s = subject.cpu_s(), cpu_of(beside), time.monotonic()
            generator.start(port)
            report = generator.wait(ARRIVAL_TIMEOUT_S * 2)
            if sampling is not None and sampling.all_in_flight and (early := self.sink.count()):
                raise VoidRun(f"{variant.name}: {early} spans were decided while others were sent: not all were in flight")
            self.await_all(subject, warm.records + load.records, sampling)
            cpu_s, duration_s = subject.cpu_s() - cpu_before_s, time.monotonic() - began_s
            beside_cpu_s = cpu_of(beside) - beside_before_s
            peak_rss_bytes = subject.peak_rss_bytes
        through_s = self.sink.last_monotonic_s() - report.started_monotonic_s
        verdict = verify()
        if not verdict.right:
            raise VoidRun(f"{variant.name}: {verdict}")
        return Run(cpu_s, load.records, duration_s, peak_rss_bytes, report, verdict, beside_cpu_s, through_s)

    def await_all(self, subject: Subject, records: int, sampling: Sampling | None) -> None:
        """Return when the sink holds so many records; behind a sampler, when nothing more arrives."""
        if sampling is None:
            self.await_arrival(subject, records)
            return
        time.sleep(sampling.decision_wait_s + 1)
        arrived, since = -1, time.monotonic()
        while time.monotonic() - since < SETTLED_S:
            subject.check_alive()
            if (count := self.sink.count()) != arrived:
                arrived, since = count, time.monotonic()
            time.sleep(0.05)

    def subject(self, variant: Variant) -> _Running:
        self._runs += 1
        folder = self.folder / f"{self._runs:03d}"
        folder.mkdir()
        return _Running(variant, folder, self.sink.address)

    def await_arrival(self, subject: Subject, records: int) -> None:
        """Return when the sink holds so many records."""
        deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
        while (arrived := self.sink.count()) < records:
            subject.check_alive()
            if time.monotonic() > deadline:
                raise VoidRun(
                    f"{subject.name}: {arrived} of {records} records arrived within {ARRIVAL_TIMEOUT_S:.0f} s\n{subject.output()}"
                )
            time.sleep(0.01)


class _Running:
    """Starts a variant in a folder of its own; stops it and removes the folder at the end."""

    def __init__(self, variant: Variant, folder: Path, sink: SinkAddress) -> None:
        self._variant, self._folder, self._sink = variant, folder, sink
        self._subject = Subject(variant.name, folder)

    def __enter__(self) -> tuple[Subject, int]:
        try:
            return self._subject, self._variant.start(self._subject, self._folder, self._sink)
        except BaseException:
            self._subject.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self._subject.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
