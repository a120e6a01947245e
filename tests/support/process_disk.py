"""Writes down everything that a process does to the files below a directory, and rebuilds what a power cut may leave of it.

SQLite's files are recorded by a VFS, all others by standing in for the functions of `os`. A file that was not synced may lack any part of
what was written; a name that was made may be gone unless its directory was synced after that (SQLite syncs it with the first sync of a
write-ahead log that it has made). So nothing is taken for granted that POSIX does not promise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import apsw
import pytest

from tests.support.recording_vfs import Disk, Event, RecordingFile, RecordingVFS

KEPT_SHARES = (0.0, 0.3, 0.7, 0.95)


class ProcessDisk(Disk):
    """The events of one run below `root`, under names relative to it; `make` and `syncdir` besides those of `Disk`."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self._open_files: dict[int, tuple[str, bool]] = {}

    def name(self, path: Any) -> str | None:
        """Return what a path is called here, None where it is elsewhere."""
        try:
            return str(Path(os.fsdecode(path)).relative_to(self.root))
        except (TypeError, ValueError):
            return None

    def after_power_cut(self, count: int, random: Random) -> dict[str, bytes]:
        events, keep = self.events[:count], random.choice(KEPT_SHARES)
        synced_dirs = {event.name: index for index, event in enumerate(events) if event.kind == "syncdir"}
        dropped = {
            event.name
            for index, event in enumerate(events)
            if event.kind == "make" and index > synced_dirs.get(os.path.dirname(event.name) or ".", -1) and random.random() >= keep
        }
        plain = Disk(events=[event for event in events if event.kind not in ("make", "syncdir")])
        files = plain.after_power_cut(len(plain.events), random)
        return {
            name: content for name, content in files.items() if not any(name == gone or name.startswith(f"{gone}/") for gone in dropped)
        }

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Stand in for the functions of `os` that change files."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "write", "pwrite", "ftruncate", "fsync", "mkdir", "unlink", "close"):
                patch.setattr(os, name, self._instead_of(name, getattr(os, name)))
            yield

    def _instead_of(self, function: str, real: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            return getattr(self, f"_{function}")(real, *arguments, **more)

        return call

    def _open(self, real: Any, path: Any, flags: int, *more: Any, **named: Any) -> int:
        name = self.name(path)
        is_new = name is not None and flags & os.O_CREAT and not os.path.exists(path)
        descriptor: int = real(path, flags, *more, **named)
        if name is not None:
            self._open_files[descriptor] = (name, bool(flags & os.O_DIRECTORY) or os.path.isdir(path))
            if is_new:
                self.record(Event("make", name))
        return descriptor

    def _write(self, real: Any, descriptor: int, data: Any) -> int:
        written: int = real(descriptor, data)
        if descriptor in self._open_files:  # all of ours append
            end = os.fstat(descriptor).st_size
            self.record(Event("write", self._open_files[descriptor][0], end - written, bytes(data[:written])))
        return written

    def _pwrite(self, real: Any, descriptor: int, data: Any, offset: int) -> int:
        if descriptor in self._open_files:
            self.record(Event("write", self._open_files[descriptor][0], offset, bytes(data)))
        written: int = real(descriptor, data, offset)
        return written

    def _ftruncate(self, real: Any, descriptor: int, size: int) -> None:
        if descriptor in self._open_files:
            self.record(Event("truncate", self._open_files[descriptor][0], size))
        real(descriptor, size)

    def _fsync(self, real: Any, descriptor: int) -> None:
        real(descriptor)
        if descriptor in self._open_files:
            name, is_directory = self._open_files[descriptor]
            self.record(Event("syncdir" if is_directory else "sync", name))

    def _mkdir(self, real: Any, path: Any, *more: Any, **named: Any) -> None:
        real(path, *more, **named)
        if (name := self.name(path)) is not None:
            self.record(Event("make", name))

    def _unlink(self, real: Any, path: Any, *more: Any, **named: Any) -> None:
        real(path, *more, **named)
        if (name := self.name(path)) is not None:
            self.record(Event("delete", name))

    def _close(self, real: Any, descriptor: int) -> None:
        self._open_files.pop(descriptor, None)
        real(descriptor)


class ProcessVFS(RecordingVFS):
    """SQLite's part of it."""

    disk: ProcessDisk

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _File(name, flags, self.disk)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        if syncdir:
            self.disk.record(Event("syncdir", os.path.dirname(self.called(filename))))

    def called(self, path: str) -> str:
        return self.disk.name(path) or os.path.basename(path)


class _File(RecordingFile):
    def __init__(self, name: Any, flags: list[int], disk: ProcessDisk) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._is_new_wal = str(path).endswith("-wal") and not os.path.exists(path)
        super().__init__(name, flags, disk)
        self._name = disk.name(path) or self._name
        if self._is_new_wal:
            disk.record(Event("make", self._name))

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        if self._is_new_wal:
            self._is_new_wal = False
            self._disk.record(Event("syncdir", os.path.dirname(self._name)))
