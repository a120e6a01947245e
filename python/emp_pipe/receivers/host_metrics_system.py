"""What the whole machine says of itself: processors, load, memory, paging, pressure, open files. `host_metrics.py` lists the readers.

Names are OpenTelemetry's (`system.*`) where it has one; the others are told in docs/host.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from emp_pipe.processes import read_bounded
from emp_pipe.readings import Readings

_MODES = (
    ("user", ("user",)),
    ("nice", ("nice",)),
    ("system", ("system",)),
    ("idle", ("idle",)),
    ("iowait", ("iowait",)),
    ("interrupt", ("irq", "softirq")),
    ("steal", ("steal",)),
)
_WAVERS_BACK_S = 60.0
"""The kernel's iowait, and idle beside it, fall a little now and then; what falls further was counted anew (a core unplugged)."""
_MOST_BYTES = 262_144
_PRESSURE = ("cpu", "memory", "io", "irq")


class Cpu:
    """Time per mode and core since the boot, and the shares since the last reading."""

    def __init__(self, boot_unix_nano: int, per_core: bool) -> None:
        self._boot_unix_nano = boot_unix_nano
        self._per_core = per_core
        self._last: dict[int, dict[str, float]] = {}

    def read(self, readings: Readings) -> None:
        cores = psutil.cpu_times(percpu=True) if self._per_core else [psutil.cpu_times()]
        now: dict[int, dict[str, float]] = {}
        for number, times in enumerate(cores):
            modes = {mode: sum(getattr(times, name, 0.0) for name in names) for mode, names in _MODES}
            last = self._last.get(number)
            if last is not None:
                modes = {mode: _steady(value, last[mode]) for mode, value in modes.items()}
            now[number] = modes
            core = {"cpu.logical_number": number} if self._per_core else {}
            for mode, value in modes.items():
                readings.counter("system.cpu.time", value, "s", {**core, "cpu.mode": mode}, since_unix_nano=self._boot_unix_nano)
            if last is not None and (passed := sum(modes.values()) - sum(last.values())) > 0:
                for mode, value in modes.items():
                    share = min(max((value - last[mode]) / passed, 0.0), 1.0)
                    readings.gauge("system.cpu.utilization", share, "1", {**core, "cpu.mode": mode})
        self._last = now
        readings.up_down_counter("system.cpu.logical.count", psutil.cpu_count() or len(cores), "{cpu}")
        if physical := _physical_count():
            readings.up_down_counter("system.cpu.physical.count", physical, "{cpu}")


_physical: list[int | None] = []


def _physical_count() -> int | None:
    if not _physical:  # it reads a file for every core, and changes with the hardware only
        _physical.append(psutil.cpu_count(logical=False))
    return _physical[0]


def _steady(value: float, last: float) -> float:
    return last if last - _WAVERS_BACK_S < value < last else value


def load(readings: Readings) -> None:
    for minutes, value in zip(("1m", "5m", "15m"), os.getloadavg(), strict=True):
        readings.gauge(f"system.cpu.load_average.{minutes}", value, "{thread}")


def memory(readings: Readings) -> None:
    found = psutil.virtual_memory()
    states = {"free": found.free, "buffers": getattr(found, "buffers", 0), "cached": getattr(found, "cached", 0)}
    states["used"] = max(found.total - sum(states.values()), 0)  # so that the states are the whole, once
    for state, value in states.items():
        readings.up_down_counter("system.memory.usage", value, "By", {"system.memory.state": state})
        if found.total:
            readings.gauge("system.memory.utilization", value / found.total, "1", {"system.memory.state": state})
    readings.up_down_counter("system.memory.limit", found.total, "By")
    readings.up_down_counter("system.memory.linux.available", found.available, "By")
    readings.up_down_counter("system.memory.linux.shared", getattr(found, "shared", 0), "By")


