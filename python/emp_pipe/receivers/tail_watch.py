"""Says when something changed in the directories that are watched: by inotify where it works, else by nothing, and they are polled.

A directory is watched for names that come and go. It is watched for writes only while it is quiet: under load every write would be an
event, and looking at the files every now and then is cheaper by far. So a quiet machine costs nothing, and a busy one little.
Not here: what has changed (`tail_reader.py` looks).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from asyncinotify import Inotify, Mask

_NAMES = Mask.CREATE | Mask.MOVED_TO | Mask.MOVED_FROM | Mask.DELETE | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR
_QUIET_S = 3.0
_MOST_EVENTS_A_LOOK = 4096
_SILENT = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "ncpfs", "vboxsf", "virtiofs", "fuse"}
)
"""File systems on which inotify does not see what another machine writes."""


@dataclass(slots=True)
class Changes:
    """What has been said since the last look. `names`: in some directory names came or went, or too much happened to know."""

    names: bool = False
    written: set[str] = field(default_factory=set)
    """Files in quiet directories that were written to."""
    woken: set[str] = field(default_factory=set)
    """Directories that were quiet."""


class Watcher:
    """Watches directories; `descriptor` becomes readable when there is something to `look` at, None where nothing can be watched."""

    def __init__(self, mode: str) -> None:
        self._inotify: Inotify | None = None
        self.why_not = "" if mode != "poll" else "it is switched off"
        self._busy_until_s: dict[str, float] = {}
        self.polled: set[str] = set()
        """Directories that inotify does not work for."""
        if mode != "poll":
            try:
                self._inotify = Inotify(cache_size=64, sync_timeout=0)
            except OSError as error:
                self.why_not = f"inotify cannot be used ({error.strerror})"

    @property
    def descriptor(self) -> int | None:
        return self._inotify.fd if self._inotify is not None else None

    def watch(self, directories: Iterable[str]) -> None:
        """Watch these and no others."""
        wanted = set(directories)
        inotify = self._inotify
        if inotify is None:
            self.polled = wanted
            return
        silent = _silent_mounts()
        watched = {os.fspath(watch.path): watch for watch in inotify.watches}
        self.polled = set()
        for directory in wanted:
            if silent and any(directory == mount or directory.startswith(mount.rstrip("/") + "/") for mount in silent):
                self.polled.add(directory)
            elif directory not in watched:
                self._add(directory, _NAMES | Mask.MODIFY)
        for directory, watch in watched.items():
            if directory not in wanted:
                self._busy_until_s.pop(directory, None)
                with contextlib.suppress(OSError):  # the directory is gone, and its watch with it
                    inotify.rm_watch(watch)

    def _add(self, directory: str, mask: Mask) -> None:
        assert self._inotify is not None
        try:
            self._inotify.add_watch(directory, mask)
        except OSError as error:
            self.polled.add(directory)
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                self.why_not = f"inotify cannot watch {directory} ({error.strerror})"

    def look(self, now_s: float) -> Changes:
        """Return what has been said, and let directories that had nothing written to for a while be quiet again."""
        changes = Changes()
        inotify = self._inotify
        if inotify is None:
            return changes
        for _ in range(_MOST_EVENTS_A_LOOK):
            try:
                event = next(inotify, None)
            except BlockingIOError:
                break
            if event is None:
                break
            watch = event.watch
            if event.mask & Mask.MODIFY and watch is not None and event.name is not None:
                directory = os.fspath(watch.path)
                changes.written.add(os.path.join(directory, os.fspath(event.name)))
                self.wake(directory, now_s)
            else:  # names, a directory that is gone, or an overflow of the queue
                changes.names = True
        for directory, until_s in list(self._busy_until_s.items()):
            if now_s >= until_s:
                del self._busy_until_s[directory]
                self._add(directory, _NAMES | Mask.MODIFY)
                changes.woken.add(directory)  # what was written between the last poll and this is seen by one more
        return changes

    def wake(self, directory: str, now_s: float) -> None:
        """Take a directory for busy: its files are polled, not watched, until nothing has been written to for a while."""
        if directory not in self._busy_until_s and self._inotify is not None and directory not in self.polled:
            self._add(directory, _NAMES)
        self._busy_until_s[directory] = now_s + _QUIET_S

    def is_polled(self, directory: str) -> bool:
        """Return whether the files of a directory have to be looked at every now and then."""
        return self._inotify is None or directory in self._busy_until_s or directory in self.polled

    def close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None


def _silent_mounts() -> list[str]:
    """Return where file systems are mounted on which inotify does not see everything."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            lines = mounts.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        left, _, right = line.partition(" - ")
        kind = right.split(" ", 1)[0]
        if kind in _SILENT or kind.startswith("fuse."):
            found.append(left.split(" ")[4].replace("\\040", " "))
    return found
