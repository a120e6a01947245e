"""What a container may use, and uses: limits of CPU, memory and processes out of cgroups, version 1 and 2. `host_metrics.py` reads it.

Inside a container the machine's figures say nothing of the end that comes first: it is killed at its own limit, with half of the machine
free. A limit may stand on any cgroup above, so the least one counts. Not here: other containers (the Docker receiver).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emp_pipe.processes import read_bounded
from emp_pipe.readings import Attributes, Readings
from emp_pipe.receivers.host_metrics_devices import parse_mounts
from emp_pipe.receivers.host_metrics_system import Pressure, pairs

_CONTROLLERS = ("cpu", "cpuacct", "memory", "pids")
_UNLIMITED_BYTES = 1 << 60
"""Version 1 writes a number near 2^63 where there is no limit."""
_MOST_BYTES = 65_536
_MOST_LEVELS = 32
_MARKS = (".dockerenv", "run/.containerenv")
_VARIABLES = ("container", "KUBERNETES_SERVICE_HOST", "RAILWAY_ENVIRONMENT")
_OF_CONTAINERS = re.compile(r"docker|kubepods|containerd|lxc|libpod|podman|garden|ecs/|crio")
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Where this process' cgroups lie: for each controller its folder and the mount's root above it; `unified` is version 2."""

    folders: Mapping[str, tuple[Path, Path]] = field(default_factory=dict)
    unified: tuple[Path, Path] | None = None
    path: str = ""

    def above(self, controller: str) -> Iterator[Path]:
        """Yield the folder of a controller, then those above it, up to the mount's root."""
        found = self.folders.get(controller)
        if found is None:
            return
        folder, root = found
        for _ in range(_MOST_LEVELS):
            yield folder
            if folder == root or root not in folder.parents:
                return
            folder = folder.parent

    def is_version_2(self, controller: str) -> bool:
        return self.unified is not None and self.folders.get(controller) == self.unified


def find(root: Path = Path("/")) -> Cgroup:
    """Return where this process' cgroups are. Raises OSError where /proc cannot be read."""
    mounts = parse_mounts(read_bounded(root / "proc/self/mountinfo", 1 << 20))
    lines = read_bounded(root / "proc/self/cgroup", _MOST_BYTES).decode("utf-8", "surrogateescape").splitlines()
    paths: dict[str, str] = {}
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(","):
            paths[name] = path
    folders: dict[str, tuple[Path, Path]] = {}
    unified = None
    for mount in mounts:
        point = root / mount.point.lstrip("/")
        if mount.type == "cgroup2" and "" in paths:
            unified = (_below(point, mount.root, paths[""]), point)
        elif mount.type == "cgroup":
            for name in os.path.basename(mount.point).split(","):
                if name in _CONTROLLERS and name in paths:
                    folders[name] = (_below(point, mount.root, paths[name]), point)
    if unified is not None:
        for name in _CONTROLLERS:
            folders.setdefault(name, unified)
    return Cgroup(folders, unified, " ".join(sorted(set(paths.values()))))


def _below(point: Path, root: str, path: str) -> Path:
    """Return the folder of a path below a mount of `root`. In a container the path may be the host's, and is not to be seen from here."""
    if root != "/" and f"{path}/".startswith(f"{root}/"):
        path = path[len(root) :]
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    folder = point.joinpath(*parts)
    try:
        return folder if folder.is_dir() else point
    except OSError:
        return point


