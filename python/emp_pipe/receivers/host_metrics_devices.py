"""Disks, file systems and network: what is attached to the machine. `host_metrics.py` lists the readers.

Each file system is a reader of its own, for a dead network mount hangs whoever asks it. Mounts come from /proc/self/mountinfo, which asks
none of them. A device that is mounted in several places is read once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import psutil

from emp_pipe.processes import read_bounded
from emp_pipe.readings import Readings, clean

_MOST_MOUNTS = 64
_MOST_DEVICES = 256
_MOST_MOUNTINFO_BYTES = 4 << 20
_MOST_SOCKETS_BYTES = 4 << 20
_SHARED_MEMORY = "/dev/shm"
PSEUDO_TYPES = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"),
        *("fuse.gvfsd-fuse", "fuse.lxcfs", "fuse.portal", "fusectl", "hugetlbfs", "iso9660", "mqueue", "nsfs", "proc", "pstore"),
        *("ramfs", "rpc_pipefs", "securityfs", "selinuxfs", "squashfs", "sysfs", "tracefs"),
    )
)
"""File systems that hold no files of anybody, or cannot fill up."""
_TCP_STATES = {
    b"01": "established",
    b"02": "syn_sent",
    b"03": "syn_received",
    b"04": "fin_wait_1",
    b"05": "fin_wait_2",
    b"06": "time_wait",
    b"07": "close",
    b"08": "close_wait",
    b"09": "last_ack",
    b"0A": "listen",
    b"0B": "closing",
}
_ESCAPED = re.compile(rb"\\([0-7]{3})")


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


class Disks:
    """Bytes, operations and time of whole disks since the boot; their partitions are in them."""

    def __init__(self, exclude: Collection[str], boot_unix_nano: int, sys_block: Path = Path("/sys/block")) -> None:
        self._exclude = exclude
        self._since = boot_unix_nano
        self._sys_block = sys_block

    def read(self, readings: Readings) -> None:
        try:
            whole = set(os.listdir(self._sys_block))
        except OSError:
            whole = set()
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        names = [name for name in counters if (not whole or name.replace("/", "!") in whole) and not matches(name, self._exclude)]
        for name in names[:_MOST_DEVICES]:
            found = counters[name]
            for direction in ("read", "write"):
                on = {"system.device": name, "disk.io.direction": direction}
                self._count(readings, "system.disk.io", getattr(found, f"{direction}_bytes"), "By", on)
                self._count(readings, "system.disk.operations", getattr(found, f"{direction}_count"), "{operation}", on)
                self._count(readings, "system.disk.operation_time", getattr(found, f"{direction}_time") / 1000, "s", on)
                self._count(readings, "system.disk.merged", getattr(found, f"{direction}_merged_count", 0), "{operation}", on)
            self._count(readings, "system.disk.io_time", getattr(found, "busy_time", 0) / 1000, "s", {"system.device": name})

    def _count(self, readings: Readings, name: str, value: int | float, unit: str, attributes: dict[str, str]) -> None:
        readings.counter(name, value, unit, attributes, since_unix_nano=self._since)


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system where it is mounted."""

    point: str
    type: str
    device: str
    is_read_only: bool
    number: str
    """The device's, `major:minor`: the same wherever it is mounted."""
    root: str
    """Which folder of the file system is mounted here."""


def parse_mounts(text: bytes) -> list[Mount]:
    """Return what a mountinfo says, in its order; lines that are none are left out."""
    found = []
    for line in text.split(b"\n"):
        before, dash, after = line.partition(b" - ")
        head, tail = before.split(b" "), after.split(b" ")
        if not dash or len(head) < 6 or len(tail) < 2:
            continue
        root, point, type_, device = (_unescaped(word) for word in (head[3], head[4], tail[0], tail[1]))
        found.append(Mount(point, type_, device, b"ro" in head[5].split(b","), head[2].decode("ascii", "replace"), root))
    return found


def _unescaped(word: bytes) -> str:
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), word))


