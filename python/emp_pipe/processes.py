"""The processes of this machine, out of /proc: a cheap look at all of them, and who the ones are that the fleet cares about.

One small file a process and scan; a command line is read when a process is first seen, an environment only of what PM2 has started and of
ComfyUI. What vanishes while it is read, or may not be read, is left out. Host metrics, GPU metrics (whose process holds that memory?) and
checks ask here. Not here: what is reported of a process (`receivers/host_metrics_processes.py`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
_MOST_COMMAND_LINE_BYTES = 8192
_MOST_ENVIRONMENT_BYTES = 262_144
_MOST_STAT_BYTES = 4096
_MOST_VALUE = 256
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STATES = {"R": "running", "T": "stopped", "t": "stopped", "Z": "defunct", "X": "defunct"}
_COMFYUI_PORT = 8188
_PORT = re.compile(r"--port[= ](\d{1,5})(?: |$)")
_PM2_DAEMON = "PM2 v"


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What /proc/PID/stat says."""

    pid: int
    parent_pid: int
    command: str
    """The kernel's name of it: at most 15 bytes of the file's name, or what the process calls itself."""
    state: str
    user_s: float
    system_s: float
    minor_faults: int
    major_faults: int
    threads: int
    start_ticks: int
    """Since the boot; with the pid it names a process for good."""
    virtual_bytes: int
    resident_bytes: int

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s

    @property
    def start_s(self) -> float:
        """When it started, in seconds after the boot."""
        return self.start_ticks / _TICKS_PER_S


def parse_stat(text: bytes) -> ProcessStat | None:
    """Return what a stat file says; None where it is none. The name in it may hold anything: blanks, brackets, line ends."""
    head, _, rest = text.rpartition(b")")
    pid, _, command = head.partition(b" (")
    fields = rest.split()
    try:
        return ProcessStat(
            pid=int(pid),
            parent_pid=int(fields[1]),
            command=command.decode("utf-8", "replace"),
            state=_STATES.get(fields[0].decode("ascii", "replace"), "sleeping"),
            user_s=int(fields[11]) / _TICKS_PER_S,
            system_s=int(fields[12]) / _TICKS_PER_S,
            minor_faults=int(fields[7]),
            major_faults=int(fields[9]),
            threads=int(fields[17]),
            start_ticks=int(fields[19]),
            virtual_bytes=int(fields[20]),
            resident_bytes=int(fields[21]) * _PAGE_BYTES,
        )
    except (ValueError, IndexError):
        return None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is. `name` is what the fleet calls it ("" where it is nobody in particular)."""

    command_line: str
    executable: str
    """The first word of the command line, without its folders."""
    name: str = ""
    kind: str = ""
    """comfyui, pm2, or "" for a name of the configuration."""
    restarts: int | None = None
    """How often PM2 has restarted it; None where nobody counts but us."""
    comfyui_port: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of its environment what says who it is: WORKER_ID and the like."""


_TELLING = frozenset({"WORKER_ID", "MACHINE_ID", "SERVICE_NAME", "SERVICE_TYPE", "CUDA_VISIBLE_DEVICES"})
_OF_PM2 = frozenset({"PM2_HOME", "pm_id", "name", "restart_time", "NODE_APP_INSTANCE"})


def read_bounded(path: Path | str, most_bytes: int) -> bytes:
    """Return at most so many bytes of a file. A read of /proc may give a page at a time."""
    fd = os.open(path, _READ)
    try:
        parts = []
        while most_bytes > 0 and (part := os.read(fd, most_bytes)):
            parts.append(part)
            most_bytes -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _read_once(path: str) -> bytes:
    """Return a short file by one call: what is read of every process is read as cheaply as can be."""
    fd = os.open(path, _READ)
    try:
        return os.read(fd, _MOST_STAT_BYTES)
    finally:
        os.close(fd)