def is_container(cgroup: Cgroup, environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Return whether this process runs in a container rather than on a machine of its own."""
    if any((root / mark).exists() for mark in _MARKS) or any(environment.get(name) for name in _VARIABLES):
        return True
    if _OF_CONTAINERS.search(cgroup.path):
        return True
    return cgroup.path == "/" and cgroup.unified is not None and (cgroup.unified[1] / "memory.max").exists()  # a namespace of its own


def container_id(root: Path = Path("/")) -> str:
    """Return this container's id, as Docker and containerd have it; "" where nothing tells it."""
    for name in ("cgroup", "mountinfo"):
        try:
            found = _ID.search(read_bounded(root / "proc/self" / name, 1 << 20).decode("ascii", "replace"))
        except OSError:
            continue
        if found:
            return found[0]
    return ""


class Container:
    """This container's use and limits. Files that are not there are left out."""

    def __init__(self, cgroup: Cgroup, since_unix_nano: int, id: str = "") -> None:
        self._cgroup = cgroup
        self._since = since_unix_nano
        self._resource: Attributes = {"container.id": id} if id else {}
        folder = cgroup.unified[0] if cgroup.unified is not None else None
        self._pressure = Pressure(folder, since_unix_nano, "container", ".pressure") if folder is not None else None

    def read(self, readings: Readings) -> None:
        found = Readings(readings.now_unix_nano)
        self._cpu(found)
        self._memory(found)
        self._pids(found)
        if self._pressure is not None:
            self._pressure.read(found)
        for point in found.points:
            point.resource = tuple(sorted(self._resource.items()))
        readings.take(found)

    def _cpu(self, readings: Readings) -> None:
        cgroup = self._cgroup
        limits = [limit for folder in cgroup.above("cpu") if (limit := _cpu_limit(folder)) is not None]
        if limits:
            readings.up_down_counter("container.cpu.limit", min(limits), "{cpu}")
        folder = next(cgroup.above("cpu"), None)
        if folder is None:
            return
        stat = _pairs(folder / "cpu.stat")
        if "usage_usec" in stat:
            for mode in ("user", "system"):
                self._count(readings, "container.cpu.time", stat.get(f"{mode}_usec", 0) / 1e6, "s", {"cpu.mode": mode})
        else:
            self._cpu_time_of_version_1(readings)
        if "nr_throttled" in stat:
            throttled_s = stat["throttled_usec"] / 1e6 if "throttled_usec" in stat else stat.get("throttled_time", 0) / 1e9
            self._count(readings, "container.cpu.throttled.time", throttled_s, "s")
            self._count(readings, "container.cpu.throttled.periods", stat["nr_throttled"], "{period}")
            self._count(readings, "container.cpu.periods", stat.get("nr_periods", 0), "{period}")

    def _cpu_time_of_version_1(self, readings: Readings) -> None:
        folder = next(self._cgroup.above("cpuacct"), None)
        if folder is None:
            return
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        stat = _pairs(folder / "cpuacct.stat")
        for mode in ("user", "system"):
            if mode in stat:
                self._count(readings, "container.cpu.time", stat[mode] / ticks_per_s, "s", {"cpu.mode": mode})

    def _memory(self, readings: Readings) -> None:
        cgroup = self._cgroup
        folder = next(cgroup.above("memory"), None)
        if folder is None:
            return
        is_2 = cgroup.is_version_2("memory")
        usage = _number(folder / ("memory.current" if is_2 else "memory.usage_in_bytes"))
        stat = _pairs(folder / "memory.stat")
        limit = _least(cgroup, "memory", "memory.max" if is_2 else "memory.limit_in_bytes")
        if usage is not None:
            working = max(usage - stat.get("inactive_file" if is_2 else "total_inactive_file", 0), 0)
            readings.up_down_counter("container.memory.usage", usage, "By")
            readings.up_down_counter("container.memory.working_set", working, "By")
            if limit is not None:
                readings.up_down_counter("container.memory.available", max(limit - working, 0), "By")
        if (rss := stat.get("anon" if is_2 else "total_rss")) is not None:
            readings.up_down_counter("container.memory.rss", rss, "By")
        if limit is not None:
            readings.up_down_counter("container.memory.limit", limit, "By")
        kills = _pairs(folder / ("memory.events" if is_2 else "memory.oom_control")).get("oom_kill")
        if kills is not None:
            self._count(readings, "container.memory.oom_kills", kills, "{process}")
        if is_2 and (swapped := _number(folder / "memory.swap.current")) is not None:
            readings.up_down_counter("container.memory.swap.usage", swapped, "By")

    def _pids(self, readings: Readings) -> None:
        folder = next(self._cgroup.above("pids"), None)
        if folder is None:
            return
        if (count := _number(folder / "pids.current")) is not None:
            readings.up_down_counter("container.pids.count", count, "{thread}")
        if (limit := _least(self._cgroup, "pids", "pids.max")) is not None:
            readings.up_down_counter("container.pids.limit", limit, "{thread}")

    def _count(self, readings: Readings, name: str, value: int | float, unit: str, attributes: Attributes | None = None) -> None:
        readings.counter(name, value, unit, attributes or {}, since_unix_nano=self._since)


def _text(path: Path) -> str:
    try:
        return read_bounded(path, _MOST_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _pairs(path: Path) -> dict[str, int]:
    return pairs(_text(path).encode("ascii", "replace"))


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _least(cgroup: Cgroup, controller: str, name: str) -> int | None:
    """Return the least of a limit here and above; None where nothing limits."""
    found = [value for folder in cgroup.above(controller) if (value := _number(folder / name)) is not None and value < _UNLIMITED_BYTES]
    return min(found, default=None)


def _cpu_limit(folder: Path) -> float | None:
    """Return how many processors' time a cgroup may use; None where it may use all."""
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0 or len(quota) > 18:
        return None
    return int(quota) / int(period)
