"""Whose a process on a GPU is: its name, and the worker that it, or what started it, says it works for.

Workers are told apart by `WORKER_ID` in the environment of a process or of one above it; where that cannot be read (another user's, or a
container's that counts its processes by itself), by the GPU, if the configuration says whose it is. Reads `/proc`, which may hang: it is
called in a thread with a time limit. Of an environment only the names below are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from emp_pipe.processes import parse_stat, read_bounded

_MOST_ABOVE = 8
_MOST_ENVIRONMENT_BYTES = 262_144
_MOST_TEXT = 256
_WORKER = ("WORKER_ID",)
_SERVICE = ("SERVICE_NAME", "name")
"""PM2 gives its applications their own `name`."""
_SERVICE_TYPE = ("SERVICE_TYPE",)


class Owner(NamedTuple):
    """Who works in a process. Empty: not known."""

    executable: str = ""
    worker_id: str = ""
    service: str = ""
    service_type: str = ""


class Owners:
    """Looks processes up, each once in its life."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._known: dict[int, tuple[int, Owner]] = {}

    def of(self, pids: Iterable[int]) -> Mapping[int, Owner]:
        """Return the owners of processes; those that are not here are not in it."""
        kept: dict[int, tuple[int, Owner]] = {}
        for pid in set(pids):
            started = self._status(pid)[1]
            if not started:
                continue
            known = self._known.get(pid)
            kept[pid] = known if known is not None and known[0] == started else (started, self._look_up(pid))
        self._known = kept
        return {pid: owner for pid, (_, owner) in kept.items()}

    def _look_up(self, pid: int) -> Owner:
        executable = self._read(pid, "comm").decode("utf-8", "replace").strip()
        found: dict[str, str] = {}
        above = pid
        for _ in range(_MOST_ABOVE):
            for name, value in self._environment(above).items():
                found.setdefault(name, value)
            above = self._status(above)[0]
            if above <= 1:
                break
        return Owner(executable, *(_first(found, names) for names in (_WORKER, _SERVICE, _SERVICE_TYPE)))

    def _environment(self, pid: int) -> dict[str, str]:
        wanted = {*_WORKER, *_SERVICE, *_SERVICE_TYPE}
        pairs = (pair.decode("utf-8", "replace").partition("=") for pair in self._read(pid, "environ").split(b"\0"))
        return {name: value[:_MOST_TEXT] for name, _, value in pairs if name in wanted and value}

    def _status(self, pid: int) -> tuple[int, int]:
        """Return a process' parent, and when it started, which tells it from a later one of that number; (0, 0) where there is none."""
        stat = parse_stat(self._read(pid, "stat"))
        return (stat.parent_pid, stat.start_ticks) if stat is not None else (0, 0)

    def _read(self, pid: int, name: str) -> bytes:
        try:
            return read_bounded(self._proc / str(pid) / name, _MOST_ENVIRONMENT_BYTES)
        except OSError:
            return b""


def _first(found: Mapping[str, str], names: Iterable[str]) -> str:
    return next((found[name] for name in names if name in found), "")