class Processes:
    """What is known of the processes; `scan` looks again. For one thread at a time."""

    def __init__(self, proc: Path = PROC, named: Mapping[str, re.Pattern[str]] | None = None) -> None:
        self._proc = proc
        self._named = dict(named or {})
        self._identities: dict[tuple[int, int, str, str], Identity] = {}
        self.unreadable = 0
        """Processes of the last scan that are there and may not be read."""

    def scan(self) -> dict[int, ProcessStat]:
        """Return every process that can be read now, by pid. Raises OSError where /proc itself cannot be."""
        found: dict[int, ProcessStat] = {}
        self.unreadable = 0
        for name in os.listdir(self._proc):
            if not name.isdecimal():
                continue
            try:
                stat = parse_stat(_read_once(f"{self._proc}/{name}/stat"))
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
            except OSError:
                self.unreadable += 1
                continue
            if stat is not None:
                found[stat.pid] = stat
        return found

    def identify(self, stats: Mapping[int, ProcessStat]) -> dict[int, Identity]:
        """Return who the processes of a scan are; of those seen before, from memory.

        What has no memory is nobody: threads of the kernel, and what has ended and was not waited for."""
        known, kept = self._identities, {}
        identities: dict[int, Identity] = {}
        for pid, stat in stats.items():
            parent = stats.get(stat.parent_pid)
            parent_command = parent.command if parent is not None else ""
            if stat.virtual_bytes == 0:
                continue
            key = (pid, stat.start_ticks, stat.command, parent_command)  # the command: `exec` changes who a process is
            identity = known.get(key)
            if identity is None:
                identity = self._identify(stat, parent_command)
            if identity is not None:
                kept[key] = identities[pid] = identity
        self._identities = kept
        return identities

    def _identify(self, stat: ProcessStat, parent_command: str) -> Identity | None:
        try:
            words = read_bounded(f"{self._proc}/{stat.pid}/cmdline", _MOST_COMMAND_LINE_BYTES).split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return None
        except OSError:
            words = []
        arguments = [word.decode("utf-8", "replace") for word in words if word]
        line = " ".join(arguments) or stat.command
        executable = arguments[0].rpartition("/")[2] if arguments else stat.command
        if parent_command.startswith(_PM2_DAEMON) and not stat.command.startswith(_PM2_DAEMON):
            environment = self._environment(stat.pid)
            if name := environment.get("name", ""):
                restarts = environment.get("restart_time", "")
                port = _comfyui_port(arguments, line, self._folder(stat.pid))
                kept = {key: value for key, value in environment.items() if key in _TELLING}
                count = int(restarts) if restarts.isascii() and restarts.isdecimal() and len(restarts) < 10 else None
                return Identity(line, executable, name, "pm2", count, port, kept)
        for name, pattern in self._named.items():
            if pattern.search(line):
                return Identity(line, executable, name)
        port = _comfyui_port(arguments, line, None)
        if port is None and any(word.endswith("main.py") for word in arguments):
            port = _comfyui_port(arguments, line, self._folder(stat.pid))
        if port is not None:
            environment = {key: value for key, value in self._environment(stat.pid).items() if key in _TELLING}
            return Identity(line, executable, f"comfyui-{port}", "comfyui", None, port, environment)
        return Identity(line, executable)

    def _folder(self, pid: int) -> str:
        try:
            return os.readlink(f"{self._proc}/{pid}/cwd")
        except OSError:
            return ""

    def _environment(self, pid: int) -> dict[str, str]:
        try:
            entries = read_bounded(f"{self._proc}/{pid}/environ", _MOST_ENVIRONMENT_BYTES).split(b"\0")
        except OSError:
            return {}
        pairs = [entry.decode("utf-8", "replace").partition("=") for entry in entries]
        found = {key: value[:_MOST_VALUE] for key, _, value in pairs if key in _TELLING or key in _OF_PM2}
        for key, _, value in pairs:
            if key == "pm2_env":
                found |= _of_cluster(value)
        return found


def _of_cluster(text: str) -> dict[str, str]:
    """Return what PM2 tells an app in cluster mode: all of it in one variable, as JSON."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    known = values.items() if isinstance(values, dict) else ()
    return {key: str(value)[:_MOST_VALUE] for key, value in known if key in _OF_PM2 and isinstance(value, (str, int))}


def _comfyui_port(arguments: list[str], line: str, folder: str | None) -> int | None:
    """Return the port of a ComfyUI; None where a process is none: Python that runs a main.py in a folder of that name."""
    if not arguments or not arguments[0].rpartition("/")[2].lower().startswith("python"):
        return None
    script = next((word for word in arguments[1:] if word.endswith("main.py")), None)
    if script is None or not any(part.startswith("comfyui") for part in os.path.join(folder or "", script).lower().split("/")):
        return None
    found = _PORT.search(line)
    port = int(found[1]) if found else _COMFYUI_PORT
    return port if 0 < port < 65_536 else _COMFYUI_PORT
