"""Processes: how many in which state, the ones that use the most, and those the fleet names: ComfyUI, PM2's apps, patterns of one's own.

A named process that is gone is still told, as 0 of it: that is what an alert asks for. `process.*` stands on a resource of its own for each
process, as the conventions have it; restarts and instances stand on the machine's, for they outlive a pid. Who a process is:
`emp_pipe/processes.py`.
"""

from __future__ import annotations

import heapq
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from emp_pipe.processes import Identity, Processes, ProcessStat, read_bounded
from emp_pipe.readings import Attributes, Readings, clean

_MOST_NAMES = 256
_MOST_NAMED_PROCESSES = 64
_STATES = ("running", "sleeping", "stopped", "defunct")
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, FileNotFoundError, ProcessLookupError, PermissionError)
_NOT_TOLD = (*_GONE, AttributeError, RuntimeError, ValueError)
"""What psutil raises, besides, where this kernel does not tell a thing of a process (gVisor has no context switches, some have no `io`)."""
_LIFTED = {
    "WORKER_ID": "worker_id",
    "SERVICE_NAME": "service.name",
    "SERVICE_TYPE": "service_type",
}


class ProcessMetrics:
    """Reads processes; keeps what it saw of them at the last reading."""

    def __init__(
        self,
        *,
        proc: Path,
        boot_unix_nano: int,
        since_unix_nano: int,
        top: int,
        named: Mapping[str, re.Pattern[str]],
        clock_s: Callable[[], float],
    ) -> None:
        self._proc = proc
        self._boot_unix_nano = boot_unix_nano
        self._since_unix_nano = since_unix_nano
        self._top = top
        self._clock_s = clock_s
        self._processes = Processes(proc, named)
        self._cpus = psutil.cpu_count() or 1
        self._last_s = 0.0
        self._cpu_s: dict[tuple[int, int], float] = {}
        self._names: dict[str, _Name] = {name: _Name("") for name in named}

    @property
    def unreadable(self) -> int:
        return self._processes.unreadable

    def read(self, readings: Readings) -> None:
        """Read all of it. Raises OSError where /proc cannot be listed."""
        stats = self._processes.scan()
        now_s = self._clock_s()
        passed_s, self._last_s = now_s - self._last_s, now_s
        used_s = {}
        for stat in stats.values():
            last_s = self._cpu_s.get((stat.pid, stat.start_ticks))
            if last_s is not None:
                used_s[stat.pid] = max(stat.cpu_s - last_s, 0.0)
        self._cpu_s = {(stat.pid, stat.start_ticks): stat.cpu_s for stat in stats.values()}
        self._count(readings, stats)
        identities = self._processes.identify(stats)
        self._name(readings, stats, identities)
        for pid in self._chosen(stats, used_s, identities):
            share = used_s[pid] / passed_s / self._cpus if pid in used_s and passed_s > 0 else None
            self._one(readings, stats[pid], identities.get(pid), share)

    def _count(self, readings: Readings, stats: Mapping[int, ProcessStat]) -> None:
        states = Counter(stat.state for stat in stats.values())
        for state in _STATES:
            readings.up_down_counter("system.process.count", states[state], "{process}", {"process.state": state})
        with suppress(OSError, ValueError):
            for line in read_bounded(self._proc / "stat", 1 << 20).splitlines():
                if line.startswith(b"processes "):
                    readings.counter("system.process.created", int(line.split()[1]), "{process}", since_unix_nano=self._boot_unix_nano)
        with suppress(OSError, ValueError):
            limit = int(read_bounded(self._proc / "sys/kernel/threads-max", 64))
            readings.up_down_counter("system.process.limit", limit, "{thread}")
        readings.up_down_counter("system.thread.count", sum(stat.threads for stat in stats.values()), "{thread}")

    def _chosen(self, stats: Mapping[int, ProcessStat], used_s: Mapping[int, float], identities: Mapping[int, Identity]) -> set[int]:
        """Return the named ones, those that used the most processor time since the last reading, and those that hold the most memory."""
        named = [pid for pid, identity in identities.items() if identity.name]
        chosen = set(named[:_MOST_NAMED_PROCESSES])
        if self._top:
            chosen.update(heapq.nlargest(self._top, (pid for pid in used_s if pid in identities), key=lambda pid: used_s[pid]))
            chosen.update(heapq.nlargest(self._top, identities, key=lambda pid: stats[pid].resident_bytes))
        return chosen

    # --- names ------------------------------------------------------------------------------------------

    def _name(self, readings: Readings, stats: Mapping[int, ProcessStat], identities: Mapping[int, Identity]) -> None:
        """Tell of every name how many processes have it, and how often one came in another's place."""
        alive: dict[str, list[tuple[int, int, Identity]]] = {}
        for pid, identity in identities.items():
            if identity.name:
                alive.setdefault(identity.name, []).append((pid, stats[pid].start_ticks, identity))
        for text, processes in alive.items():
            name = self._names.get(text)
            if name is None:
                if len(self._names) >= _MOST_NAMES:
                    continue
                name = self._names[text] = _Name(processes[0][2].kind)
            name.see(processes)
        for text, name in self._names.items():
            of = {"process.name": clean(text), "process.kind": name.kind}
            readings.up_down_counter("process.instances", len(alive.get(text, ())), "{process}", of)
            readings.counter("process.restarts", name.restarts, "{restart}", of, since_unix_nano=self._since_unix_nano)

    # --- one process ------------------------------------------------------------------------------------

    def _one(self, readings: Readings, stat: ProcessStat, identity: Identity | None, share: float | None) -> None:
        started = self._boot_unix_nano + int(stat.start_s * 1e9)
        on = self._resource(stat, identity)
        for mode, value in (("user", stat.user_s), ("system", stat.system_s)):
            readings.counter("process.cpu.time", value, "s", {"cpu.mode": mode}, since_unix_nano=started, resource=on)
        if share is not None:
            readings.gauge("process.cpu.utilization", share, "1", resource=on)
        readings.up_down_counter("process.memory.usage", stat.resident_bytes, "By", resource=on)
        readings.up_down_counter("process.memory.virtual", stat.virtual_bytes, "By", resource=on)
        readings.up_down_counter("process.thread.count", stat.threads, "{thread}", resource=on)
        for kind, faults in (("major", stat.major_faults), ("minor", stat.minor_faults)):
            of = {"system.paging.fault.type": kind}
            readings.counter("process.paging.faults", faults, "{fault}", of, since_unix_nano=started, resource=on)
        readings.gauge("process.uptime", max((readings.now_unix_nano - started) / 1e9, 0.0), "s", resource=on)
        with suppress(*_GONE):
            process = psutil.Process(stat.pid)
            with process.oneshot():
                self._more(readings, process, started, on)

    def _more(self, readings: Readings, process: psutil.Process, started: int, on: Attributes) -> None:
        """Read what only the process' owner and root may know; it may be gone by now, and a kernel may not tell it."""
        with suppress(*_NOT_TOLD):
            readings.up_down_counter("process.unix.file_descriptor.count", process.num_fds(), "{file_descriptor}", resource=on)
        with suppress(*_NOT_TOLD):
            switches = process.num_ctx_switches()
            for kind in ("voluntary", "involuntary"):
                of = {"process.context_switch.type": kind}
                count = getattr(switches, kind)
                readings.counter("process.context_switches", count, "{context_switch}", of, since_unix_nano=started, resource=on)
        with suppress(*_NOT_TOLD):
            io: Any = process.io_counters()
            for direction in ("read", "write"):
                of = {"disk.io.direction": direction}
                readings.counter("process.disk.io", getattr(io, f"{direction}_bytes"), "By", of, since_unix_nano=started, resource=on)

    def _resource(self, stat: ProcessStat, identity: Identity | None) -> Attributes:
        """Return who a process is. Its arguments are left out: tokens stand in them."""
        on: dict[str, str | int] = {"process.pid": stat.pid, "process.parent_pid": stat.parent_pid, "process.command": clean(stat.command)}
        with suppress(OSError):
            on["process.user.id"] = os.stat(f"{self._proc}/{stat.pid}").st_uid
        if identity is not None:
            on["process.executable.name"] = clean(identity.executable)
            if identity.name:
                on["process.name"] = clean(identity.name)
            for variable, key in _LIFTED.items():
                if value := identity.environment.get(variable):
                    on[key] = clean(value)
        return on


class _Name:
    """What is known of one name: who had it, and how often another process came in one's place."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.restarts = 0
        self._seen: set[tuple[int, int]] = set()
        self._most = 0

    def see(self, processes: list[tuple[int, int, Identity]]) -> None:
        """Take those that have the name now. PM2 counts restarts itself; of others each that is new and no more than before is one."""
        now = {(pid, ticks) for pid, ticks, _ in processes}
        self.kind = processes[0][2].kind
        told = [identity.restarts for _, _, identity in processes if identity.restarts is not None]
        if told:
            self.restarts = sum(told)
        else:
            grown = max(len(now) - self._most, 0)
            self.restarts += max(len(now - self._seen) - grown, 0)
        self._most = max(self._most, len(now))
        self._seen = now