class Mounts:
    """Which file systems are to be read."""

    def __init__(self, proc: Path, exclude_types: Collection[str], exclude_mounts: Collection[str]) -> None:
        self._mountinfo = proc / "self/mountinfo"
        self._types = exclude_types
        self._mounts = exclude_mounts
        self.left_out = 0
        """Mounts past the most that are read."""

    def find(self) -> list[Mount]:
        """Return each file system once, at its shortest path. Asks no file system, so it does not hang with one."""
        seen: dict[str, Mount] = {}
        at: dict[str, Mount] = {}
        for mount in parse_mounts(read_bounded(self._mountinfo, _MOST_MOUNTINFO_BYTES)):
            at[mount.point] = mount  # what is mounted over another hides it
        for mount in at.values():
            is_wanted = mount.type not in PSEUDO_TYPES and (mount.type != "tmpfs" or mount.point == _SHARED_MEMORY)
            if not is_wanted or matches(mount.type, self._types) or matches(mount.point, self._mounts):
                continue
            other = seen.get(mount.number)
            if other is None or len(mount.point) < len(other.point):
                seen[mount.number] = mount
        found = sorted(seen.values(), key=lambda mount: (len(mount.point), mount.point))
        self.left_out = max(len(found) - _MOST_MOUNTS, 0)
        return found[:_MOST_MOUNTS]


def file_system(mount: Mount, readings: Readings) -> None:
    """Read one file system. May hang for good."""
    found = os.statvfs(mount.point)
    of = {
        "system.device": clean(mount.device),
        "system.filesystem.mountpoint": clean(mount.point),
        "system.filesystem.type": mount.type,
        "system.filesystem.mode": "ro" if mount.is_read_only else "rw",
    }
    if not found.f_blocks:
        return
    size_bytes = found.f_frsize
    states = {
        "used": (found.f_blocks - found.f_bfree) * size_bytes,
        "free": found.f_bavail * size_bytes,
        "reserved": max(found.f_bfree - found.f_bavail, 0) * size_bytes,
    }
    for state, value in states.items():
        readings.up_down_counter("system.filesystem.usage", value, "By", {**of, "system.filesystem.state": state})
    usable = states["used"] + states["free"]
    if usable:
        readings.gauge("system.filesystem.utilization", states["used"] / usable, "1", of)
    readings.up_down_counter("system.filesystem.limit", found.f_blocks * size_bytes, "By", of)
    if found.f_files:
        used = found.f_files - found.f_ffree
        readings.up_down_counter("system.filesystem.inodes.usage", used, "{inode}", {**of, "system.filesystem.state": "used"})
        readings.up_down_counter("system.filesystem.inodes.usage", found.f_ffree, "{inode}", {**of, "system.filesystem.state": "free"})


class Network:
    """Bytes, packets, errors and drops of each interface since the boot, and TCP connections by state."""

    def __init__(self, proc: Path, exclude: Collection[str], boot_unix_nano: int) -> None:
        self._proc = proc
        self._exclude = exclude
        self._since = boot_unix_nano

    def read(self, readings: Readings) -> None:
        counters = psutil.net_io_counters(pernic=True, nowrap=False) or {}
        names = [name for name in counters if not matches(name, self._exclude)]
        for name in names[:_MOST_DEVICES]:
            found = counters[name]
            for direction, short in (("transmit", "sent"), ("receive", "recv")):
                drop, errors = ("dropout", "errout") if direction == "transmit" else ("dropin", "errin")
                on = {"network.interface.name": name, "network.io.direction": direction}
                self._count(readings, "system.network.io", getattr(found, f"bytes_{short}"), "By", on)
                self._count(readings, "system.network.packet.count", getattr(found, f"packets_{short}"), "{packet}", on)
                self._count(readings, "system.network.packet.dropped", getattr(found, drop), "{packet}", on)
                self._count(readings, "system.network.errors", getattr(found, errors), "{error}", on)
        self._connections(readings)

    def _connections(self, readings: Readings) -> None:
        """Count states without a look at who holds which socket, which would cost a hundred times as much."""
        counts = dict.fromkeys(_TCP_STATES.values(), 0)
        for name in ("tcp", "tcp6"):
            try:
                text = read_bounded(self._proc / "net" / name, _MOST_SOCKETS_BYTES)
            except FileNotFoundError:  # no IPv6
                continue
            for line in text.splitlines()[1:]:
                words = line.split(None, 4)
                if len(words) == 5 and (state := _TCP_STATES.get(words[3])):
                    counts[state] += 1
        for state, count in counts.items():
            of = {"network.transport": "tcp", "network.connection.state": state}
            readings.up_down_counter("system.network.connection.count", count, "{connection}", of)

    def _count(self, readings: Readings, name: str, value: int, unit: str, attributes: dict[str, str]) -> None:
        readings.counter(name, value, unit, attributes, since_unix_nano=self._since)