class Paging:
    """Swap in use, pages in and out, faults, and how often memory ran out."""

    def __init__(self, proc: Path, boot_unix_nano: int) -> None:
        self._proc = proc
        self._boot_unix_nano = boot_unix_nano

    def read(self, readings: Readings) -> None:
        swap = psutil.swap_memory()
        for state, value in (("used", swap.used), ("free", swap.free)):
            readings.up_down_counter("system.paging.usage", value, "By", {"system.paging.state": state})
            if swap.total:
                readings.gauge("system.paging.utilization", value / swap.total, "1", {"system.paging.state": state})
        counts = pairs(read_bounded(self._proc / "vmstat", _MOST_BYTES))
        for direction, name in (("in", "pswpin"), ("out", "pswpout")):
            self._count(readings, "system.paging.operations", counts.get(name), "{operation}", {"system.paging.direction": direction})
        major, every = counts.get("pgmajfault"), counts.get("pgfault")
        self._count(readings, "system.paging.faults", major, "{fault}", {"system.paging.fault.type": "major"})
        if every is not None:
            self._count(readings, "system.paging.faults", every - (major or 0), "{fault}", {"system.paging.fault.type": "minor"})
        self._count(readings, "system.memory.oom_kills", counts.get("oom_kill"), "{process}", {})

    def _count(self, readings: Readings, name: str, value: int | None, unit: str, attributes: Mapping[str, str]) -> None:
        if value is not None:
            readings.counter(name, value, unit, attributes, since_unix_nano=self._boot_unix_nano)


def pairs(text: bytes) -> dict[str, int]:
    """Return what lines of a name and a number say, as /proc/vmstat and the files of cgroups have them; other lines are left out."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            found[words[0].decode("ascii", "replace")] = int(words[1])
    return found


def uptime(readings: Readings) -> None:
    readings.gauge("system.uptime", time.clock_gettime(time.CLOCK_BOOTTIME), "s")


class OpenFiles:
    """Open files of the whole machine, and how many there may be."""

    def __init__(self, proc: Path) -> None:
        self._proc = proc

    def read(self, readings: Readings) -> None:
        words = read_bounded(self._proc / "sys/fs/file-nr", 256).split()
        allocated, unused, limit = (int(word) for word in words[:3])
        readings.up_down_counter("system.file_descriptor.count", allocated - unused, "{file_descriptor}")
        readings.up_down_counter("system.file_descriptor.limit", limit, "{file_descriptor}")


class Pressure:
    """Pressure stall information: the time in which some tasks, or all of them, waited for a resource. Absent on kernels without it."""

    def __init__(self, folder: Path, boot_unix_nano: int, prefix: str = "system", suffix: str = "") -> None:
        self._files = {resource: folder / f"{resource}{suffix}" for resource in _PRESSURE}
        self._prefix = prefix
        self._boot_unix_nano = boot_unix_nano

    def read(self, readings: Readings) -> None:
        for resource, path in self._files.items():
            try:
                text = read_bounded(path, 4096)
            except OSError:  # no such kernel, switched off (EOPNOTSUPP), or not for us
                continue
            for line in text.decode("ascii", "replace").splitlines():
                self._line(readings, resource, line.split())

    def _line(self, readings: Readings, resource: str, words: list[str]) -> None:
        fields = dict(word.partition("=")[::2] for word in words[1:])
        of = {"pressure.resource": resource, "pressure.kind": words[0] if words else ""}
        if not words or words[0] not in ("some", "full"):
            return
        for window in ("10", "60", "300"):
            try:
                share = float(fields.get(f"avg{window}", "")) / 100
            except ValueError:
                continue
            readings.gauge(f"{self._prefix}.pressure.utilization", share, "1", {**of, "pressure.window": f"{window}s"})
        if (total := fields.get("total", "")).isdecimal():
            since = self._boot_unix_nano
            readings.counter(f"{self._prefix}.pressure.stall_time", int(total) / 1e6, "s", of, since_unix_nano=since)
