"""The host metrics receiver: what this machine's processors, memory, disks, network and processes do, every 30 s.

Names follow OpenTelemetry's conventions for `system.*`, `process.*` and `container.*`; docs/host.md lists all. With no setting it reads
everything. What is not there (no pressure information, no swap, no permission) is left out, and a read that hangs holds nothing up
(`emp_pipe/readings.py`). The readers: `host_metrics_system.py`, `…_devices.py`, `…_processes.py`, `…_cgroup.py`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, field_validator

from emp_pipe.component import Context
from emp_pipe.readings import Reader, ReadingConfig, ReadingReceiver, Readings

Section = Literal["cpu", "load", "memory", "paging", "pressure", "files", "disks", "filesystems", "network", "processes", "container"]
SECTIONS: tuple[Section, ...] = (
    *("cpu", "load", "memory", "paging", "pressure", "files"),
    *("disks", "filesystems", "network", "processes", "container"),
)


class HostMetricsConfig(ReadingConfig):
    """Settings of host metrics. Patterns are shell patterns: `veth*`."""

    sections: tuple[Section, ...] = Field(SECTIONS, description="What is read: " + ", ".join(SECTIONS) + ".")
    per_core: bool = Field(True, description="Processor time of each core; false: of all together.")
    exclude_disks: tuple[str, ...] = Field(("loop*", "ram*", "zram*", "sr*", "fd*"), description="Disks that are left out.")
    exclude_mounts: tuple[str, ...] = Field((), description="Mount points that are left out.")
    exclude_filesystem_types: tuple[str, ...] = Field((), description="Their types that are left out, beside the kernel's own.")
    exclude_interfaces: tuple[str, ...] = Field(("lo", "veth*"), description="Network interfaces that are left out.")
    top_processes: Annotated[NonNegativeInt, Field(le=100)] = Field(
        5, description="How many processes are told of those that use the most processor time, and of those that hold the most memory."
    )
    named_processes: Mapping[str, str] = Field(
        default_factory=dict,
        description="Processes that are always told, by name: a regular expression that is searched in the command line. ComfyUI and the "
        "apps of PM2 are found without.",
    )
    container: Literal["auto", "always", "never"] = Field(
        "auto", description="Use and limits of the own cgroup: auto, where emp-pipe runs in a container."
    )

    @field_validator("named_processes")
    @classmethod
    def _patterns_compile(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, pattern in value.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{name!r} is no regular expression ({error})") from error
        return value


class HostMetricsReceiver(ReadingReceiver):
    """Reads this machine."""

    scope = "emp_pipe.host_metrics"
    config: HostMetricsConfig

    def __init__(self, id: str, config: HostMetricsConfig, context: Context, *, proc: Path = Path("/proc"), root: Path = Path("/")) -> None:
        super().__init__(id, config, context)
        self.config = config
        self._proc = proc
        self._root = root
        self._fixed: list[Reader] | None = None
        self._find_mounts: Callable[[], list[Reader]] | None = None

    async def begin(self) -> None:
        self.log.info("reads %s every %g s", ", ".join(self.config.sections), self.config.interval_s)

    def _prepare(self) -> list[Reader]:
        from emp_pipe.receivers import host_metrics_devices as devices
        from emp_pipe.receivers import host_metrics_system as system
        from emp_pipe.receivers.host_metrics_processes import ProcessMetrics

        config, proc = self.config, self._proc
        now = self._context.clock.unix_nano()
        boot = now - int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1e9)
        mounts = devices.Mounts(proc, config.exclude_filesystem_types, config.exclude_mounts)
        named = {name: re.compile(pattern) for name, pattern in config.named_processes.items()}
        readers: dict[Section, Callable[[Readings], None]] = {
            "cpu": system.Cpu(boot, config.per_core).read,
            "load": _both(system.load, system.uptime),
            "memory": system.memory,
            "paging": system.Paging(proc, boot).read,
            "pressure": system.Pressure(proc / "pressure", boot).read,
            "files": system.OpenFiles(proc).read,
            "disks": devices.Disks(config.exclude_disks, boot).read,
            "network": devices.Network(proc, config.exclude_interfaces, boot).read,
            "processes": ProcessMetrics(
                proc=proc,
                boot_unix_nano=boot,
                since_unix_nano=now,
                top=config.top_processes,
                named=named,
                clock_s=self._context.clock.monotonic_s,
            ).read,
        }
        found = [Reader(name, read) for name, read in readers.items() if name in config.sections]
        if "filesystems" in config.sections:
            self._find_mounts = lambda: [Reader(f"file system {each.point}", partial(devices.file_system, each)) for each in mounts.find()]
        if "container" in config.sections and config.container != "never":
            found += self._container(boot)
        return found

    def _container(self, boot_unix_nano: int) -> list[Reader]:
        from emp_pipe.receivers import host_metrics_cgroup as cgroups

        try:
            cgroup = cgroups.find(self._root)
        except OSError:
            return []
        if self.config.container == "auto" and not cgroups.is_container(cgroup, os.environ, self._root):
            return []
        return [Reader("container", cgroups.Container(cgroup, boot_unix_nano, cgroups.container_id(self._root)).read)]

    async def readers(self) -> Sequence[Reader]:
        if self._fixed is None:
            self._fixed = await self.calls.call("start", self._prepare, self.config.timeout_s)
        if self._find_mounts is None:
            return self._fixed
        try:
            mounts = await self.calls.call("mounts", self._find_mounts, self.config.timeout_s)
        except Exception as error:  # without a list of them no file system is read, and everything else is
            self.said.warning("mounts", "file systems cannot be listed (%s: %s)", type(error).__name__, error)
            return self._fixed
        return [*self._fixed, *mounts]


def _both(*reads: Callable[[Readings], None]) -> Callable[[Readings], None]:
    def read(readings: Readings) -> None:
        for one in reads:
            one(readings)

    return read


CONFIG = HostMetricsConfig
COMPONENT = HostMetricsReceiver
