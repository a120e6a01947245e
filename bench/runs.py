"""One measured run: start a subject, warm it up, send, wait until the sink has every record, stop, verify.

CPU is counted from after the warm-up until the sink holds the last record, so start-up is left out and draining is in.
A run in which a record was lost, repeated or changed raises `VoidRun`: it is no result.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.load import Load, LoadGenerator, LoadReport
from bench.records import make_pool
from bench.sink import Sink, Verdict
from bench.subjects import Subject

ARRIVAL_TIMEOUT_S = 60.0
Start = Callable[[Subject, Path, str], int]
"""Starts the processes of a subject (folder for its files, the sink's URL) and returns the port that takes Forward."""


class VoidRun(RuntimeError):
    """The run lost, repeated or changed a record, or never finished."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One of the things that a case compares."""

    name: str
    start: Start


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured."""

    cpu_s: float
    records: int
    duration_s: float
    peak_rss_bytes: int
    report: LoadReport
    verdict: Verdict

    @property
    def cpu_us_per_record(self) -> float:
        return self.cpu_s / self.records * 1e6

    @property
    def records_per_s(self) -> float:
        return self.records / self.report.duration_s


class Workbench:
    """The records, the load generator, the sink and a folder on a real disk; one for all cases."""

    def __init__(self, records: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="run-", dir=folder)).resolve()
        pool_file = self.folder / "pool"
        make_pool(records).save(pool_file)
        self.records = records
        self.load = LoadGenerator(pool_file)
        self.sink = Sink(pool_file)
        self._runs = 0

    def __enter__(self) -> Workbench:
        return self

    def __exit__(self, *_: object) -> None:
        self.load.close()
        self.sink.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, variant: Variant, load: Load, *, warm_records: int = 20_000) -> Run:
        """Measure one variant under one load; `warm_records` more are sent before, at full speed, in frames of the same size."""
        warm = replace(load, first=0, count=warm_records, records_per_s=None)
        load = replace(load, first=warm_records)
        self.sink.reset()
        with self.subject(variant) as (subject, port):
            self.load.prepare(warm)
            self.load.start(port)
            self.load.wait(ARRIVAL_TIMEOUT_S)
            self.await_arrival(subject, warm.records)
            self.load.prepare(load)
            subject.watch_memory()
            cpu_before_s, began_s = subject.cpu_s(), time.monotonic()
            self.load.start(port)
            report = self.load.wait(ARRIVAL_TIMEOUT_S * 2)
            self.await_arrival(subject, warm.records + load.records)
            cpu_s, duration_s = subject.cpu_s() - cpu_before_s, time.monotonic() - began_s
            peak_rss_bytes = subject.peak_rss_bytes
        verdict = self.sink.verify(0, warm.count + load.count)
        if not verdict.right:
            raise VoidRun(f"{variant.name}: {verdict}")
        return Run(cpu_s, load.records, duration_s, peak_rss_bytes, report, verdict)

    def subject(self, variant: Variant) -> _Running:
        self._runs += 1
        folder = self.folder / f"{self._runs:03d}"
        folder.mkdir()
        return _Running(variant, folder, f"http://127.0.0.1:{self.sink.port}")

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

    def __init__(self, variant: Variant, folder: Path, sink_url: str) -> None:
        self._variant, self._folder, self._sink_url = variant, folder, sink_url
        self._subject = Subject(variant.name, folder)

    def __enter__(self) -> tuple[Subject, int]:
        try:
            return self._subject, self._variant.start(self._subject, self._folder, self._sink_url)
        except BaseException:
            self._subject.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self._subject.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
