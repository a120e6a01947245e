"""A SQLite VFS in Python that writes down every write and sync, and can be told to fail; and the rebuilding of a disk after a power cut.

What was synced is on the disk. Of what was not, the disk may have any part: `Disk.after_power_cut` takes a random one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import apsw

SECTOR_BYTES = 512


class Event(NamedTuple):
    """What was done to a file: `write` (offset, data), `truncate` (size), `sync`, `delete`; or a `mark` of the test."""

    kind: str
    name: str
    offset: int = 0
    data: bytes = b""
    what: Any = None


@dataclass
class Disk:
    """All events of one run, in order. `fail` is asked before each one: it raises to make it fail."""

    events: list[Event] = field(default_factory=list)
    fail: Callable[[Event], None] | None = None

    def record(self, event: Event) -> None:
        if self.fail is not None:
            self.fail(event)
        self.events.append(event)

    def mark(self, what: Any) -> None:
        """Write down that the program under test has promised something here."""
        self.events.append(Event("mark", "", what=what))

    def after_power_cut(self, count: int, random: Random) -> dict[str, bytes]:
        """Return the files as a power cut after the first `count` events may leave them."""
        events = self.events[:count]
        last_sync = {event.name: index for index, event in enumerate(events) if event.kind == "sync"}
        last_sync_of_any = max(last_sync.values(), default=-1)
        files: dict[str, bytearray] = {}
        keep = random.choice((0.0, 0.3, 0.7, 0.95))
        for index, event in enumerate(events):
            if event.kind in ("mark", "sync"):
                continue
            content = files.setdefault(event.name, bytearray())
            # A file system writes its directories in order: a deletion is on the disk with the next sync of anything.
            synced = index < (last_sync_of_any if event.kind == "delete" else last_sync.get(event.name, -1))
            if not synced and random.random() >= keep:
                continue
            if event.kind == "write":
                data = event.data
                if not synced and random.random() < 0.1:  # a torn one
                    data = data[: random.randrange(0, len(data) + 1, SECTOR_BYTES) if len(data) > SECTOR_BYTES else len(data)]
                if len(content) < event.offset + len(data):
                    content.extend(bytes(event.offset + len(data) - len(content)))
                content[event.offset : event.offset + len(data)] = data
            elif event.kind == "truncate":
                del content[event.offset :]
            elif event.kind == "delete":
                files.pop(event.name)
        return {name: bytes(content) for name, content in files.items()}


def write_files(files: dict[str, bytes], directory: Path) -> None:
    """Lay the files of a rebuilt disk into a directory."""
    for name, content in files.items():
        (directory / name).write_bytes(content)


class RecordingVFS(apsw.VFS):
    """The default VFS, with every change to a file told to a `Disk` first. Keep a reference for as long as it is in use."""

    def __init__(self, name: str, disk: Disk) -> None:
        self.disk = disk
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return RecordingFile(name, flags, self.disk)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.disk.record(Event("delete", self.called(filename)))
        super().xDelete(filename, syncdir)

    def called(self, path: str) -> str:
        return os.path.basename(path)


class RecordingFile(apsw.VFSFile):
    """A file of it."""

    def __init__(self, name: Any, flags: list[int], disk: Disk) -> None:
        self._disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = os.path.basename(path or "temporary")
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.record(Event("write", self._name, offset, bytes(data)))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:
        self._disk.record(Event("truncate", self._name, newsize))
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:
        self._disk.record(Event("sync", self._name))
        super().xSync(flags)
